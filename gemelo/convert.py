"""From a model to a file: GGUF or a Hugging Face directory, from either.

Tensors stream from the source's memory map to the target one at a time, so the largest tensor is
all the memory this takes. "native" is exact: what the file has is what is written, block formats
and all; only where the target cannot hold a block format (safetensors) do matrices become
float32. Norms change their convention (GGUF stores 1 + w) and nothing else does. A target is
written beside its name and renamed when it is whole.

    convert(Path("gemma-3-1b-it"), Path("gemma-3-1b-it-q8_0.gguf"), "q8_0")
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gemelo.checkpoint import Source, Weight, open_source, read_tokenizer
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.tokenizer import Tokenizer
from gemelo.kernels.formats import FORMATS, Format, Packed, unpack
from gemelo.weights import metadata, names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.safetensors import write_safetensors

TargetFormat = Literal["native", "bf16", "f16", "f32", "q8_0", "q4_0"]
Progress = Callable[[int, int], None]  # bytes written, bytes in all
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Converted:
    """What was written."""

    path: Path
    tensors: int
    size_bytes: int


@dataclass(frozen=True)
class Target:
    """One tensor to write: its canonical name, PyTorch shape, format, and how to get it."""

    name: str
    shape: tuple[int, ...]
    format: Format
    weight: Callable[[], Weight]

    @property
    def nbytes(self) -> int:
        *rows, columns = self.shape
        return torch.Size(rows).numel() * self.format.row_bytes(columns)


def convert(
    source: Path,
    target: Path,
    format: TargetFormat = "native",
    *,
    text_only: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write `source` as `target`: GGUF if it ends in .gguf, else a directory of safetensors.

    text_only leaves a vision tower out; without it a GGUF target refuses a model that has one.
    Raises `InputError` for a target that exists. `progress` gets bytes written and in all.
    """
    if format not in get_args(TargetFormat):
        raise InputError(f"format {format!r} is not one of {', '.join(get_args(TargetFormat))}")
    if target.exists():
        raise InputError(f"{target} exists; choose another name or remove it first")
    opened = open_source(source)
    to_gguf = target.suffix == ".gguf"
    if to_gguf and opened.config.is_multimodal and not text_only:
        raise UnsupportedError(
            f"{source} has a vision tower, which a text GGUF cannot hold; --text-only leaves it out"
        )
    kept = [name for name in opened.shapes if not text_only or name.startswith("language_model.")]
    targets = [_target(opened, name, format, to_gguf) for name in kept]
    target.parent.mkdir(parents=True, exist_ok=True)
    write = _write_gguf if to_gguf else _write_directory
    write(opened, target, targets, format, progress)
    return Converted(target, len(targets), sum(t.nbytes for t in targets))


def _target(source: Source, name: str, format: TargetFormat, to_gguf: bool) -> Target:
    """Norms are float32 in GGUF and as given elsewhere; matrices take the format asked for."""
    shape, shift = source.shapes[name], names.norm_shift(name, "gemma3")
    matrix = len(shape) == 2 and name.startswith("language_model.")
    if to_gguf and not matrix:
        return Target(name, shape, FORMATS["f32"], lambda: _float(source, name) + shift)
    chosen = _chosen(source, name, format, matrix, to_gguf)
    return Target(name, shape, chosen, lambda: _checked(source.tensor(name), chosen))


def _chosen(source: Source, name: str, format: TargetFormat, matrix: bool, to_gguf: bool) -> Format:
    held = source.tensor(name)
    own = held.format if isinstance(held, Packed) else FORMATS[_format_name(held.dtype)]
    if format == "native":
        return own if to_gguf or own.block == 1 else FORMATS["f32"]
    if format in ("q8_0", "q4_0"):
        if not to_gguf:
            raise InputError(f"safetensors cannot hold {format}; choose bf16, f16, f32 or native")
        embedding = name.endswith("embed_tokens.weight")
        return FORMATS["q8_0" if embedding else format] if matrix else own
    return FORMATS[format]


def _format_name(dtype: torch.dtype) -> str:
    for name, known in _DTYPES.items():
        if known == dtype:
            return name
    raise UnsupportedError(f"weights of type {dtype} cannot be converted")


