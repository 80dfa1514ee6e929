"""Gemma 3n from the hub's directories, text only and with towers, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import WeightFormat, load_checkpoint
from gemelo.config import Gemma3nConfig, read_config
from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.kernels.quants import FORMATS
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.multimodal import Gemma3nTowers
from gemelo.weights.mapped import behind
from gemelo.weights.safetensors import Safetensors
from tests.gemma3n import (
    IDS,
    MIXED_3N,
    SOFT_3N,
    TINY_3N,
    Tensors,
    difference,
    noise,
    reference_scores,
    rewritten,
    scores,
    tiny_3n,
    write_3n,
    write_tensors,
)
from tests.mmproj import loaded
from tests.multimodal import AWAKE, awake
from tests.multimodal import write as write_awake
from tests.tensors import held

PER_LAYER_EMBEDDING = "embed_tokens_per_layer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3n(tmp_path_factory.mktemp("hub") / "tiny")


# ---- directories ---------------------------------------------------------------------------------


def test_a_directory_is_what_the_reference_reads(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    assert checkpoint.notices == () and checkpoint.config == TINY_3N
    assert difference(scores(checkpoint), scores(tiny_3n())) == 0
    assert difference(scores(checkpoint), reference_scores(folder)) <= 3e-4


def test_mixed_widths_are_what_the_reference_reads(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "mixed", MIXED_3N)
    assert difference(scores(load_checkpoint(folder)), reference_scores(folder)) <= 3e-4


@pytest.mark.parametrize("format", ["bf16", "f32", "q8_0", "q4_0"])
def test_the_table_stays_as_the_file_has_it(tmp_path: Path, format: WeightFormat) -> None:
    folder = write_3n(tmp_path / "half", dtype=torch.bfloat16)
    exact = load_checkpoint(folder)
    table = exact.weights[f"{PER_LAYER_EMBEDDING}.weight"]
    assert exact.weights["norm.weight"].format == table.format == FORMATS["bf16"]
    file_bytes = (folder / "model.safetensors").stat().st_size
    assert [len(mapped) for mapped in behind([table])] == [file_bytes]  # a view of the map
    other = load_checkpoint(folder, format)
    kept = other.weights[f"{PER_LAYER_EMBEDDING}.weight"]
    assert kept.format == table.format and [len(m) for m in behind([kept])] == [file_bytes]
    assert np.array_equal(kept.blocks, table.blocks)
    assert torch.isfinite(scores(other)).all()


def test_four_bits_leave_eight_to_what_all_streams_go_through(folder: Path) -> None:
    weights, layer = load_checkpoint(folder, "q4_0").weights, "layers.3"
    formats = {
        "q8_0": (
            "embed_tokens",
            "altup_projections.1",
            "per_layer_model_projection",
            f"{layer}.laurel.linear_right",
        ),
        "q4_0": (f"{layer}.{leaf}" for leaf in ("mlp.up_proj", "per_layer_projection")),
        "f32": (f"{layer}.altup.prediction_coefs",),
    }
    for format, names in formats.items():
        assert {weights[f"{name}.weight"].format.name for name in names} == {format}
    assert weights[f"{layer}.self_attn.q_proj.weight"].format.name == "q4_0"
    far = difference(scores(load_checkpoint(folder, "q4_0")), scores(tiny_3n()))
    near = difference(scores(load_checkpoint(folder, "q8_0")), scores(tiny_3n()))
    assert 0 < near < far / 2


def test_a_head_of_its_own_is_run(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "untied")
    head = torch.randn(TINY_3N.vocab_size, TINY_3N.hidden_size) * 0.1
    rewritten(folder, {"lm_head.weight": head}, tie_word_embeddings=False)
    theirs = reference_scores(folder)
    assert difference(scores(load_checkpoint(folder)), theirs) < 3e-4
    convert(folder, tmp_path / "untied.gguf", "f32")
    assert difference(scores(load_checkpoint(tmp_path / "untied.gguf")), theirs) < 3e-4


def test_dead_keys_change_nothing_and_are_left_out(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "dead")
    clean = scores(load_checkpoint(folder))
    rewritten(folder, noise())
    checkpoint = load_checkpoint(folder)
    assert torch.equal(scores(checkpoint), clean)
    assert difference(clean, reference_scores(folder)) <= 3e-4
    (detail,) = checkpoint.details  # and no notice: nearly every file is so
    assert "layers 7 to 11" in detail and "15 weights" in detail and checkpoint.notices == ()
    written = convert(folder, tmp_path / "again")
    whole, again = (set(Safetensors(path).names()) for path in (folder, tmp_path / "again"))
    gone = {
        f"layers.{n}.self_attn.{x}." for n in range(7, 12) for x in ("k_proj", "v_proj", "k_norm")
    }
    assert written.notices == () and again < whole and len(whole - again) == 15
    assert all(any(part in name for part in gone) for name in whole - again)
    assert load_checkpoint(tmp_path / "again").details == ()


def test_a_table_padded_to_the_embedding_is_cut(tmp_path: Path) -> None:
    ids = [*IDS, 500]  # past the table: its row 0 is taken
    folder = write_3n(tmp_path / "soft", SOFT_3N)
    exact = scores(load_checkpoint(folder), ids)
    assert difference(exact, reference_scores(folder, ids)) <= 3e-4
    table = held(Safetensors(folder).tensor(f"model.{PER_LAYER_EMBEDDING}.weight"))
    padded = torch.cat([table, torch.zeros(32, table.shape[1])])
    rewritten(folder, {f"model.{PER_LAYER_EMBEDDING}.weight": padded})
    checkpoint = load_checkpoint(folder)
    assert checkpoint.notices == ()
    assert "32 rows of embed_tokens_per_layer past the 480th" in checkpoint.details[0]
    assert checkpoint.weights[f"{PER_LAYER_EMBEDDING}.weight"].shape == tuple(table.shape)
    assert torch.equal(scores(checkpoint, ids), exact)
    convert(folder, tmp_path / "cut")
    assert load_checkpoint(tmp_path / "cut").details == checkpoint.notices == ()
    rewritten(folder, {f"model.{PER_LAYER_EMBEDDING}.weight": padded[:500].clone()})
    with pytest.raises(FileFormatError, match=r"embed_tokens_per_layer.weight \(500, 384\)"):
        load_checkpoint(folder)


def test_layer_types_of_a_sliced_checkpoint_are_repaired(folder: Path, tmp_path: Path) -> None:
    """The slicing notebook drops blocks of five layers and leaves the list as it was."""
    types = ["full_attention" if i % 5 == 4 else "sliding_attention" for i in range(17)]
    cut = write_3n(tmp_path / "cut")
    rewritten(cut, {}, layer_types=types)
    checkpoint = load_checkpoint(cut)
    assert checkpoint.config == TINY_3N
    assert "17 layer_types for 12 layers" in checkpoint.notices[0]
    assert torch.equal(scores(checkpoint), scores(load_checkpoint(folder)))
    for broken in (types[:11], [*types[1:], types[0]], [*types[:16], "full_attention"]):
        rewritten(cut, {}, layer_types=broken)
        with pytest.raises(FileFormatError, match=f"{len(broken)} layer_types"):
            load_checkpoint(cut)


def test_a_repeated_head_is_dropped_and_another_is_said(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "head")
    head = held(Safetensors(folder).tensor("model.embed_tokens.weight")).clone()
    rewritten(folder, {"lm_head.weight": head})
    assert difference(scores(load_checkpoint(folder)), scores(tiny_3n())) == 0
    rewritten(folder, {"lm_head.weight": head + 1})
    assert any("lm_head.weight differs" in notice for notice in load_checkpoint(folder).notices)


# ---- towers --------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A multimodal checkpoint in the hub's layout, with the eye in bfloat16."""
    folder = write_awake(tmp_path / "hub", AWAKE)
    source = Safetensors(folder)
    tensors = {name: held(source.tensor(name)).clone() for name in source.names()}
    write_tensors(folder, tensors | towers())
    return folder


