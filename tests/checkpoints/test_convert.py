"""From either kind of file to either, exactly where it can be, and nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from gemelo.api import load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.tokenizers import read_tokenizer
from gemelo.config.options import _READ_ONLY, TARGET_FORMATS, TargetFormat
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS, unpack
from gemelo.models.multimodal import Gemma3Tree
from gemelo.weights import names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.safetensors import write_safetensors
from tests.conftest import TINY, TINY_VISION, randomise, tiny_model, write_checkpoint
from tests.native import needs_native
from tests.tensors import entries


def same_weights(a: Path, b: Path) -> bool:
    one, two = open_source(a), open_source(b)
    for name in one.shapes:
        left, right = one.tensor(name), two.tensor(name)
        if left.format != right.format or not np.array_equal(left.blocks, right.blocks):
            return False
    return set(one.shapes) == set(two.shapes) and one.config == two.config


@needs_native
@pytest.mark.parametrize("target", ["out.gguf", "out"])
def test_a_source_that_is_cut_short_meanwhile(
    tiny_directory: Path, tmp_path: Path, target: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_directory, source)

    def cut(done: int, total: int) -> None:
        os.truncate(source / "model.safetensors", 20_000)

    with pytest.raises(FileFormatError, match=r"model.safetensors was cut short while it was in"):
        convert(source, tmp_path / target, progress=cut)
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_directory_to_gguf_and_back_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model(TINY["blocks-of-32"])
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):  # exact under +1 - 1, as trained bfloat16 norms are
            weight.copy_((weight * 64).round() / 64)
    source = write_checkpoint(tmp_path / "a", model, dtype)
    convert(source, tmp_path / "b.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "c")
    one, two = open_source(source), open_source(tmp_path / "c")
    # <end_of_turn> ends a text as well, whoever reads the directory.
    assert dataclasses.replace(one.config, eos_token_id=(1, 106)) == two.config
    for name in one.shapes:
        assert np.array_equal(unpack(one.tensor(name)), unpack(two.tensor(name))), name
    assert read_tokenizer(tmp_path / "c").encode("the cat") == read_tokenizer(source).encode(
        "the cat"
    )


def test_quantised_gguf_to_gguf_is_byte_for_byte(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "again.gguf")
    assert same_weights(tiny_checkpoint, tmp_path / "again.gguf")


def test_quantised_through_a_directory_is_exact(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Safetensors holds no blocks: "native" widens to float32, which packs back the same."""
    convert(tiny_checkpoint, tmp_path / "wide")
    convert(tmp_path / "wide", tmp_path / "again.gguf", "q8_0")
    assert same_weights(tiny_checkpoint, tmp_path / "again.gguf")


WIDE = "a directory cannot hold Q8_0: float32 is written, {} in all; format bf16 halves it"
AGAIN = (
    "weights in Q8_0 are quantised again, to q4_0: quality falls; convert from the 16-bit original"
)


@pytest.mark.parametrize(
    ("target", "format", "wanted"),
    [
        ("wide", "native", [WIDE]),
        ("half", "bf16", []),
        ("same.gguf", "native", []),
        ("same.gguf", "q8_0", []),
        ("worse.gguf", "q4_0", [AGAIN]),
        ("wide.gguf", "f32", []),
    ],
)
def test_what_becomes_of_blocks_is_said_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, target: str, format: TargetFormat, wanted: list[str]
) -> None:
    told: list[str] = []

    def note(notice: str) -> None:
        assert [*tmp_path.iterdir()] == []
        told.append(notice)

    written = convert(tiny_checkpoint, tmp_path / target, format, on_notice=note)
    size = f"{written.size_bytes / (1 << 20):.1f} MiB"
    assert told == [*written.notices] == [one.format(size) for one in wanted]


def test_a_16_bit_source_is_quantised_once(tiny_directory: Path, tmp_path: Path) -> None:
    for number, format in enumerate(("native", "q8_0", "q4_0")):
        assert convert(tiny_directory, tmp_path / f"{number}.gguf", format).notices == ()  # type: ignore[arg-type]


