"""Token ids from callers: lists, arrays and tensors to checked Python integers.

A list, a tuple, a range, an iterator, an array or a tensor of one dimension, or a batch of one row
(1, T), which transformers' tokenizers give; the integers in it Python's, NumPy's or torch's.
Whatever is no whole number stays outside: truth values, floats, rows of rows, and bytes, which
Python takes for a sequence of integers.

    token_ids(np.array([2, 818, 5279]))      # [2, 818, 5279]
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from itertools import islice
from typing import Any

from gemelo.errors import InputError

MOST_IDS = 1 << 20  # a few times the longest context; an iterator may never end
_NO_IDS = (str, bytes, bytearray, memoryview, Mapping, Set)


def token_ids(values: Any) -> list[int]:
    """Token ids in order, not compared with any vocabulary; InputError for what is none."""
    shape = tuple(getattr(values, "shape", (0,)))
    if len(shape) == 2 and shape[0] == 1:
        values = values[0]
    elif len(shape) != 1:
        raise InputError(
            f"token ids of shape {shape}; give one dimension or one row, and of several prompts "
            "one after the other"
        )
    if isinstance(values, _NO_IDS) or not isinstance(values, Iterable):
        type_name = type(values).__name__
        raise InputError(
            f"token ids are a list of integers, not of type {type_name}: {values!r:.100}"
        )
    items = _items(values) if hasattr(values, "tolist") else values
    try:
        ids = [token_id(item) for item in islice(items, MOST_IDS + 1)]
    except InputError as error:
        if not hasattr(values, "dtype"):
            raise
        raise InputError(f"an array of {values.dtype} and shape {shape}: {error}") from None
    if len(ids) > MOST_IDS:
        raise InputError(f"more than {MOST_IDS} token ids; no model takes so many")
    return ids


def _items(values: Any) -> Iterable[Any]:
    """An array's or tensor's items, of a longer one no more than it takes to see that."""
    try:
        items: Iterable[Any] = values[: MOST_IDS + 1].tolist()
    except (RuntimeError, TypeError) as error:  # a sparse tensor, one without values
        kind = type(values).__name__
        raise InputError(f"token ids cannot be read from this {kind}: {error!s:.80}") from None
    return items


def token_id(value: Any) -> int:
    """One token id; InputError for what is no whole number."""
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")
    if not truth and not getattr(value, "ndim", 0):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise InputError(f"{value!r:.100} is not a token id: ids are integers")
