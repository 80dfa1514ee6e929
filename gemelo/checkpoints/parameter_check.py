"""The check of a model's tensors: whether their names and shapes are those that its config means.

Loading and converting both begin with it, so that what cannot run is refused before anything is
made of it. What is missing, unknown or of another shape is one error that lists it. The config is
a file's word and may be broken; its numbers are only multiplied here, and nothing is allocated by
them beyond the names themselves, of which `config.checks` bounds the number.

    check_parameters(source)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gemelo.checkpoints.source import DECODER, Source, listing
from gemelo.config.parameters import parameter_shapes
from gemelo.errors import FileFormatError

_MOST_NUMBERS = (1 << 61) - 1  # of one weight: in float32, as many bytes as are counted in 63 bits


def check_parameters(source: Source) -> None:
    """Raise `FileFormatError` unless a source has every parameter that its config means, by name
    and shape, and no other."""
    expected, shapes = parameter_shapes(source.config), source.shapes
    _check_countable(source, expected)
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "of the wrong shape": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    wrong = [name for names in problems.values() for name in names]
    if wrong:
        of_towers = not any(name.startswith(DECODER) for name in wrong)
        file = source.mmproj if source.mmproj and of_towers else source.path
        lists = (listing(what, names) for what, names in problems.items())
        raise FileFormatError(f"{file}: " + "; ".join(filter(None, lists)))


def _check_countable(source: Source, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise for a weight of so many numbers that no machine counts its bytes."""
    if any(math.prod(shape) > _MOST_NUMBERS for shape in expected.values()):
        raise FileFormatError(
            f"{source.path}: its config describes weights of more numbers than can be counted; its "
            "sizes are broken"
        )