def towers() -> Tensors:
    return {
        f"model.{name}": weight.to(torch.bfloat16 if "vision" in name else torch.float32)
        for name, weight in awake().state_dict().items()
        if not name.startswith("language_model.")
    }


def decoder() -> Gemma3n:
    return awake().language_model


def test_towers_are_loaded_as_they_lie_in_the_file(hub: Path) -> None:
    checkpoint = load_checkpoint(hub)
    assert checkpoint.config == AWAKE and checkpoint.config.is_multimodal
    assert checkpoint.notices == ()
    assert torch.equal(scores(checkpoint), scores(decoder()))
    made = loaded(checkpoint)
    assert isinstance(made, Gemma3nTowers)
    name = "audio_tower.conformer.0.ffw_layer_start.ffw_layer_1.weight"
    ear = made.get_parameter(name)
    assert ear.data_ptr() == checkpoint.source.tensor(name).address  # a view of the map
    file_bytes = (hub / "model.safetensors").stat().st_size
    assert [len(m) for m in behind([checkpoint.source.tensor(name)])] == [file_bytes]
    assert made.vision_tower.timm_model.msfa.norm.weight.dtype == torch.float32  # a mixture


@pytest.mark.parametrize("format", ["native", "q8_0", "q4_0", "bf16", "f32"])
def test_towers_compute_in_one_type(tmp_path: Path, format: WeightFormat) -> None:
    made = loaded(load_checkpoint(write_awake(tmp_path / "half", AWAKE, torch.bfloat16), format))
    kinds = {p.dtype for p in made.parameters()}
    assert kinds == {torch.float32 if format == "f32" else torch.bfloat16}
    with torch.inference_mode():
        assert torch.isfinite(made.encode_image(torch.rand(1, 3, 256, 256))).all()
        assert torch.isfinite(made.encode_audio(torch.rand(1, 20, 128))).all()
        assert torch.isfinite(made.silence()).all()


