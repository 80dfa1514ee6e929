"""Files with a model's name that are none, and tensors of types that nothing here reads."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from gemelo.kernels.quants import FORMATS_BY_ID
from gemelo.weights.gguf import GGUFFile

BEGINNINGS: dict[str, tuple[bytes, str]] = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "page": (b"<!DOCTYPE html><html>", "a web page"),
    "page behind a mark": (b"\xef\xbb\xbf\n <html>", "a web page"),
    "error": (b'{"error":"Not Found"}', "JSON"),
    "zip": (b"PK\3\4" + bytes(60), "zip archive"),
    "pickle": (b"\x80\2ccollections\n" + bytes(60), "a pickle"),
    "gzip": (b"\x1f\x8b\x08" + bytes(60), "gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(60), "zstd"),
    "safetensors": (struct.pack("<Q", 4000) + b'{"a":{"dtype":"F32"', "safetensors file; give"),
    "ggml": (b"lmgg" + bytes(60), "before GGUF"),
    "ggmf": (b"fmgg" + bytes(60), "before GGUF"),
    "ggjt": (b"tjgg" + bytes(60), "before GGUF"),
    "ggla": (b"algg" + bytes(60), "before GGUF"),
    "zeros": (bytes(4096), "zeros"),
    "swapped": (b"FUGG" + bytes(60), "swapped"),
    "other": (b"\x7fELF" + bytes(60), r"begins with b'\\x7fELF'"),
    "first version": (b"GGUF" + struct.pack("<I", 1) + bytes(60), "version 1; .* convert"),
    "a later version": (b"GGUF" + struct.pack("<I", 4) + bytes(60), "version 4; "),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(60), r"version 3 \(big-endian\)"),
    "version zero": (b"GGUF" + struct.pack("<I", 0) + bytes(60), "version 0"),
}


@pytest.mark.parametrize(("content", "words"), BEGINNINGS.values(), ids=BEGINNINGS.keys())
def test_other_files_are_told_what_they_are(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(GemeloError, match=words) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)


def with_type(path: Path, kind: int) -> Path:
    name = b"blk.0.attn_q.weight"
    info = struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 256, 2, kind, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + info
    path.write_bytes(header + bytes(-len(header) % 32 + 4096))
    return path


NAMES = {
    4: "q4_2", 5: "q4_3", 9: "q8_1", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs",
    19: "iq1_s", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32", 27: "i64",
    28: "f64", 29: "iq1_m", 31: "q4_0_4_4", 32: "q4_0_4_8", 33: "q4_0_8_8", 34: "tq1_0",
    35: "tq2_0", 36: "iq4_nl_4_4", 37: "iq4_nl_4_8", 38: "iq4_nl_8_8", 39: "mxfp4", 40: "nvfp4",
    41: "q1_0", 42: "q2_0",
}  # fmt: skip


@pytest.mark.parametrize("kind", range(43))
def test_every_type_of_today_is_read_or_named_with_a_cure(kind: int, tmp_path: Path) -> None:
    path = with_type(tmp_path / "x.gguf", kind)
    if kind in FORMATS_BY_ID:
        assert GGUFFile(path).format("blk.0.attn_q.weight").ggml_id == kind
        return
    with pytest.raises(UnsupportedError, match=f"'blk.0.attn_q.weight' is {NAMES[kind]}: ") as told:
        GGUFFile(path)
    assert any(cure in str(told.value) for cure in ("Q4_K_M or Q8_0", "get the plain", "convert"))


def test_types_of_forks_and_numbers_nobody_gave(tmp_path: Path) -> None:
    for kind in (97, 137, 142, 230):
        with pytest.raises(UnsupportedError, match=f"type {kind}, .* forks"):
            GGUFFile(with_type(tmp_path / "x.gguf", kind))
    for kind in (43, 60, 1000, (1 << 32) - 1):
        with pytest.raises(FileFormatError, match=f"unknown type {kind}, .* damaged"):
            GGUFFile(with_type(tmp_path / "x.gguf", kind))
