"""Checks of numbers from files: whole ones within a limit, positive ones that float32 holds.

A corrupt file arrives here first, so every number is checked before anything is allocated from it.
To Python true is a 1; here it is no number.

    check_whole("head_dim", config.head_dim);  check_numbers(config);  is_whole(value, 0, 255)
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeGuard

from gemelo.errors import FileFormatError

LIMIT = 1 << 24  # no honest dimension of a model comes near; a corrupt file's does
SMALLEST, LARGEST = 1e-30, 1e12  # of factors, caps and the like
MOST_LAYERS = 1024  # of a decoder or a tower
_MAY_BE_ZERO = (
    "bos_token_id",
    "pad_token_id",
    "altup_active_idx",
    "num_kv_shared_layers",
    "conf_attention_context_right",
)
# Of what is made so many times, and no tensor's side shows.
_MOST = {
    "num_hidden_layers": MOST_LAYERS,
    "conf_num_hidden_layers": MOST_LAYERS,
    "altup_num_inputs": 16,
    "conf_attention_context_left": 1024,  # frames of 40 ms
    "vision_soft_tokens_per_image": 1 << 14,
    "audio_soft_tokens_per_image": 1 << 14,
    "mm_tokens_per_image": 1 << 14,
}


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object, lowest: int, most: int) -> TypeGuard[int]:
    """Whether a value is a whole number from `lowest` to `most`."""
    return isinstance(value, int) and is_number(value) and lowest <= value <= most


def check_numbers(config: Any) -> None:
    """Raise unless every field of a dataclass that is one value holds one that it may be."""
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if field.type == "int":
            check_whole(name, value, 0 if name in _MAY_BE_ZERO else 1, _MOST.get(name, LIMIT))
        if field.type == "float" or (field.type == "float | None" and value is not None):
            check_positive(name, value)
        if field.type == "bool" and not isinstance(value, bool):
            raise FileFormatError(f"config has {name} = {value!r:.60}; expected true or false")


def check_whole(name: str, value: Any, lowest: int = 1, most: int = LIMIT) -> None:
    """Raise unless value is a whole number from `lowest` to `most`."""
    if not is_whole(value, lowest, most):
        raise FileFormatError(f"config has {name} = {value!r:.60}; expected {lowest} to {most}")


def check_positive(name: str, value: Any) -> None:
    """Raise unless value is a number that is above 0 and still is in float32."""
    if not is_number(value) or not SMALLEST < value < LARGEST:
        raise FileFormatError(f"config has {name} = {value!r:.60}; expected a number above 0")
