"""Safetensors checkpoints, whole or sharded: read as views of memory maps, written as streams.

The reader offers the same methods as `GGUFFile`, over every shard at once. It parses the header
itself, because the maps of the `safetensors` package reserve memory for the whole file and cannot
be opened on a machine with less RAM than a shard; its rules are the same: offsets cover the data
exactly, without gap or overlap. The writer asks for one tensor at a time, where the package's needs
all of them in memory.

    file = Safetensors("gemma-3-1b-it")                 # a directory, an index or a file
    file.shape("model.norm.weight"), file.tensor("model.norm.weight")
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from gemelo.errors import FileFormatError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Format, Packed
from gemelo.text_files import read_bytes
from gemelo.weights.files import byte_pieces, check_shape, replaced
from gemelo.weights.gguf_other_files import SEEN_BYTES, stranger
from gemelo.weights.mapped import Mapped, map_file, tensor_in

SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
# Far above any honest model's (a header of 2,000 tensors has 300 KB), and soon read.
MAX_HEADER_BYTES = 8 << 20
MAX_INDEX_BYTES = 8 << 20
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 255  # of a file, as file systems have it
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48  # with sizes of zero left out: of no elements there may be any number
MAX_SHARD_BYTES = 5_000_000_000
_GGUF = "a GGUF; give it by itself, under a name that ends in .gguf"
# Bytes of an element; of these types only what has a format is read as weights, and written.
ITEM_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1},
}
READ = {"F32": FORMATS["f32"], "F16": FORMATS["f16"], "BF16": FORMATS["bf16"]}
DTYPES = {format: dtype for dtype, format in READ.items()}

TensorToWrite = tuple[str, tuple[int, ...], Format, Callable[[], Packed]]


@dataclass(frozen=True)
class _TensorInfo:
    """Where a tensor lies: its shard, first byte in it, and how the file calls its type."""

    source: Mapped
    start: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]


class Safetensors:
    """One checkpoint. Raises FileFormatError where a file is broken, naming what and where.

    `files` are the shards; `metadata` is the header's string-to-string map (of all shards together,
    the first one's word counting).
    """

    path: Path
    files: tuple[Path, ...]
    metadata: Mapping[str, str]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        shards, promised = _shards(self.path)
        self.files = tuple(shards)
        self._tensors: dict[str, _TensorInfo] = {}
        metadata: dict[str, str] = {}
        for shard in shards:
            infos, facts = _read_shard(shard)
            if len(infos) + len(self._tensors) > MAX_TENSORS:
                raise FileFormatError(f"{self.path} holds more than {MAX_TENSORS:,} tensors")
            metadata = {**facts, **metadata}
            for name in promised.get(shard.name, ()):
                if name not in infos:
                    raise FileFormatError(
                        f"{self.path}: the index puts {name!r} in {shard.name}, which lacks it"
                    )
            repeated = infos.keys() & self._tensors.keys()
            if repeated:
                raise FileFormatError(f"{shard}: tensor {min(repeated)!r} is in another shard too")
            self._tensors |= infos
        self.metadata = metadata

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> list[str]:
        """Tensor names, shard by shard."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._tensor_info(name).shape

    def format(self, name: str) -> Format:
        """How the elements are stored; UnsupportedError for what is not f32, f16 or bf16."""
        info = self._tensor_info(name)
        format = READ.get(info.dtype)
        if format is None:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} is {info.dtype}; weights are read as "
                f"{', '.join(READ)}"
            )
        return format

    def dtype(self, name: str) -> str:
        """How the format calls the type of the tensor's elements."""
        return self._tensor_info(name).dtype

    def nbytes(self, name: str) -> int:
        """Bytes that the tensor takes in the file."""
        return self._tensor_info(name).nbytes

    def tensor(self, name: str) -> Packed:
        """The tensor as a view of the map, at any byte: a header may have an odd length.

        Raises UnsupportedError for what is not f32, f16 or bf16.
        """
        info, format = self._tensor_info(name), self.format(name)
        return tensor_in(info.source, info.start, info.nbytes, format, info.shape)

    def _tensor_info(self, name: str) -> _TensorInfo:
        info = self._tensors.get(name)
        if info is None:
            raise FileFormatError(
                f"{self.path} has no tensor {name!r} (it holds {len(self._tensors)})"
            )
        return info


