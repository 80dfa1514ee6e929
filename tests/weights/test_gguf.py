"""GGUF read and written: against the format's own package, and file to file."""

import filecmp
import os
import struct
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gemelo.errors import FileFormatError, InputError, UnavailableError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Format, Packed, pack, unpack
from gemelo.string_table import Strings
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import TensorToWrite, write_gguf
from gemelo.weights.mapped import behind
from tests.tensors import held, packed

METADATA: dict[str, Any] = {
    "general.architecture": "gemma3",
    "general.name": "zwölf – 日本",
    "gemma3.block_count": 7,
    "gemma3.offset": -3,
    "gemma3.parameters": 1 << 40,
    "gemma3.eps": 0.5,
    "gemma3.flag": True,
    "gemma3.byte": np.uint8(200),
    "gemma3.precise": np.float64(0.1),
    "gemma3.pattern": np.array([True, False, True]),
    "gemma3.scores": np.array([0.5, -1.5], dtype=np.float32),
    "gemma3.wide": np.array([1 << 40], dtype=np.int64),
    "gemma3.types": [1, -2, 3],
    "tokenizer.ggml.tokens": ["<pad>", "▁the", "", "🦙"],
    "general.tags": [b"raw", b"\xff\x00"],
}


def entry(name: str, value: Tensor | Packed, format: Format | None = None) -> TensorToWrite:
    weight = value if isinstance(value, Packed) else packed(value)
    return name, weight.shape, format or weight.format, lambda: weight


def every_format() -> Iterator[tuple[str, Packed]]:
    generator = torch.Generator().manual_seed(0)
    yield "norm.f32", packed(torch.randn(7, generator=generator))
    yield "cube.f16", packed(torch.randn(2, 3, 5, generator=generator).half())
    yield "patch.bf16", packed(torch.randn(2, 3, 4, 5, generator=generator).bfloat16())
    for format in FORMATS.values():
        if format.block > 1:
            shape = (5, 2 * format.block_bytes)
            raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            yield f"matrix.{format.name}", Packed(raw.numpy(), format)
    raw = torch.randint(0, 256, (6, 68), dtype=torch.uint8, generator=generator)
    yield "stack.q8_0", Packed(raw.numpy(), FORMATS["q8_0"], (2, 3, 64))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "every.gguf"
    write_gguf(path, METADATA, [entry(*item) for item in every_format()])
    return path


def plain(value: Any) -> Any:
    if isinstance(value, Strings):
        return list(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


# ---- round trips ---------------------------------------------------------------------------------


def test_read_gives_what_was_written(written: Path) -> None:
    file = GGUFFile(written)
    assert file.names() == list(file) == [name for name, _ in every_format()]
    for name, value in every_format():
        got = file.tensor(name)
        assert name in file
        assert got.shape == file.shape(name) == value.shape
        assert file.nbytes(name) == value.nbytes == got.nbytes
        assert np.array_equal(got.blocks, value.blocks)
        assert got.format == file.format(name) == value.format


def test_metadata_comes_back(written: Path) -> None:
    got = GGUFFile(written).metadata
    assert list(got) == list(METADATA)
    for key, value in METADATA.items():
        want = plain(value)
        if key == "tokenizer.ggml.tokens":
            want = [piece.encode() for piece in want]
        assert plain(got[key]) == want, key
    assert got["gemma3.pattern"].dtype == np.bool_
    assert got["gemma3.types"].dtype == np.int32


PIECE = b"\xe2\x96\x81the"
ARRAYS = {
    "short": [b"%d" % number for number in range(100_000)],  # more than are looked at together
    "one": [b"x"],
    "none": [],
    "longest short ones": [b"x" * 255] * 3000,
    "a long one": [PIECE] * 50_000 + [b"x" * 256] + [PIECE] * 9,
    "long first": [b"x" * 70_000, PIECE],
    "an empty one": [PIECE] * 50_000 + [b""] + [PIECE],
    "empty ones": [b""] * 1000,
    "zeros": [b"\0", b"a\0b", b"\0\0\0", b"a\0", PIECE],
    "what looks like a length": [b"\5" + bytes(7) + b"ab", PIECE, bytes(7), bytes(8), PIECE] * 2000,
}


@pytest.mark.parametrize("strings", ARRAYS.values(), ids=ARRAYS.keys())
def test_arrays_of_strings_are_what_was_written(strings: list[bytes], tmp_path: Path) -> None:
    path, key, value = tmp_path / "strings.gguf", b"k", b"".join(map(counted, strings))
    entry = counted(key) + struct.pack("<IIQ", 9, 8, len(strings)) + value
    after = counted(b"after") + struct.pack("<II", 4, 7)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + entry + after)
    file = GGUFFile(path)
    assert list(file.metadata["k"]) == strings
    assert file.metadata["after"] == 7