def _float(source: Source, name: str) -> Tensor:
    weight = source.tensor(name)
    return unpack(weight) if isinstance(weight, Packed) else weight.float()


def _checked(weight: Weight, format: Format) -> Weight:
    """The weight, for a writer to encode as it goes; refused where float16 would overflow."""
    if format.name == "f16" and isinstance(weight, Tensor) and weight.dtype != torch.float16:
        largest = float(weight.abs().max())
        if not largest <= _HALF_MAX:
            raise InputError(f"a weight of {largest:g} passes f16's {_HALF_MAX:g}; choose bf16")
    return weight


# ---- GGUF ----------------------------------------------------------------------------------------


def _write_gguf(
    source: Source,
    path: Path,
    targets: list[Target],
    format: TargetFormat,
    progress: Progress | None,
) -> None:
    values = _gguf_values(source, format, targets)
    total = sum(target.nbytes for target in targets)
    tensors = ((names.to_gguf(t.name, "gemma3"), t.shape, t.format, t.weight) for t in targets)
    write_gguf(path, values, tensors, _bytes_done(progress, total))


def _gguf_values(source: Source, format: TargetFormat, targets: list[Target]) -> dict[str, Any]:
    """The source's own key-values where it is a GGUF; else written from config and tokenizer."""
    if source.path.is_file():
        values = dict(GGUFFile(source.path).metadata)
        values.pop("general.file_type", None)
    else:
        values = {
            "general.architecture": "gemma3",
            "general.type": "model",
            "general.name": source.path.resolve().name,
            "general.quantization_version": 2,
        }
        values |= metadata.config_to_gguf(_text_config(source))
        values |= read_tokenizer(source.path).to_gguf()
    kinds = [target.format.name for target in targets if len(target.shape) == 2]
    common = max(set(kinds), key=kinds.count)
    if common in _FILE_TYPES:
        values["general.file_type"] = _FILE_TYPES[common]
    return values


def _text_config(source: Source) -> dict[str, Any]:
    raw = source.config.to_hf()
    text: dict[str, Any] = raw.get("text_config", raw)
    return text


# ---- a Hugging Face directory --------------------------------------------------------------------


def _write_directory(
    source: Source,
    path: Path,
    targets: list[Target],
    format: TargetFormat,
    progress: Progress | None,
) -> None:
    layout: Literal["text", "multimodal"] = "multimodal" if source.config.is_multimodal else "text"
    total = sum(target.nbytes for target in targets)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        staging = Path(folder) / path.name
        staging.mkdir()

        def tensors() -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Callable[[], Tensor]]]:
            for target in targets:
                dtype = _DTYPES[target.format.name]
                yield names.to_hf(target.name, layout), target.shape, dtype, target.weight  # type: ignore[misc]

        write_safetensors(staging, tensors(), progress=_bytes_done(progress, total))
        config = source.config.to_hf() | {"torch_dtype": _main_dtype(targets)}
        _write_json(staging / "config.json", config)
        _write_tokenizer(source, staging)
        os.replace(staging, path)


def _main_dtype(targets: list[Target]) -> str:
    kinds = [target.format.name for target in targets if len(target.shape) == 2]
    common = max(set(kinds), key=kinds.count)
    return str(_DTYPES[common]).removeprefix("torch.")


def _write_tokenizer(source: Source, folder: Path) -> None:
    """The source's own files where it has them; else a tokenizer.model from the vocabulary."""
    if source.path.is_dir():
        for name in _TOKENIZER_FILES:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
        return
    tokenizer = read_tokenizer(source.path)
    (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    known = {
        f"{role}_token": tokenizer.pieces([token])[0]
        for role, token in tokens.items()
        if token is not None
    }
    template = {} if tokenizer.chat_template is None else {"chat_template": tokenizer.chat_template}
    return {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True} | known | template


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _bytes_done(progress: Progress | None, total: int) -> Callable[[int], None] | None:
    """The writers tell how much they have just written; people want to know how far it is."""
    if progress is None:
        return None
    written = 0

    def more(count: int) -> None:
        nonlocal written
        written += count
        progress(written, total)

    return more