def write_safetensors(
    directory: str | Path,
    tensors: Iterable[TensorToWrite],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write `model.safetensors`, or shards and their index when it would pass `max_shard_bytes`.

    tensors: (name, shape, format, maker), the format one of f32, f16 and bf16; a maker gives the
    tensor when its turn comes, and what is in another format is encoded on the way. metadata:
    {"format": "pt"} unless given, as transformers wants it. progress: called with the bytes just
    written. Files appear under their names only when all are complete. Raises InputError for a bad
    request, among them a directory that holds a checkpoint in the other layout (both side by side
    would be ambiguous).
    """
    directory = Path(directory)
    facts = {"format": "pt"} if metadata is None else dict(metadata)
    shards = _grouped(tensors, max_shard_bytes)
    names = [SINGLE_NAME]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    other = directory / (INDEX_NAME if len(shards) == 1 else SINGLE_NAME)
    if other.exists():
        raise InputError(
            f"{directory} already holds {other.name}; remove it or choose another directory"
        )
    with ExitStack() as stack:  # files are renamed at its end, when all are complete
        if len(shards) > 1:  # entered first, so renamed last
            index = stack.enter_context(replaced(directory / INDEX_NAME))
            index.write(_index(shards, names))
        for shard, name in zip(shards, names, strict=True):
            _write_shard(stack.enter_context(replaced(directory / name)), shard, facts, progress)


def _grouped(tensors: Iterable[TensorToWrite], max_shard_bytes: int) -> list[list[TensorToWrite]]:
    """Tensors in shards of at most `max_shard_bytes` (a larger tensor has one to itself)."""
    shards: list[list[TensorToWrite]] = [[]]
    seen, room = set[str](), max_shard_bytes
    for entry in tensors:
        name, shape, format, _ = entry
        if name in seen or name == "__metadata__":
            raise InputError(f"tensor {name!r} is given twice, or its name is reserved")
        if format not in DTYPES:
            raise InputError(
                f"safetensors cannot hold {name!r} as {format.name}; choose bf16, f16 or f32"
            )
        seen.add(name)
        size = math.prod(shape) * format.block_bytes
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(entry)
        room -= size
    return shards


def _index(shards: list[list[TensorToWrite]], names: list[str]) -> bytes:
    total = sum(
        math.prod(shape) * format.block_bytes for shard in shards for _, shape, format, _ in shard
    )
    weight_map = {
        entry[0]: name for shard, name in zip(shards, names, strict=True) for entry in shard
    }
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2).encode()


def _write_shard(
    target: BinaryIO,
    shard: list[TensorToWrite],
    metadata: Mapping[str, str],
    progress: Callable[[int], None] | None,
) -> None:
    shard = sorted(shard, key=lambda entry: -entry[2].block_bytes)  # keeps every tensor aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape, format, _ in shard:
        start, end = end, end + math.prod(shape) * format.block_bytes
        dtype = DTYPES[format]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    target.write(struct.pack("<Q", len(raw)) + raw)
    for name, shape, format, make in shard:
        weight = make()
        check_shape(name, weight, shape)
        for piece in byte_pieces(weight, format):
            target.write(piece)
            if progress is not None:
                progress(len(piece))


def _shards(path: Path) -> tuple[list[Path], dict[str, list[str]]]:
    """The files of a checkpoint, and the tensors that an index promises in each."""
    if path.is_dir():
        if (path / SINGLE_NAME).exists():
            return [path / SINGLE_NAME], {}
        if not (path / INDEX_NAME).exists():
            raise InputError(f"{path} holds neither {SINGLE_NAME} nor {INDEX_NAME}")
        path = path / INDEX_NAME
    if path.suffix != ".json":
        return [path], {}
    promised: dict[str, list[str]] = {}
    for name, shard in _weight_map(path).items():
        if not isinstance(shard, str):
            raise FileFormatError(f"{path}: the shard of {name[:80]!r} is not a string")
        if not _is_file_name(shard):
            raise FileFormatError(
                f"{path}: {shard[:80]!r} is not the name of a file beside the index"
            )
        promised.setdefault(shard, []).append(name)
    shards = [path.parent / shard for shard in sorted(promised)]
    for shard in shards:
        if not shard.is_file():
            raise FileFormatError(f"{path} names {shard.name!r}, which is missing")
    return shards, promised


def _is_file_name(text: str) -> bool:
    """Whether a text is the name of a file, and neither a way to one nor what no file is called."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    is_way = text != Path(text).name or text == ".." or "\0" in text or "\\" in text
    return not is_way and 0 < size <= MAX_NAME_BYTES


def _weight_map(path: Path) -> dict[str, Any]:
    index = _parsed(read_bytes(path, MAX_INDEX_BYTES), path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(f"{path} has no weight_map")
    return weight_map


def _parsed(raw: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without repeated keys."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            raise ValueError("a key appears twice")
        return entries

    try:
        value = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: the header or index is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: the header or index is not a JSON object")
    return value


def _read_shard(path: Path) -> tuple[dict[str, _TensorInfo], dict[str, str]]:
    """The tensors of one file, and its metadata."""
    source = map_file(path)
    length = int.from_bytes(source[:8], "little")
    if MAX_HEADER_BYTES < length <= len(source) - 8:
        raise FileFormatError(
            f"{path} has a header of {length:,} bytes; {MAX_HEADER_BYTES:,} are read"
        )
    if len(source) < 8 or length > len(source) - 8:
        beginning = source[:SEEN_BYTES]
        what = _GGUF if beginning.startswith(b"GGUF") else stranger(beginning)
        if what and beginning[8:9] != b"{":  # where a header would begin
            raise FileFormatError(f"{path} is not a safetensors file, but {what}")
        raise FileFormatError(
            f"{path} is truncated or not a safetensors file: it has {len(source)} bytes and claims "
            f"a header of {length}"
        )
    header = _parsed(source[8 : 8 + length], path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(f"{path}: __metadata__ is not a map of strings")
    if len(header) > MAX_TENSORS:
        raise FileFormatError(
            f"{path} holds {len(header):,} tensors; {MAX_TENSORS:,} are read at most"
        )
    infos = {
        name: _tensor_info(path, name, entry, source, 8 + length) for name, entry in header.items()
    }
    _check_coverage(path, infos, 8 + length, len(source))
    return infos, metadata


def _tensor_info(path: Path, name: str, entry: Any, source: Mapped, base: int) -> _TensorInfo:
    def fail(problem: str) -> NoReturn:
        raise FileFormatError(f"{path}: tensor {name[:80]!r} {problem}")

    if not isinstance(entry, dict):
        fail("is not described by an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        unknown = f"has the unknown dtype {dtype!r:.40}; weights are read as {', '.join(READ)}"
        fail(unknown if isinstance(dtype, str) else "has no dtype")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        fail(f"needs a shape (up to {MAX_DIMENSIONS} sizes) and two data_offsets, whole numbers")
    start, end = offsets
    uncounted = math.prod(size or 1 for size in shape) > MAX_ELEMENTS
    nbytes = math.prod(shape) * ITEM_BYTES[dtype]
    if uncounted or end - start != nbytes or base + end > len(source):
        fail(f"of shape {shape} and dtype {dtype} cannot lie in bytes {start} to {end} of the data")
    return _TensorInfo(source, base + start, end - start, dtype, tuple(shape))


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    if not isinstance(value, list) or len(value) > MAX_DIMENSIONS:
        return False
    return all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_coverage(path: Path, infos: Mapping[str, _TensorInfo], base: int, size: int) -> None:
    """Tensors must fill the data exactly, one behind the other."""
    end = base
    for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != end:
            problem = "overlaps another one" if info.start < end else "leaves a gap before it"
            raise FileFormatError(
                f"{path}: tensor {name[:80]!r} {problem} (byte {info.start}, not {end})"
            )
        end += info.nbytes
    if end != size:
        raise FileFormatError(
            f"{path} should have {end} bytes but has {size}: truncated or padded, fetch it again"
        )
