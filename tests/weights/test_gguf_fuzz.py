"""Broken GGUF files: each is refused in one line, or read without leaving the file."""

import itertools
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Packed
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.mapped import behind

EXTREMES_32 = (0, 1, 5, 8, 9, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
EXTREMES_64 = (*EXTREMES_32, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Every metadata type and several tensors, in a small file."""
    path = tmp_path_factory.mktemp("seed") / "seed.gguf"
    metadata = {
        "general.architecture": "gemma3",
        "general.alignment": 32,
        "i": -1,
        "f": 0.5,
        "b": True,
        "d": np.float64(1),
        "q": np.uint64(7),
        "words": ["a", "", "zwölf"],
        "numbers": np.arange(5, dtype=np.int16),
        "bits": np.array([True, False]),
    }
    x = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    tensors = [
        (name, shape, FORMATS[name], lambda s=shape: Packed.of(x[: np.prod(s)].reshape(s)))
        for name, shape in (("f32", (3,)), ("bf16", (2, 3)), ("q8_0", (2, 64)), ("q4_0", (1, 32)))
    ]
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


def read_all(content: bytes, path: Path) -> bool:
    """Whether the file loads; every byte of every tensor is then read, and lies inside."""
    path.write_bytes(content)
    try:
        file = GGUFFile(path)
    except GemeloError as error:
        assert str(path) in str(error) and len(str(error)) < 1000 and "\n" not in str(error)
        return False
    finally:
        path.unlink()  # the map keeps its content
    for name in file:
        try:
            value = file.tensor(name)
        except UnsupportedError:
            continue
        (mapped,) = behind([value])
        start = value.address - mapped.address
        assert value.shape == file.shape(name) and len(mapped) == len(content)
        assert 0 <= start and start + value.nbytes == start + file.nbytes(name) <= len(content)
        assert value.blocks.sum() >= 0
    return True


def header_size(content: bytes) -> int:
    return content.index(b"q4_0") + 60


def mutants(content: bytes) -> Iterator[bytes]:
    size = header_size(content)
    for end in (*range(size), *range(size, len(content), 7)):
        yield content[:end]
    for offset, value in itertools.product(range(4, size), (0, 1, 0x7F, 0x80, 0xFF)):
        yield content[:offset] + bytes([value]) + content[offset + 1 :]
    for layout, extremes in (("<I", EXTREMES_32), ("<Q", EXTREMES_64)):
        width = struct.calcsize(layout)
        for offset, value in itertools.product(range(4, size - width, 2), extremes):
            yield content[:offset] + struct.pack(layout, value) + content[offset + width :]
    rng = random.Random(0)
    for _ in range(500):
        start, stop = sorted(rng.sample(range(4, size), 2))
        yield content[:start] + content[stop:]  # a piece lost
        yield content[:stop] + content[start:]  # a piece twice


def test_every_mutant_loads_or_is_refused(seed_file: bytes, tmp_path: Path) -> None:
    assert read_all(seed_file, tmp_path / "whole.gguf")
    loaded = [read_all(mutant, tmp_path / "m.gguf") for mutant in mutants(seed_file)]
    assert len(loaded) > 5000
    assert 0.02 < sum(loaded) / len(loaded) < 0.7  # the mutants are neither all dead nor all alive


@settings(max_examples=200, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(4, 10_000), st.binary(min_size=1, max_size=9)), max_size=4)
)
def test_any_edits(
    seed_file: bytes, tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]]
) -> None:
    content = bytearray(seed_file)
    for offset, new in edits:
        offset %= len(content)
        content[offset : offset + len(new)] = new
    read_all(bytes(content), tmp_path_factory.getbasetemp() / "edited.gguf")


@settings(max_examples=200, deadline=None)
@given(tail=st.binary(max_size=300), tensors=st.integers(0, 3), entries=st.integers(0, 3))
def test_any_bytes_behind_a_valid_start(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, tensors: int, entries: int
) -> None:
    content = start(tensors, entries) + tail
    read_all(content, tmp_path_factory.getbasetemp() / "bytes.gguf")


# ---- each refusal by its words -------------------------------------------------------------------


def start(tensors: int, entries: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


def text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def info(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def with_tensors(*infos: bytes) -> bytes:
    content = start(len(infos), 0) + b"".join(infos)
    return content + bytes(-len(content) % 32) + bytes(256)


def with_entry(key: bytes, kind: int, value: bytes) -> bytes:
    return start(0, 1) + text(key) + struct.pack("<I", kind) + value + bytes(64)


HUGE = (1 << 64) - 1
REFUSED = {
    "tensor count": (start(HUGE, 0) + bytes(99), "claims 18446744073709551615 tensors"),
    "entry count": (start(0, 1 << 40) + bytes(99), "claims 1099511627776 metadata entries"),
    "key length": (start(0, 1) + struct.pack("<Q", HUGE) + bytes(99), "metadata key of 1844"),
    "key past the end": (start(0, 1) + struct.pack("<Q", 999) + bytes(99), "needs 999 bytes"),
    "key twice": (start(0, 2) + 2 * (text(b"k") + struct.pack("<IB", 0, 1)), "'k' appears twice"),
    "key not UTF-8": (with_entry(b"\xff\xfe", 0, b"\1"), "not UTF-8"),
    "value type": (with_entry(b"k", 13, bytes(8)), "'k' has the unknown type 13"),
    "string length": (with_entry(b"k", 8, struct.pack("<Q", 1 << 62)), "'k' needs 46116860"),
    "string not UTF-8": (with_entry(b"k", 8, text(b"\xc3")), "'k' is not UTF-8"),
    "array length": (with_entry(b"k", 9, struct.pack("<IQ", 6, 1 << 62)), "'k' needs 18446744"),
    "strings count": (with_entry(b"k", 9, struct.pack("<IQ", 8, HUGE)), "at most 1048576"),
    "array of arrays": (with_entry(b"k", 9, struct.pack("<IQ", 9, HUGE)), "at most 4096"),
    "array type": (with_entry(b"k", 9, struct.pack("<IQ", 99, 1)), "unknown type 99"),
    "alignment zero": (with_entry(b"general.alignment", 4, bytes(4)), "power of two"),
    "alignment 33": (with_entry(b"general.alignment", 4, b"!\0\0\0"), "power of two"),
    "alignment 4": (with_entry(b"general.alignment", 4, b"\4\0\0\0"), "power of two"),
    "alignment is text": (with_entry(b"general.alignment", 8, text(b"32")), "power of two"),
    "dimensions": (with_tensors(info(b"a", (1,) * 5, 0, 0)), "5 dimensions"),
    "dimension count": (
        start(1, 0) + text(b"a") + struct.pack("<I", 1 << 31) + bytes(64),
        "2147483648 dimensions",
    ),
    "zero size": (with_tensors(info(b"a", (0,), 0, 0)), "impossible shape"),
    "overflowing size": (with_tensors(info(b"a", (1 << 32,) * 2, 0, 0)), "impossible shape"),
    "wrapping size": (with_tensors(info(b"a", (1 << 63, 2), 0, 0)), "impossible shape"),
    "tensor type": (with_tensors(info(b"a", (4,), 77, 0)), "unknown type 77"),
    "unread type": (with_tensors(info(b"a", (256,), 23, 0)), "iq4_xs: get .*; gemelo reads f32"),
    "part of a block": (with_tensors(info(b"a", (33,), 8, 0)), "whole blocks of 32"),
    "unaligned": (with_tensors(info(b"a", (4,), 0, 4)), "not a multiple of 32"),
    "outside": (with_tensors(info(b"a", (4,), 0, 1 << 40)), "truncated"),
    "offset wraps": (with_tensors(info(b"a", (4,), 0, HUGE - 31)), "truncated"),
    "too long": (with_tensors(info(b"a", (65,), 0, 0)), "truncated"),
    "overlap": (with_tensors(info(b"a", (9,), 0, 0), info(b"b", (4,), 0, 32)), "'b' overlaps 'a'"),
    "same place": (with_tensors(info(b"a", (4,), 0, 0), info(b"b", (4,), 0, 0)), "overlaps"),
    "tensor twice": (with_tensors(*[info(b"a", (4,), 0, 32 * i) for i in (0, 1)]), "twice"),
    "name not UTF-8": (with_tensors(info(b"\xff", (4,), 0, 0)), "tensor name is not UTF-8"),
}


@pytest.mark.parametrize("content, words", REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_a_reason_and_without_allocating(
    content: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises((FileFormatError, UnsupportedError), match=words) as caught:
            GGUFFile(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
