"""Gemma 3n to GGUF and back, exactly; and files of other converters, old and broken ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.formats import reshaped
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.modules import decoder_module
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.plan import TargetFormat
from gemelo.checkpoints.source import Source, layer_of
from gemelo.config import Gemma3nConfig
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS, Packed, converted, pack, unpack
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf
from gemelo.weights.safetensors import Safetensors
from tests.conftest import write_checkpoint
from tests.divergence import divergence, off
from tests.gemma3n import (
    MIXED_3N,
    SOFT_3N,
    TINY_3N,
    difference,
    noise,
    rewritten,
    scores,
    tiny_3n,
    write_3n,
)
from tests.tensors import held

PER_LAYER_EMBEDDING = "embed_tokens_per_layer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3n(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    convert(folder, folder.parent / "tiny.gguf")
    return folder.parent / "tiny.gguf"


def same_weights(a: Source, b: Source) -> None:
    assert a.shapes.keys() == b.shapes.keys() and a.config == b.config
    for name in a.shapes:
        left, right = a.tensor(name), b.tensor(name)
        if left.format == right.format:
            assert np.array_equal(left.blocks, right.blocks), name
        else:
            assert left.format.block == right.format.block == 1, name
            assert np.array_equal(unpack(left), unpack(right)), name


def altered(gguf: Path, target: Path, changes: dict[str, object]) -> Path:
    """A copy of a GGUF file with other key-values; None takes one away."""
    file = GGUFFile(gguf)
    values = {k: v for k, v in (dict(file.metadata) | changes).items() if v is not None}
    tensors = [
        (name, file.shape(name), file.format(name), lambda name=name: file.tensor(name))
        for name in file
    ]
    write_gguf(target, values, tensors)
    return target


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("format", ["f32", "bf16", "q8_0"])
def test_gguf_there_and_back_is_exact(folder: Path, tmp_path: Path, format: str) -> None:
    first, again, back = (tmp_path / name for name in ("a.gguf", "b.gguf", "hub"))
    convert(folder, first, format)  # type: ignore[arg-type]
    assert load_checkpoint(first).config == TINY_3N
    convert(first, again)
    same_weights(open_source(first), open_source(again))
    convert(first, back)
    assert difference(scores(load_checkpoint(back)), scores(load_checkpoint(first))) <= 1e-5
    convert(back, tmp_path / "c.gguf", format)  # type: ignore[arg-type]
    same_weights(open_source(first), open_source(tmp_path / "c.gguf"))
    if format != "q8_0":
        wanted = tiny_3n().to(getattr(torch, {"f32": "float32", "bf16": "bfloat16"}[format]))
        source = open_source(first)
        for name, weight in wanted.state_dict().items():
            weight_held = source.tensor(f"language_model.{name}")
            exact = weight.float() if weight.dim() > 1 else tiny_3n().state_dict()[name]
            if ".altup." not in name:
                assert torch.equal(torch.from_numpy(unpack(weight_held)), exact), name


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("format", ["f32", "f16", "q8_0", "q4_0"])
def test_scores_are_those_of_the_numbers_in_the_file(
    folder: Path, tmp_path: Path, format: TargetFormat
) -> None:
    """Whatever a format rounds off, it is rounded in the weights and nowhere else."""
    path, model = tmp_path / "rounded.gguf", tiny_3n()
    convert(folder, path, format)
    found, source = scores(load_checkpoint(path)), open_source(path)
    allowed = 1e-9  # float32 in another order, to the last bits
    assert (divergence(found, scores(model)) < allowed) == (format == "f32")
    for name, weight in model.state_dict().items():
        weight.copy_(torch.from_numpy(unpack(source.tensor(f"language_model.{name}"))))
    assert divergence(found, scores(model)) < allowed
    with torch.inference_mode(), off(ModuleDecoder(model)):
        assert divergence(found, scores(model)) > allowed


def test_stacks_have_torchs_order(folder: Path, gguf: Path) -> None:
    model, file = tiny_3n(), GGUFFile(gguf)
    for name, matrices in (
        ("altup_proj.weight", model.altup_projections),
        ("altup_unembd_proj.weight", model.altup_unembed_projections),
    ):
        assert file.shape(name) == (3, 64, 64)
        assert torch.equal(held(file.tensor(name)), torch.stack([m.weight for m in matrices]))
    convert(folder, gguf.with_name("small.gguf"), "q4_0")
    assert GGUFFile(gguf.with_name("small.gguf")).format("altup_proj.weight").name == "f32"


def test_a_stack_in_blocks_is_matrices_one_under_the_other() -> None:
    matrices = np.random.default_rng(0).standard_normal((3, 4, 32), np.float32)
    stack = pack(matrices, FORMATS["q8_0"])
    assert stack.shape == (3, 4, 32)
    middle = layer_of(stack, 1, 4)
    assert middle.shape == (4, 32)
    assert np.array_equal(middle.blocks, pack(matrices[1], FORMATS["q8_0"]).blocks)
    assert np.array_equal(unpack(layer_of(Packed.of(matrices), 1, 4)), matrices[1])


def test_another_reader_reads_what_we_wrote(gguf: Path) -> None:
    reader = GGUFReader(gguf)
    fields = {key.removeprefix("gemma3n."): f for key, f in reader.fields.items()}
    for key, value in (
        ("general.architecture", "gemma3n"),
        ("attention.shared_kv_layers", 5),
        ("feed_forward_length", 96),
        ("attention.sliding_window_pattern", [i % 5 != 4 for i in range(12)]),
        ("altup.num_inputs", 4),
        ("altup.active_idx", 0),
        ("embedding_length_per_layer_input", 32),
        ("final_logit_softcapping", 30.0),
    ):
        assert fields[key].contents() == value, key
    scale = fields["activation_sparsity_scale"].contents()
    assert scale[:4] == [pytest.approx(1.6448536)] * 4 and scale[5:] == [-np.inf] * 7
    shapes = {tensor.name: tuple(map(int, tensor.shape)) for tensor in reader.tensors}
    assert shapes["altup_proj.weight"] == (64, 64, 3)
    assert shapes["blk.3.altup_correct_scale.weight"] == (64,)
    assert shapes["blk.11.attn_k.weight"] == (64, 32)  # readers want it, and never look


def test_norms_are_not_shifted(gguf: Path) -> None:
    norm = GGUFFile(gguf).tensor("output_norm.weight")
    assert torch.equal(held(norm), tiny_3n().norm.weight)


def test_dead_keys_of_a_gguf_change_nothing(folder: Path, gguf: Path, tmp_path: Path) -> None:
    file = GGUFFile(gguf)
    assert not unpack(file.tensor("blk.9.attn_v.weight")).any()
    load_checkpoint(gguf)
    noisy = write_3n(tmp_path / "noisy")
    rewritten(noisy, noise())
    convert(noisy, tmp_path / "noisy.gguf")
    assert not unpack(GGUFFile(tmp_path / "noisy.gguf").tensor("blk.9.attn_v.weight")).any()
    tensors = [
        (name, file.shape(name), file.format(name), lambda name=name: file.tensor(name))
        for name in file
        if not any(name.startswith(f"blk.{n}.attn_{x}") for n in range(7, 12) for x in "kv")
    ]
    write_gguf(tmp_path / "none.gguf", file.metadata, tensors)
    assert len(tensors) == len(file.names()) - 15
    for path in (gguf, tmp_path / "noisy.gguf", tmp_path / "none.gguf"):
        assert torch.equal(scores(load_checkpoint(path)), scores(load_checkpoint(folder)))
        assert len(load_checkpoint(path).details) == (0 if "none" in path.name else 1)
        assert load_checkpoint(path).notices == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attention.shared_kv_layers": np.float32(5)}, {}),
        ({"attention.sliding_window_pattern": None}, {}),
        ({"attention.sliding_window_pattern": 5}, {}),
        ({"rope.freq_base": None, "rope.freq_base_swa": None}, {}),
        ({"final_logit_softcapping": None}, {}),
        ({"feed_forward_length": np.full(12, 96, np.int32)}, {}),
        ({"activation_sparsity_scale": np.float32([1.6448534] * 4 + [0.67449] + [0] * 7)}, {}),
        (
            {"activation_sparsity_scale": None},
            {"activation_sparsity_pattern": (0.95,) * 10 + (0.0,) * 2},
        ),
    ],
)
def test_files_of_other_converters(
    gguf: Path, tmp_path: Path, change: dict[str, object], field: dict[str, object]
) -> None:
    changes = {f"gemma3n.{key}": value for key, value in change.items()}
    path = altered(gguf, tmp_path / "other.gguf", changes)
    assert load_checkpoint(path).config == dataclasses.replace(TINY_3N, **field)  # type: ignore[arg-type]


def test_rows_past_the_text_are_cut_from_both_tables(tmp_path: Path) -> None:
    """GGUF holds one row a token; the real tables differ by the tokens of images and sounds."""
    folder = write_3n(tmp_path / "soft", SOFT_3N)
    written = convert(folder, tmp_path / "soft.gguf")
    assert all("llama.cpp" in notice for notice in written.notices)
    file, checkpoint = GGUFFile(tmp_path / "soft.gguf"), load_checkpoint(tmp_path / "soft.gguf")
    assert file.shape("token_embd.weight")[0] == file.shape("per_layer_token_embd.weight")[0] == 480
    assert len(file.metadata["tokenizer.ggml.tokens"]) == checkpoint.config.vocab_size == 480
    assert torch.equal(scores(checkpoint), scores(load_checkpoint(folder))[:, :480])


def test_tokens_are_padded_to_the_embedding(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY_3N, vocab_size=544, vocab_size_per_layer_input=544)
    folder = write_3n(tmp_path / "wide", config)
    convert(folder, tmp_path / "wide.gguf")
    metadata = GGUFFile(tmp_path / "wide.gguf").metadata
    assert [len(metadata[f"tokenizer.ggml.{x}"]) for x in ("tokens", "scores", "token_type")] == [
        544,
        544,
        544,
    ]
    assert metadata["tokenizer.ggml.tokens"][-1] == b"[PAD543]"
    wide = load_checkpoint(tmp_path / "wide.gguf")
    assert wide.config == config and wide.tokenizer.encode("the") == load_checkpoint(
        folder
    ).tokenizer.encode("the")


def test_mixed_widths_are_refused_or_forced(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "mixed", MIXED_3N)
    with pytest.raises(
        UnsupportedError, match=r"mixed has .*64, 96 neurons.*; slice it .* mixed_widths=True"
    ):
        convert(folder, tmp_path / "mixed.gguf")
    assert not (tmp_path / "mixed.gguf").exists()
    written = convert(folder, tmp_path / "mixed.gguf", mixed_widths=True)
    assert "one feed-forward width" in written.notices[-1]
    widths = GGUFFile(tmp_path / "mixed.gguf").metadata["gemma3n.feed_forward_length"]
    assert widths.tolist() == [96] * 6 + [64] * 6
    assert torch.equal(
        scores(load_checkpoint(tmp_path / "mixed.gguf")), scores(load_checkpoint(folder))
    )
    convert(tmp_path / "mixed.gguf", tmp_path / "back")
    ends = dataclasses.replace(MIXED_3N, eos_token_id=(1, 106))  # with <end_of_turn>
    assert load_checkpoint(tmp_path / "back").config == ends


def test_what_llama_cpp_has_built_in_is_said(folder: Path, tmp_path: Path) -> None:
    (notice,) = convert(folder, tmp_path / "tiny.gguf").notices
    assert "laurel_rank 64 (here 32)" in notice and "20 layers with keys" in notice
    config = Gemma3nConfig(
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=32,
        intermediate_size=(32,) * 30,
        num_hidden_layers=30,
        num_kv_shared_layers=10,
        num_attention_heads=2,
        head_dim=16,
    )
    convert(write_3n(tmp_path / "e2b", config), tmp_path / "e2b.gguf")
    assert convert(tmp_path / "e2b", tmp_path / "again.gguf").notices == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention.shared_kv_layers": np.float32(4.5)}, "shared_kv_layers is 4.5"),
        ({"attention.shared_kv_layers": 12}, "0 to 11"),
        ({"attention.shared_kv_layers": None}, "lacks gemma3n.attention.shared_kv_layers"),
        ({"feed_forward_length": np.full(11, 96, np.int32)}, "11 entries for 12 layers"),
        ({"feed_forward_length": np.full(12, -1, np.int32)}, "feed_forward_length is -1"),
        ({"altup.num_inputs": 1 << 20}, "2 to 16"),
        ({"activation_sparsity_scale": 1.6}, "a float for each of the 12 layers"),
        ({"activation_sparsity_scale": np.float32([np.nan] * 12)}, "NaN or infinity"),
        ({"activation_sparsity_scale": np.float32([np.inf] * 12)}, "NaN or infinity"),
        ({"activation_sparsity_scale": np.float32([9] * 12)}, "activation_sparsity_pattern"),
        ({"altup.active_idx": 1}, "altup_active_idx = 1"),
        ({"embedding_length_per_layer_input": 64}, "of the wrong shape"),
        ({"altup.num_inputs": 3}, "2 weights unknown"),
    ],
)
def test_absurd_files_are_one_clear_line(
    gguf: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    full = {f"gemma3n.{key}": value for key, value in changes.items()}
    path = altered(gguf, tmp_path / "bad.gguf", full)
    with pytest.raises(GemeloError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_broken_stacks_are_named(gguf: Path, tmp_path: Path) -> None:
    file = GGUFFile(gguf)
    for shape in ((192, 64), (16, 12, 64)):
        tensors = [
            (
                name,
                shape if name == "altup_proj.weight" else file.shape(name),
                file.format(name),
                lambda name=name: (
                    reshaped(file.tensor(name), shape)  # noqa: B023
                    if name == "altup_proj.weight"
                    else file.tensor(name)
                ),
            )
            for name in file
        ]
        write_gguf(tmp_path / "bad.gguf", file.metadata, tensors)
        with pytest.raises(FileFormatError, match=r"altup_proj.weight has shape \("):
            load_checkpoint(tmp_path / "bad.gguf")


def test_what_cannot_be_loaded_is_not_converted(folder: Path, tmp_path: Path) -> None:
    model = tiny_3n()
    del model.altup_projections[1]
    broken = write_checkpoint(tmp_path / "broken", model)
    for target in ("x.gguf", "x"):
        with pytest.raises(FileFormatError, match=r"altup_projections\.2\.weight"):
            convert(broken, tmp_path / target)
        assert not (tmp_path / target).exists()
    with pytest.raises(InputError, match="safetensors cannot hold q8_0"):
        convert(folder, tmp_path / "y", "q8_0")


def test_weights_are_asked_for_as_they_are_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    original = Safetensors.tensor

    def tensor(self: Safetensors, name: str) -> Packed:
        asked.append(name)
        return original(self, name)

    monkeypatch.setattr(Safetensors, "tensor", tensor)
    seen: list[int] = []
    convert(folder, tmp_path / "t.gguf", progress=lambda done, of: seen.append(len(asked)))
    steps = [after - before for before, after in zip(seen, seen[1:], strict=False)]
    assert max(steps) == 3  # a stack; anything else is one tensor, or none where it is zeros
    assert steps.count(3) == 2 and set(steps) == {0, 1, 3}


@pytest.mark.usefixtures("exact")
def test_quantised_stacks_load(tmp_path: Path) -> None:
    """Converters that quantise everything quantise the stacked AltUp matrices too."""
    convert(write_3n(tmp_path / "hub"), tmp_path / "plain.gguf", "q8_0")
    file = GGUFFile(tmp_path / "plain.gguf")
    stacked = {"altup_proj.weight", "altup_unembd_proj.weight"}

    def with_stacks(name: str, made: Callable[[Packed], Packed], format: str) -> Path:
        tensors = [
            (
                name,
                file.shape(name),
                FORMATS[format] if name in stacked else file.format(name),
                lambda n=name: made(file.tensor(n)) if n in stacked else file.tensor(n),
            )
            for name in file.names()
        ]
        write_gguf(tmp_path / name, dict(file.metadata), tensors)
        return tmp_path / name

    packed = with_stacks("packed.gguf", lambda stack: stack, "q8_0")
    assert GGUFFile(packed).format("altup_proj.weight").name == "q8_0"

    def in_steps(stack: Packed) -> Packed:
        return Packed.of(unpack(converted(stack, FORMATS["q8_0"])))

    steps = with_stacks("steps.gguf", in_steps, "f32")
    found, model = scores(load_checkpoint(packed)), load_checkpoint(steps)
    allowed = 1e-9  # the same numbers in float32, to the last bits
    assert (
        divergence(found, scores(model))
        < allowed
        < divergence(found, scores(load_checkpoint(file.path)))
    )
    decoder = decoder_module(model.config, model.weights)
    with torch.inference_mode(), off(decoder):
        assert divergence(found, scores(decoder)) > allowed  # type: ignore[arg-type]
