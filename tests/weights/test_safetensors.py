"""Safetensors read and written: against the package, as shards, and broken in every way."""

import itertools
import json
import os
import random
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Packed, pack, unpack
from gemelo.weights.mapped import behind
from gemelo.weights.safetensors import (
    INDEX_NAME,
    SINGLE_NAME,
    Safetensors,
    TensorToWrite,
    write_safetensors,
)
from tests.tensors import entries, held, packed

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b.weight": torch.randn(5, 3).bfloat16(),
    "c.weight": torch.randn(7).half(),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "kernel": torch.randn(2, 3, 1, 2).half(),
}
OTHERS = {
    "ids": torch.arange(5),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "wide": torch.ones(2, dtype=torch.float64),
}


def assert_holds(file: Safetensors, tensors: dict[str, Tensor]) -> None:
    assert sorted(file.names()) == sorted(file) == sorted(tensors)
    for name, want in tensors.items():
        weight = file.tensor(name)
        assert name in file
        assert weight.format == file.format(name)
        assert file.shape(name) == weight.shape == tuple(want.shape)
        assert file.nbytes(name) == weight.nbytes == want.nbytes
        assert held(weight).dtype == want.dtype and torch.equal(held(weight), want)


# ---- round trips ---------------------------------------------------------------------------------


def test_one_file_comes_back_and_loads_elsewhere(tmp_path: Path) -> None:
    write_safetensors(tmp_path, entries(TENSORS))
    assert [path.name for path in tmp_path.iterdir()] == [SINGLE_NAME]
    for path in (tmp_path, tmp_path / SINGLE_NAME, str(tmp_path)):
        assert_holds(Safetensors(path), TENSORS)
    assert Safetensors(tmp_path).metadata == {"format": "pt"}
    theirs = safetensors.torch.load_file(tmp_path / SINGLE_NAME)
    assert sorted(theirs) == sorted(TENSORS)
    assert all(torch.equal(theirs[name], want) for name, want in TENSORS.items())
    with safe_open(tmp_path / SINGLE_NAME, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_reads_what_the_package_writes(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS, tmp_path / SINGLE_NAME, {"by": "them"})
    file = Safetensors(tmp_path)
    assert_holds(file, TENSORS)
    assert file.metadata == {"by": "them"}


def test_types_that_are_no_weights_have_a_name_and_a_size_only(tmp_path: Path) -> None:
    safetensors.torch.save_file(TENSORS | OTHERS, tmp_path / SINGLE_NAME)
    file = Safetensors(tmp_path)
    for name, dtype in (("ids", "I64"), ("odd", "U8"), ("wide", "F64")):
        assert file.dtype(name) == dtype
        assert file.shape(name) == tuple(OTHERS[name].shape)
        assert file.nbytes(name) == OTHERS[name].nbytes
        for ask in (file.format, file.tensor):
            with pytest.raises(UnsupportedError, match=f"'{name}' is {dtype}; .* F32, F16, BF16"):
                ask(name)
    for name in TENSORS:
        assert torch.equal(held(file.tensor(name)), TENSORS[name])


def test_shards_come_back_with_an_index(tmp_path: Path) -> None:
    write_safetensors(tmp_path, entries(TENSORS), max_shard_bytes=40, metadata={"x": "y"})
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) == 4
    assert shards[0] == "model-00001-of-00004.safetensors"
    for path in (tmp_path, tmp_path / INDEX_NAME):
        assert_holds(Safetensors(path), TENSORS)
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert sorted(index["weight_map"]) == sorted(TENSORS)
    for shard in shards:
        theirs = safetensors.torch.load_file(tmp_path / shard)
        assert all(index["weight_map"][name] == shard for name in theirs)


@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 50_000])
def test_transformers_loads_what_was_written(max_shard_bytes: int, tmp_path: Path) -> None:
    config = Gemma3TextConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
    )
    model = Gemma3ForCausalLM(config).eval()
    state = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    write_safetensors(tmp_path, entries(state), max_shard_bytes=max_shard_bytes)
    config.save_pretrained(tmp_path)
    loaded = Gemma3ForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[2, 5, 9]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_writing_converts_and_expands(tmp_path: Path) -> None:
    blocks, wide = pack(torch.randn(6, 64).numpy(), FORMATS["q8_0"]), torch.randn(3, 2, 5)
    part = packed(torch.randn(7, 64)).prefix(5, 33)
    write_safetensors(
        tmp_path,
        [
            ("blocks", (6, 64), FORMATS["bf16"], lambda: blocks),
            ("wide", (3, 2, 5), FORMATS["f16"], lambda: packed(wide)),
            ("part", (5, 33), FORMATS["f32"], lambda: part),
        ],
    )
    expected = {
        "blocks": torch.from_numpy(unpack(blocks)).bfloat16(),
        "wide": wide.half(),
        "part": torch.from_numpy(unpack(part)),
    }
    assert_holds(Safetensors(tmp_path), expected)


