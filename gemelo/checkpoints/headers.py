"""Headers of GGUF and safetensors files, read as far as it takes to say if a model runs.

`gemelo list` looks at every model of a machine, and a name may be resolved only to be refused. So
this reads what lies in front of the tensors with the standard library alone: the architecture, a
vocabulary, the tensors' names, types and places. Whether shapes fit one another is not asked:
`open_source` reads all of it when a model is loaded, and its word is final. What cannot be read is
no model; nothing is raised.

    runs(Path("gemma-3-1b-it-Q4_K_M.gguf")), runs(Path("gemma-3-1b-it"))
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemelo.checkpoints.gguf_names import parts_of
from gemelo.errors import GemeloError
from gemelo.text_files import read_object

_FAMILIES = {"gemma3", "gemma3n"}
_MODEL_TYPES = {"gemma3", "gemma3_text", "gemma3n", "gemma3n_text"}
_WRITERS = ("ForCausalLM", "ForConditionalGeneration")
_EMBEDDER = ("modules.json", "config_sentence_transformers.json")
_DTYPES = {"F32", "F16", "BF16"}
# Types of tensors that are read, by ggml's numbers: values in a block, bytes of a block.
BLOCKS = (
    {0: (1, 4), 1: (1, 2), 30: (1, 2)}
    | {2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 20: (32, 18)}
    | {10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210)}
)
_NUMBER_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES, _MOST_STRINGS, _MOST_BYTES = 1 << 14, 1 << 20, 32 << 20
_LAYER = re.compile(r"(?:blk|(?:.*\.)?layers)\.(\d+)\.")
# What a file that means something else leads to: numbers too large, values of other kinds.
_BROKEN: tuple[type[Exception], ...] = (OSError, ValueError, ArithmeticError, LookupError)
_BROKEN += (TypeError, AttributeError, RecursionError, struct.error, GemeloError)


def runs(path: Path) -> bool:
    """Whether a file or directory is, by its headers, a Gemma 3 or 3n with all it needs."""
    try:
        return _directory_runs(path) if path.is_dir() else _gguf_runs(path)
    except _BROKEN:
        return False


# ---- GGUF ----------------------------------------------------------------------------------------


def _gguf_runs(path: Path) -> bool:
    with _walk(path) as walk:
        facts, names = walk.facts, walk.tensors()
    for part in parts_of(path.name)[1:]:
        with _walk(path.with_name(part)) as walk:
            names |= walk.tensors()
    family = facts.get("general.architecture")
    if family not in _FAMILIES or facts.get("general.type", "model") != "model":
        return False
    whole = {"token_embd.weight", "output_norm.weight"} <= names
    return (
        whole
        and "tokenizer.ggml.tokens" in facts
        and _layers(names) == facts[f"{family}.block_count"]
    )


def _layers(names: set[str]) -> int:
    return len({match[1] for name in names if (match := _LAYER.match(name)) and _is_text(name)})


def _is_text(name: str) -> bool:
    return not re.search(r"vision|audio", name)


@contextmanager
def _walk(path: Path) -> Iterator[_Walk]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source:
        yield _Walk(source)


class _Walk:
    """A place in a GGUF header; `facts` are its numbers and texts, and the names of its arrays."""

    def __init__(self, source: mmap.mmap) -> None:
        self.source, self.position = source, 0
        if self.take("<4sI") not in ((b"GGUF", 2), (b"GGUF", 3)):
            raise ValueError("no GGUF that is read")
        self.count, entries = self.take("<QQ")
        if max(self.count, entries) > _MOST_ENTRIES:
            raise ValueError("too many entries")
        self.facts: dict[str, Any] = {}
        for _ in range(entries):
            key = self.text()
            self.facts[key] = self.value(*self.take("<I"))

    def take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self.source, self.position)
        self.skip(struct.calcsize(layout))
        return values

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > min(len(self.source), _MOST_BYTES):
            raise ValueError("past the end")

    def text(self) -> str:
        (length,) = self.take("<Q")
        start = self.position
        self.skip(length)
        return self.source[start : self.position].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self.array(*self.take("<IQ"))
        start, size = self.position, _NUMBER_BYTES[kind]
        self.skip(size)
        return int.from_bytes(self.source[start : self.position], "little")

    def array(self, kind: int, count: int) -> None:
        """Pass by an array; of nested ones nobody has use, and none of these families has them."""
        if kind != _STRING:
            return self.skip(_NUMBER_BYTES[kind] * count)
        if count > _MOST_STRINGS:
            raise ValueError("too many strings")
        position, length_of = self.position, struct.Struct("<Q").unpack_from
        for _ in range(count):
            position += 8 + length_of(self.source, position)[0]
        self.position = position
        return self.skip(0)

    def tensors(self) -> set[str]:
        """Names of the tensors. Raises ValueError for a type that is not read, or one cut off."""
        names, end = set(), 0
        for _ in range(self.count):
            name = self.text()
            (dimensions,) = self.take("<I")
            numbers = 1
            for size in self.take(f"<{min(dimensions, 8)}Q"):
                numbers *= size
            kind, start = self.take("<IQ")
            block, block_bytes = BLOCKS[kind]
            names.add(name)
            end = max(end, start + numbers // block * block_bytes)
        alignment = self.facts.get("general.alignment", 32) or 32
        if -(-self.position // alignment) * alignment + end > len(self.source):
            raise ValueError("cut off")
        return names


# ---- directories ---------------------------------------------------------------------------------


def _directory_runs(path: Path) -> bool:
    raw = read_object(path / "config.json")
    writes = any(str(name).endswith(_WRITERS) for name in raw.get("architectures") or ())
    if raw.get("model_type") not in _MODEL_TYPES or not writes and _is_embedder(path):
        return False
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return False
    names = {name for file in _safetensors(path) for name in _tensors(path / file)}
    layers = (raw.get("text_config") or raw).get("num_hidden_layers")
    whole = any(name.endswith("embed_tokens.weight") for name in names)
    decoder = {name for name in names if _is_text(name)}
    return whole and layers in (None, _layers(decoder))


def _is_embedder(path: Path) -> bool:
    return any((path / name).exists() for name in _EMBEDDER)


def _safetensors(path: Path) -> set[str]:
    if (path / "model.safetensors").exists():
        return {"model.safetensors"}
    index = read_object(path / "model.safetensors.index.json", _MOST_BYTES)
    return {str(file) for file in index["weight_map"].values()}


def _tensors(path: Path) -> list[str]:
    """Names of a safetensors file's tensors. Raises ValueError for a type that is not read, or
    where the file is cut off."""
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("no file")
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(size, _MOST_BYTES):
            raise ValueError("a header past the end")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for tensor in header.values():
        if tensor["dtype"] not in _DTYPES or 8 + length + tensor["data_offsets"][1] > size:
            raise ValueError("not read, or cut off")
    return list(header)