def test_formats_that_are_only_read(tiny_directory: Path, tmp_path: Path) -> None:
    for format in ("q4_k_m", "Q6_K", "q5_K_S", "iq4_nl", "Q5_1"):
        with pytest.raises(InputError, match=f"format {format} is read, not written") as raised:
            convert(tiny_directory, tmp_path / "x.gguf", format)  # type: ignore[arg-type]
        assert "writes q8_0 and q4_0" in str(raised.value)
    with pytest.raises(InputError, match="format 'q9' is not one of native, bf16"):
        convert(tiny_directory, tmp_path / "x.gguf", "q9")  # type: ignore[arg-type]
    assert convert(tiny_directory, tmp_path / "x.gguf", "Q8_0").tensors  # type: ignore[arg-type]
    assert {f for f in FORMATS if f not in TARGET_FORMATS} == {*_READ_ONLY}


@pytest.mark.usefixtures("exact")
def test_the_reference_reads_a_directory_we_wrote(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "hub", "f32")
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", attn_implementation="eager")
    ids = [2, *range(300, 330)]
    with torch.inference_mode():
        theirs = twin(torch.tensor([ids])).logits[0]
    assert float((load(tiny_checkpoint).logits(ids) - theirs).abs().max()) < 1e-4


def test_another_reader_reads_a_gguf_we_wrote(tiny_checkpoint: Path) -> None:
    reader = GGUFReader(tiny_checkpoint)
    ours = GGUFFile(tiny_checkpoint)
    assert {tensor.name for tensor in reader.tensors} == set(ours.names())
    assert reader.fields["general.architecture"].contents() == "gemma3"
    assert reader.fields["general.file_type"].contents() == 7
    assert reader.fields["gemma3.attention.sliding_window"].contents() == 8


@pytest.mark.parametrize(("format", "size"), [("f32", 4.0), ("bf16", 2.0), ("q8_0", 34 / 32)])
def test_sizes_and_progress(tiny_directory: Path, tmp_path: Path, format: str, size: float) -> None:
    seen: list[tuple[int, int]] = []
    target = tmp_path / "t.gguf"
    done = convert(tiny_directory, target, format, progress=lambda n, of: seen.append((n, of)))  # type: ignore[arg-type]
    assert seen[-1][0] == seen[-1][1] == done.size_bytes
    assert [n for n, _ in seen] == sorted(n for n, _ in seen)
    matrices = sum(
        math.prod(shape) for shape in open_source(tiny_directory).shapes.values() if len(shape) == 2
    )
    assert matrices * size < done.size_bytes < matrices * size * 1.1


def test_a_vision_tower_is_not_lost_in_silence(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY["blocks-of-32"], vision=TINY_VISION, mm_tokens_per_image=4)
    tree = Gemma3Tree(config)
    randomise(tree)
    base = write_checkpoint(tmp_path / "base", tiny_model(TINY["blocks-of-32"]))
    (base / "model.safetensors").unlink()
    (base / "config.json").write_text(json.dumps(config.to_hf()))
    state = {names.to_hf(name, "multimodal"): w for name, w in tree.state_dict().items()}
    write_safetensors(base, entries(state))
    with pytest.raises(UnsupportedError, match="text_only=True"):
        convert(base, tmp_path / "text.gguf")
    convert(base, tmp_path / "text.gguf", text_only=True)
    convert(base, tmp_path / "copy")
    ids = [2, 300, 301, 302]
    assert torch.allclose(load(base).logits(ids), load(tmp_path / "copy").logits(ids))
    assert torch.allclose(
        load(base).logits(ids), load(tmp_path / "text.gguf").logits(ids), atol=1e-5
    )


@pytest.mark.parametrize("target", ["x.gguf", "x"])
def test_an_interrupted_write_leaves_nothing(
    tiny_directory: Path, tmp_path: Path, target: str
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_directory, tmp_path / target, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(tiny_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"):
        convert(tiny_directory, tiny_directory)
    with pytest.raises(InputError, match="format 'q3'"):
        convert(tiny_directory, tmp_path / "y.gguf", "q3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="safetensors cannot hold q8_0"):
        convert(tiny_directory, tmp_path / "y", "q8_0")
    with pytest.raises(GemeloError, match="no such file"):
        convert(tmp_path / "nowhere", tmp_path / "y.gguf")
    model = tiny_model(TINY["one-kv-head"])
    model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    big = write_checkpoint(tmp_path / "big", model)
    with pytest.raises(InputError, match=r"1e\+06 passes f16's 65504"):
        convert(big, tmp_path / "half.gguf", "f16")
    assert not (tmp_path / "half.gguf").exists()