def test_writing_streams_and_reports_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemelo.weights.files.PIECE_BYTES", 1000)
    made: list[str] = []
    done: list[int] = []

    def make(name: str) -> Callable[[], Packed]:
        def maker() -> Packed:
            assert sum(done) == 4096 * len(made), "asked for before its turn"
            made.append(name)
            return packed(torch.full((32, 32), float(len(made))))

        return maker

    tensors: list[TensorToWrite] = [(n, (32, 32), FORMATS["f32"], make(n)) for n in "abc"]
    write_safetensors(tmp_path, iter(tensors), max_shard_bytes=5000, progress=done.append)
    assert made == ["a", "b", "c"] and sum(done) == 3 * 4096 and max(done) <= 1000
    file = Safetensors(tmp_path)
    assert [float(held(file.tensor(n))[31, 31]) for n in "abc"] == [1, 2, 3]


# ---- the map -------------------------------------------------------------------------------------


def test_tensors_are_views_of_one_private_map(tmp_path: Path) -> None:
    write_safetensors(tmp_path, entries({"a": torch.ones(64), "b": torch.ones(3, 3)}))
    before = (tmp_path / SINGLE_NAME).read_bytes()
    file = Safetensors(tmp_path)
    a, b = file.tensor("a"), file.tensor("b")
    assert a.address == file.tensor("a").address
    (mapped,) = behind([a, b])
    assert len(mapped) == len(before)
    a.blocks[:] = 0
    assert (tmp_path / SINGLE_NAME).read_bytes() == before
    alive = weakref.ref(mapped)
    del file, mapped, a
    assert torch.equal(held(b), torch.ones(3, 3)) and alive() is not None  # the map outlives both
    del b
    assert alive() is None  # and goes with the last view


def test_a_header_of_odd_length_is_read(tmp_path: Path) -> None:
    want = torch.tensor([1.5, -2.0])
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    path = tmp_path / "odd.safetensors"
    path.write_bytes(file_bytes(header, want.numpy().tobytes(), pad=3))
    weight = Safetensors(path).tensor("a")
    assert weight.address % 4 and len(behind([weight])) == 1  # as bytes there is no need to copy
    assert np.array_equal(unpack(weight), want.numpy())
    write_safetensors(tmp_path, [("a", (2,), FORMATS["f16"], lambda: weight)])
    assert_holds(Safetensors(tmp_path), {"a": want.half()})


def test_floats_have_a_format(tmp_path: Path) -> None:
    write_safetensors(tmp_path, entries(TENSORS))
    file = Safetensors(tmp_path)
    for name, format in (("a.weight", "f32"), ("b.weight", "bf16"), ("c.weight", "f16")):
        assert file.format(name) == FORMATS[format]


# ---- refusals ------------------------------------------------------------------------------------


def file_bytes(header: Any, data: bytes, pad: int = 0) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8 + pad)
    return struct.pack("<Q", len(raw)) + raw + data