def counted(string: bytes) -> bytes:
    return struct.pack("<Q", len(string)) + string


@given(strings=st.lists(st.binary(max_size=9) | st.sampled_from([bytes(7), PIECE]), max_size=30))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_array_of_strings_is_what_was_written(strings: list[bytes], tmp_path: Path) -> None:
    test_arrays_of_strings_are_what_was_written(strings, tmp_path)


def test_strings_full_of_lengths_take_no_longer(tmp_path: Path) -> None:
    """What stops the quick way stops it once, not once a string."""
    started = time.perf_counter()
    test_arrays_of_strings_are_what_was_written([b"a" + bytes(7)] * 100_000, tmp_path)
    assert time.perf_counter() - started < 5


def test_the_gguf_package_reads_what_was_written(written: Path) -> None:
    reader = gguf.GGUFReader(written)
    types = {key: [t.name for t in field.types] for key, field in reader.fields.items()}
    assert types["gemma3.block_count"] == ["UINT32"]
    assert types["gemma3.offset"] == ["INT32"]
    assert types["gemma3.parameters"] == ["UINT64"]
    assert types["gemma3.eps"] == ["FLOAT32"]
    assert types["gemma3.precise"] == ["FLOAT64"]
    assert types["gemma3.byte"] == ["UINT8"]
    assert types["gemma3.flag"] == ["BOOL"]
    assert types["gemma3.types"] == ["ARRAY", "INT32"]
    assert types["gemma3.scores"] == ["ARRAY", "FLOAT32"]
    assert types["tokenizer.ggml.tokens"] == ["ARRAY", "STRING"]
    for key in ("general.name", "gemma3.precise", "gemma3.types", "gemma3.pattern"):
        assert reader.get_field(key).contents() == plain(METADATA[key])
    values = dict(every_format())
    assert [tensor.name for tensor in reader.tensors] == list(values)
    for tensor in reader.tensors:
        assert tuple(reversed(tensor.shape.tolist())) == tuple(values[tensor.name].shape)
        raw = np.array(tensor.data).reshape(-1).view(np.uint8)
        assert np.array_equal(raw, values[tensor.name].blocks.reshape(-1))


