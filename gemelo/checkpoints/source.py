"""A model's tensors under one set of names: the config, shapes, and a way to each tensor.

A `Source` is a value: opening a file makes one (`open`), leaving out and cutting make a smaller
one of it (`subset`), and loading and converting both begin with one. Names of every layout of
every format are made canonical here; a name that nobody knows is an error.

    shapes, tensor = canonical(GGUFFile(path));  tensor("language_model.norm.weight")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.checkpoints.lm_head import EMBEDDING as EMBEDDING
from gemelo.config import ModelConfig
from gemelo.errors import FileFormatError, UnsupportedError, listed
from gemelo.kernels.quants import Packed, unpack
from gemelo.weights import names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.safetensors import Safetensors

DECODER = "language_model."
PER_LAYER_EMBEDDING = "language_model.embed_tokens_per_layer.weight"
_MOST_IN_A_STACK = 15
_ROPE_HINT = "; factors of the rotary embedding are of models that gemelo does not run"


@dataclass(frozen=True)
class Source:
    """An open file, its names made canonical: what to build, and a way to each tensor.

    gguf_metadata are a GGUF file's key-values, which its tokenizer is among; tower_file what it
    holds besides the decoder; mmproj the file that its towers are from if that is another; files
    all that it is made of. is_whole is False once a part was cut out: the file's own key-values
    about the model no longer hold. notices are sentences on what a person can act on, details on
    what is usual in such files and changes nothing.
    """

    path: Path
    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Packed]
    notices: tuple[str, ...] = ()
    gguf_metadata: Mapping[str, Any] | None = None
    is_whole: bool = True
    tower_file: GGUFFile | None = None
    mmproj: Path | None = None
    files: tuple[Path, ...] = ()
    details: tuple[str, ...] = ()


def architecture(config: ModelConfig) -> str:
    """What GGUF files call a model of this family."""
    return config.model_type.removesuffix("_text")


def listing(what: str, found: Sequence[str]) -> str:
    """Names for an error message, the first few of them; "" if there are none."""
    return f"{len(found)} weights {what}: {listed(found)}" if found else ""


Named = tuple[dict[str, tuple[int, ...]], Callable[[str], Packed]]


def canonical(file: GGUFFile | Safetensors, kind: str | None = None) -> Named:
    """Shapes by canonical name, and the way to each tensor. Names nobody knows are one error.

    kind is what a GGUF file's names are of, where its own `general.architecture` does not tell.
    """
    origins: dict[str, tuple[str, int | None]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    unknown: list[str] = []
    for name in file.names():
        try:
            canonical = _rename(file, name, kind)
        except UnsupportedError:
            unknown.append(name)
            continue
        for part, index, shape in _parts(file, name, canonical):
            if part in origins:
                raise FileFormatError(
                    f"{file.path}: {name} and {origins[part][0]} are the same weight"
                )
            origins[part], shapes[part] = (name, index), shape
    if unknown:
        hint = _ROPE_HINT if any(name.startswith("rope_") for name in unknown) else ""
        raise FileFormatError(f"{file.path}: {listing('unknown', unknown)}{hint}")

    def tensor(canonical: str) -> Packed:
        name, index = origins[canonical]
        weight = file.tensor(name)
        return weight if index is None else layer_of(weight, index, shapes[canonical][0])

    return shapes, tensor


def _rename(file: GGUFFile | Safetensors, name: str, kind: str | None) -> str:
    if isinstance(file, GGUFFile):
        return names.from_gguf(name, kind or str(file.metadata["general.architecture"]))
    return names.from_hf(name)


def _parts(
    file: GGUFFile | Safetensors, name: str, canonical: str
) -> list[tuple[str, int | None, tuple[int, ...]]]:
    """(canonical name, index in the tensor, shape): the tensor itself, or the layers of a stack."""
    shape = file.shape(name)
    if canonical not in names.STACKS:
        return [(canonical, None, shape)]
    if len(shape) != 3 or not 1 <= shape[0] <= _MOST_IN_A_STACK:
        raise FileFormatError(
            f"{file.path}: {name} has shape {shape}; expected 1 to {_MOST_IN_A_STACK} matrices"
        )
    parts = names.parts_of(canonical, shape[0])
    return [(part, index, shape[1:]) for index, part in enumerate(parts)]


def shifted(weight: Packed, shift: float) -> Packed:
    """A norm's weight by another convention, in float32; itself where nothing is to be added, or
    where it is no norm's, which are never in blocks."""
    if not shift or weight.format.block > 1:
        return weight
    return Packed.of(unpack(weight) + np.float32(shift))


def layer_of(stack: Packed, index: int, rows: int) -> Packed:
    """One matrix of a stack (n, rows, columns), which lie one under the other, as a view."""
    return Packed(stack.blocks[index * rows : (index + 1) * rows], stack.format)