def tensor(dtype: Any, shape: Any, offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


A = tensor("F32", [2], [0, 8])
BROKEN = {
    "empty": (b"", "empty"),
    "short": (b"\1\2", "truncated"),
    "length": (struct.pack("<Q", 1 << 63) + b"{}", "header of 9223372036854775808"),
    "length past the end": (struct.pack("<Q", 3) + b"{}", "truncated"),
    "not JSON": (file_bytes(b"{", b""), "not valid JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}', b""), "not valid JSON"),
    "nested": (file_bytes(b"[" * 100_000, b""), "not valid JSON"),
    "long number": (file_bytes(b'{"a": ' + b"9" * 5000 + b"}", b""), "not valid JSON"),
    "a list": (file_bytes([1], b""), "not a JSON object"),
    "no object": (file_bytes({"a": 3}, b""), "not described by an object"),
    "key twice": (
        file_bytes(b'{"a":%b,"a":%b}' % ((json.dumps(A).encode(),) * 2), bytes(8)),
        "twice",
    ),
    "metadata": (file_bytes({"__metadata__": {"a": 1}}, b""), "map of strings"),
    "no dtype": (file_bytes({"a": tensor([], [2], [0, 8])}, bytes(8)), "no dtype"),
    "dtype": (file_bytes({"a": tensor("F31", [2], [0, 8])}, bytes(8)), "unknown dtype 'F31'"),
    "shape": (file_bytes({"a": tensor("F32", [-2], [0, 8])}, bytes(8)), "whole numbers"),
    "true": (file_bytes({"a": tensor("F32", [2, True], [0, 8])}, bytes(8)), "whole numbers"),
    "fraction": (file_bytes({"a": tensor("F32", [2.0], [0, 8])}, bytes(8)), "whole numbers"),
    "dimensions": (file_bytes({"a": tensor("F32", [1] * 99, [0, 4])}, bytes(4)), "up to 8"),
    "offsets": (file_bytes({"a": tensor("F32", [2], [0])}, bytes(8)), "two data_offsets"),
    "overflow": (file_bytes({"a": tensor("F32", [1 << 62] * 4, [0, 8])}, bytes(8)), "cannot lie"),
    "backwards": (file_bytes({"a": tensor("F32", [2], [8, 0])}, bytes(8)), "cannot lie"),
    "size": (file_bytes({"a": tensor("F32", [3], [0, 8])}, bytes(8)), "cannot lie"),
    "outside": (file_bytes({"a": tensor("F32", [2], [8, 16])}, bytes(8)), "cannot lie"),
    "overlap": (file_bytes({"a": A, "b": A}, bytes(8)), "overlaps"),
    "gap": (file_bytes({"a": tensor("F32", [2], [4, 12])}, bytes(12)), "gap"),
    "padded": (file_bytes({"a": A}, bytes(9)), "truncated or padded"),
}


@pytest.mark.parametrize("content, words", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_with_a_reason(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=words) as caught:
        Safetensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_places_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither"):
        Safetensors(tmp_path)
    with pytest.raises(InputError, match="cannot open"):
        Safetensors(tmp_path / "missing.safetensors")
    write_safetensors(tmp_path, entries({"a": torch.ones(2)}))
    with pytest.raises(FileFormatError, match="no tensor 'b'"):
        Safetensors(tmp_path).tensor("b")


@pytest.mark.parametrize(
    "shard",
    [
        "/etc/passwd",
        "../x.safetensors",
        "a/x.safetensors",
        "..",
        ".",
        "",
        "a\\x",
        "a\0",
        "\ud800",
        3,
    ],
)
def test_an_index_names_files_beside_itself_only(shard: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    for place in (tmp_path, folder / "a"):
        (place / "x.safetensors").write_bytes(file_bytes({"a": A}, bytes(8)))
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(FileFormatError, match=r"index\.json"):
        Safetensors(folder)


def test_an_index_that_disagrees_with_its_shards(tmp_path: Path) -> None:
    index, shard = tmp_path / INDEX_NAME, tmp_path / "s.safetensors"
    shard.write_bytes(file_bytes({"a": A}, bytes(8)))
    (tmp_path / "t.safetensors").write_bytes(shard.read_bytes())
    for weight_map, words in (
        ({"a": "s.safetensors", "b": "s.safetensors"}, "'b' in s.safetensors, which lacks it"),
        ({"a": "s.safetensors", "b": "gone.safetensors"}, "'gone.safetensors', which is missing"),
        ({"a": "s.safetensors", "c": "t.safetensors"}, "'c' in t.safetensors, which lacks it"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(FileFormatError, match=words):
            Safetensors(tmp_path)
    twin = json.dumps({"a": A, "b": tensor("F32", [], [8, 12])}).encode()
    (tmp_path / "t.safetensors").write_bytes(file_bytes(twin, bytes(12)))
    index.write_text(json.dumps({"weight_map": {"a": "s.safetensors", "b": "t.safetensors"}}))
    with pytest.raises(FileFormatError, match="'a' is in another shard"):
        Safetensors(tmp_path)
    for broken in ("", "{", "[" * 100_000, "[]"):
        index.write_text(broken)
        with pytest.raises(FileFormatError):
            Safetensors(tmp_path)


def read_all(content: bytes, path: Path) -> bool:
    path.write_bytes(content)
    try:
        file = Safetensors(path)
    except GemeloError as error:
        assert str(path) in str(error) and len(str(error)) < 1000
        return False
    finally:
        path.unlink()
    for name in file:
        try:
            got = file.tensor(name)
        except UnsupportedError:
            continue
        assert got.shape == file.shape(name)
        assert got.nbytes == file.nbytes(name) <= len(content)
        assert got.blocks.sum() >= 0
    return True


def mutants(content: bytes) -> Iterator[bytes]:
    size = 8 + struct.unpack_from("<Q", content)[0]
    yield from (content[:end] for end in range(len(content)))
    for offset, new in itertools.product(range(size), b'\0\1\x80\xff"0:9,{}[]'):
        yield content[:offset] + bytes([new]) + content[offset + 1 :]
    rng = random.Random(0)
    for _ in range(500):
        start, stop = sorted(rng.sample(range(8, size), 2))
        body = content[8:start] + content[stop:size]
        yield struct.pack("<Q", len(body)) + body + content[size:]
        number = str(rng.choice([0, 1, 7, 1 << 31, 1 << 63, 1 << 64, -1])).encode()
        body = content[8:start] + number + content[start:size]
        yield struct.pack("<Q", len(body)) + body + content[size:]


def test_every_mutant_loads_or_is_refused(tmp_path: Path) -> None:
    chosen = {k: (TENSORS | OTHERS)[k] for k in ("a.weight", "b.weight", "ids")}
    safetensors.torch.save_file(chosen, tmp_path / SINGLE_NAME, {"format": "pt"})
    whole = (tmp_path / SINGLE_NAME).read_bytes()
    assert read_all(whole, tmp_path / "whole.safetensors")
    loaded = [read_all(mutant, tmp_path / "m.safetensors") for mutant in mutants(whole)]
    assert len(loaded) > 4000
    assert 0.02 < sum(loaded) / len(loaded) < 0.7


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)


@settings(max_examples=200, deadline=None)
@given(
    dtype=st.sampled_from(["F32", "U8"]) | json_values,
    shape=st.lists(st.integers(0, 3), max_size=3) | json_values,
    offsets=st.lists(st.integers(0, 40), min_size=2, max_size=2) | json_values,
    size=st.integers(0, 40),
)
def test_any_header(
    tmp_path_factory: pytest.TempPathFactory, dtype: Any, shape: Any, offsets: Any, size: int
) -> None:
    content = file_bytes({"a": tensor(dtype, shape, offsets)}, bytes(size))
    read_all(content, tmp_path_factory.getbasetemp() / "any.safetensors")


# ---- writing, refused or interrupted -------------------------------------------------------------


def test_requests_that_cannot_be_written(tmp_path: Path) -> None:
    a = torch.zeros(2)
    for tensors in (
        [*entries({"a": a}), *entries({"a": a})],
        entries({"__metadata__": a}),
        [("a", (2, 32), FORMATS["q8_0"], lambda: packed(torch.zeros(2, 32)))],
        [("a", (3,), FORMATS["f32"], lambda: packed(a))],
        [("a", (2,), FORMATS["f32"], lambda: packed(torch.zeros(1, 2)))],
    ):
        with pytest.raises(InputError):
            write_safetensors(tmp_path, tensors)
    assert list(tmp_path.iterdir()) == []


def test_two_layouts_never_stand_side_by_side(tmp_path: Path) -> None:
    tensors = entries({"a": torch.zeros(8), "b": torch.zeros(8)})
    write_safetensors(tmp_path, tensors)
    with pytest.raises(InputError, match="already holds model.safetensors"):
        write_safetensors(tmp_path, tensors, max_shard_bytes=32)
    os.remove(tmp_path / SINGLE_NAME)
    write_safetensors(tmp_path, tensors, max_shard_bytes=32)
    with pytest.raises(InputError, match="already holds model.safetensors.index.json"):
        write_safetensors(tmp_path, tensors)


@pytest.mark.parametrize("shard_bytes", [16, 1 << 30])
def test_an_interrupted_write_leaves_the_old_files(shard_bytes: int, tmp_path: Path) -> None:
    old = {"a": torch.ones(4), "b": torch.ones(4)}
    write_safetensors(tmp_path, entries(old), max_shard_bytes=shard_bytes)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail() -> Packed:
        raise KeyboardInterrupt

    new = [*entries({"a": torch.zeros(4)}), ("b", (4,), FORMATS["f32"], fail)]
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path, new, max_shard_bytes=shard_bytes)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