def test_reads_what_the_gguf_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_custom_alignment(64)
    writer.add_array("tokens", ["a", "bc"])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_uint64("big", 1 << 50)
    matrix = np.random.default_rng(0).standard_normal((6, 64), dtype=np.float32)
    blocks = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("a", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("b", matrix[:3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(path)
    assert file.alignment == 64
    assert list(file.metadata["tokens"]) == [b"a", b"bc"]
    assert file.metadata["big"] == 1 << 50
    assert np.array_equal(file.tensor("a").blocks, blocks)
    assert np.array_equal(file.tensor("b").blocks, matrix[:3].view(np.uint8))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_the_writer_encodes_on_the_way(name: str, tmp_path: Path) -> None:
    format = FORMATS[name]
    matrix, stack = torch.randn(33, 64).bfloat16(), torch.randn(3, 5, 32)
    blocks = pack(torch.randn(9, 64).numpy(), FORMATS["q8_0"])
    path = tmp_path / "encoded.gguf"
    tensors = [entry("a", matrix, format), entry("s", stack, format), entry("b", blocks, format)]
    write_gguf(path, {}, [*tensors, entry("c", blocks.prefix(3, 32))])
    file = GGUFFile(path)
    for key, value in (
        ("a", matrix.float()),
        ("s", stack),
        ("b", torch.from_numpy(unpack(blocks))),
    ):
        got = file.tensor(key)
        assert got.shape == tuple(value.shape) and got.format == format
        if format.block > 1:
            assert np.array_equal(got.blocks, pack(value.numpy(), format).blocks)
        else:
            assert torch.equal(held(got), value.to(held(got).dtype))
    assert np.array_equal(file.tensor("c").blocks, blocks.prefix(3, 32).blocks)


def test_writing_streams_and_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemelo.weights.files.PIECE_BYTES", 1000)
    alive: list[str] = []
    done: list[int] = []

    def make(name: str) -> Callable[[], Packed]:
        def maker() -> Packed:
            assert sum(done) == 4096 * len(alive), "asked for before its turn"
            alive.append(name)
            return packed(torch.full((32, 32), float(len(alive))))

        return maker

    tensors: list[TensorToWrite] = [(n, (32, 32), FORMATS["f32"], make(n)) for n in "abc"]
    write_gguf(tmp_path / "s.gguf", {}, iter(tensors), progress=done.append)
    assert sum(done) == 3 * 4096
    assert max(done) <= 1000
    got = GGUFFile(tmp_path / "s.gguf")
    assert [float(held(got.tensor(n))[31, 31]) for n in got] == [1, 2, 3]


def test_scalar_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    write_gguf(path, {}, [])
    assert GGUFFile(path).names() == []
    write_gguf(path, {"empty": np.zeros(0, np.float32)}, [entry("s", torch.tensor(3.5))])
    file = GGUFFile(path)
    assert file.shape("s") == ()
    assert torch.equal(held(file.tensor("s")), torch.tensor(3.5))
    assert file.metadata["empty"].shape == (0,)


# ---- the map -------------------------------------------------------------------------------------


def test_tensors_are_views_of_one_private_map(written: Path) -> None:
    before = written.read_bytes()
    file = GGUFFile(written)
    first, second = file.tensor("norm.f32"), file.tensor("norm.f32")
    assert first.address == second.address
    (mapped,) = behind(file.tensor(name) for name in file)
    assert len(mapped) == len(before)
    first.blocks[:] = 0
    assert written.read_bytes() == before
    alive = weakref.ref(mapped)
    del file, mapped, first
    assert torch.equal(held(second), torch.zeros(7)) and alive() is not None  # it outlives the file
    part = second.blocks[:, 4:8]
    del second
    assert part.sum() == 0 and alive() is not None
    del part
    assert alive() is None  # and goes with the last view


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="asks the system for its memory size")
def test_a_file_larger_than_memory_opens(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    path = tmp_path / "large.gguf"
    write_gguf(path, {}, [entry("a", torch.ones(8))])
    os.truncate(path, 2 * memory)  # sparse: takes no disk
    assert torch.equal(held(GGUFFile(path).tensor("a")), torch.ones(8))


def test_the_real_file_opens_fast_and_agrees_with_the_gguf_package(real_gguf: Path) -> None:
    started = time.perf_counter()
    file = GGUFFile(real_gguf)
    assert time.perf_counter() - started < 1  # 0.06 s where it was measured; others take seconds
    assert file.metadata["gemma3.block_count"] == 18
    assert len(file.metadata["tokenizer.ggml.tokens"]) == 262144
    assert file.metadata["tokenizer.ggml.tokens"][236743] == "▁".encode()
    assert file.shape("token_embd.weight") == (262144, 640)
    counts: dict[str, int] = {}
    for name in file:
        counts[file.format(name).name] = counts.get(file.format(name).name, 0) + 1
    assert counts == {"f32": 109, "q8_0": 10, "q5_0": 81, "q4_k": 27, "q6_k": 9}
    embedding = file.tensor("token_embd.weight")
    first = unpack(embedding.prefix(rows=1))[0, :5]
    want = [-0.0072441, 0.042861, -0.0344095, -0.0211287, -0.0120735]
    np.testing.assert_allclose(first, want, rtol=1e-4, atol=0)
    raw = embedding.prefix(rows=3).blocks
    oracle = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(unpack(embedding.prefix(rows=3)), oracle)


# ---- refusals ------------------------------------------------------------------------------------


def test_places_that_are_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.gguf", tmp_path / "a\0b"):
        with pytest.raises(InputError, match="cannot open"):
            GGUFFile(path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="not a file"):  # and does not wait for a writer
        GGUFFile(pipe)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content, error, words in (
        (b"", FileFormatError, "empty"),
        (b"GG", FileFormatError, "ends after"),
        (b"PK\3\4" + bytes(100), FileFormatError, "not a GGUF file"),
        (b"RIFF" + bytes(100), FileFormatError, "not b.GGUF.; a model is a GGUF file or a direct"),
        (b"GGUF" + (1).to_bytes(4, "little") + bytes(100), UnsupportedError, "version 1"),
        (b"GGUF" + (3).to_bytes(4, "big") + bytes(100), UnsupportedError, "big-endian"),
        (b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 16, FileFormatError, "claims"),
    ):
        path.write_bytes(content)
        with pytest.raises(error, match=words):
            GGUFFile(path)


def test_a_name_that_is_not_there(written: Path) -> None:
    file = GGUFFile(written)
    for ask in (file.tensor, file.shape, file.format, file.nbytes):
        with pytest.raises(FileFormatError, match="no tensor 'nope'"):
            ask("nope")


def test_truncation_is_told_with_the_tensor(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(written.read_bytes()[:-200])
    with pytest.raises(FileFormatError, match=r"short\.gguf.*stack\.q8_0.*truncated"):
        GGUFFile(path)


def test_bytes_behind_the_last_tensor_change_nothing(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "padded.gguf"
    path.write_bytes(written.read_bytes() + bytes(5000))
    assert GGUFFile(path).names() == GGUFFile(written).names()


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"general.alignment": 0}, "power of two"),
        ({"general.alignment": 48}, "power of two"),
        ({"general.alignment": "32"}, "power of two"),
        ({"general.alignment": 1 << 17}, "power of two, 8 to 65536"),
        ({"k": object()}, "cannot hold 'k'"),
        ({"k": [1, "a"]}, "cannot hold 'k'"),
        ({"k": [[1], 2]}, "cannot hold 'k'"),
        ({"k": [[1], "a"]}, "cannot hold 'k'"),
        ({"k": [[1], [object()]]}, "cannot hold 'k'"),
        ({"k": "\ud800"}, "cannot hold 'k'"),
        ({"n" * 65536: 1}, "more than 65535 bytes"),
        ({"k": 1 << 70}, "cannot hold 'k'"),
        ({"k": np.zeros((2, 2))}, "cannot hold 'k'"),
        ({"k": 1j}, "cannot hold 'k'"),
    ],
)
def test_metadata_that_gguf_cannot_hold(
    metadata: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        write_gguf(tmp_path / "x.gguf", metadata, [])
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_gguf_cannot_hold(tmp_path: Path) -> None:
    a = torch.zeros(2, 32)
    for tensors in (
        [entry("a", a), entry("a", a)],
        [entry("n" * 64, a)],
        [entry("a", torch.zeros(1, 1, 1, 1, 1))],
        [entry("a", torch.zeros(0, 4))],
        [entry("a", torch.zeros(2, 33), FORMATS["q8_0"])],
        [("a", (2, 32), FORMATS["f32"], lambda: packed(torch.zeros(32, 2)))],
        [("a", (2, 32), FORMATS["f32"], lambda: packed(torch.zeros(64)))],
    ):
        with pytest.raises(InputError):
            write_gguf(tmp_path / "x.gguf", {}, tensors)
    with pytest.raises(UnsupportedError):
        write_gguf(tmp_path / "x.gguf", {}, [entry("a", torch.zeros(2, 256), FORMATS["q6_k"])])
    assert list(tmp_path.iterdir()) == []


def test_vectors_in_blocks_are_refused_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    write_gguf(path, {}, [entry("v", torch.zeros(64), FORMATS["q8_0"])])
    with pytest.raises(UnsupportedError, match="q8_0 with shape"):
        GGUFFile(path).tensor("v")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_an_interrupted_write_leaves_the_old_file(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, {}, [entry("a", torch.ones(4))])
    before = path.read_bytes()

    def fail() -> Packed:
        raise error

    with pytest.raises(UnavailableError if error is OSError else error):
        write_gguf(path, {}, [entry("a", torch.zeros(4)), ("b", (4,), FORMATS["f32"], fail)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        write_gguf(tmp_path / "nowhere" / "x.gguf", {}, [])


def test_a_file_can_be_rewritten_from_itself(tmp_path: Path) -> None:
    path = tmp_path / "self.gguf"
    write_gguf(path, {"k": 1}, [entry(*item) for item in every_format()])
    before = path.read_bytes()
    file = GGUFFile(path)
    write_gguf(path, file.metadata, [entry(name, file.tensor(name)) for name in file])
    assert path.read_bytes() == before


def test_the_real_file_copies_byte_for_byte(real_gguf: Path, tmp_path: Path) -> None:
    file, copy = GGUFFile(real_gguf), tmp_path / "copy.gguf"
    write_gguf(
        copy,
        file.metadata,
        [(n, file.shape(n), file.format(n), lambda n=n: file.tensor(n)) for n in file],  # type: ignore[misc]
    )
    try:
        assert filecmp.cmp(copy, real_gguf, shallow=False)
    finally:
        copy.unlink()