def test_towers_that_only_the_config_speaks_of(hub: Path) -> None:
    tensors = {n: t for n, t in towers().items() if "audio" not in n}
    source = Safetensors(hub)
    text = {n: held(source.tensor(n)).clone() for n in source.names() if "language_model" in n}
    write_tensors(hub, text | tensors)
    checkpoint = load_checkpoint(hub)
    assert isinstance(checkpoint.config, Gemma3nConfig) and checkpoint.config.audio is None
    assert checkpoint.notices == (
        "config.json speaks of audio_config, but the files hold no weights for it",
    )


def test_towers_are_copied_byte_for_byte(hub: Path, tmp_path: Path) -> None:
    convert(hub, tmp_path / "copy", "f16")
    copy = Safetensors(tmp_path / "copy")
    for name, weight in towers().items():
        found = held(copy.tensor(name))
        assert found.dtype == weight.dtype and torch.equal(found, weight)
    assert copy.tensor("model.language_model.norm.weight").format == FORMATS["f16"]
    before, after = (
        json.loads((path / "config.json").read_text()) for path in (hub, tmp_path / "copy")
    )
    assert after.pop("torch_dtype") == "float16"
    assert after == before and after["audio_config"]["conf_num_hidden_layers"] == 2


def test_towers_are_left_out_only_when_told_to(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="text_only=True"):
        convert(hub, tmp_path / "text.gguf")
    for target in (tmp_path / "text.gguf", tmp_path / "text"):
        convert(hub, target, text_only=True)
        checkpoint = load_checkpoint(target)
        assert checkpoint.config.model_type == "gemma3n_text"
        rows = checkpoint.config.vocab_size  # a GGUF has those of text alone
        assert torch.equal(scores(checkpoint), scores(decoder())[:, :rows])
    assert difference(scores(decoder()), reference_scores(tmp_path / "text")) <= 3e-4


def test_unknown_weights_of_a_tower_are_listed(hub: Path) -> None:
    name = "model.audio_tower.conformer.0.attention.attn.q_proj.bias"
    rewritten(hub, {name: torch.zeros(3)})
    with pytest.raises(FileFormatError, match=f"1 weights unknown: {name}"):
        load_checkpoint(hub)


def test_the_published_layout_of_a_config_comes_back(hub: Path) -> None:
    config = load_checkpoint(hub).config
    assert read_config(config.to_hf()) == config and hash(config) == hash(config)
    assert config.eos_token_id == (1, 106)
