"""Loading: both kinds of file give one model, formats are what they say, errors are clear."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from gemelo.api import load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import WeightFormat, load_checkpoint
from gemelo.checkpoints.modules import activation_dtype
from gemelo.config import Gemma3Config
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels import native
from gemelo.kernels.quants import FORMATS, Floats, unpack
from gemelo.weights.safetensors import Safetensors, write_safetensors
from tests.conftest import HEADS_OF_64, TINY, tiny_model, write_checkpoint
from tests.gemma3n import write_tensors
from tests.native import needs_native
from tests.tensors import held

IDS = [2, *range(300, 330)]


def scores(path: Path, format: WeightFormat = "native") -> Floats:
    return load(path, format=format).scores(IDS)


def close(a: Floats, b: Floats, share: float) -> bool:
    return bool(np.abs(a - b).max() <= share * np.abs(b).max())


def plain(config: Gemma3Config) -> Floats:
    """By the modules that the weights were made in."""
    model = tiny_model(config)
    with torch.inference_mode():
        hidden = model(torch.tensor([IDS]), torch.arange(len(IDS))[None])
        found: Floats = model.logits(hidden)[0].numpy()
    return found


def test_a_directory_is_the_model_it_was_written_from(tiny_directory: Path) -> None:
    assert close(scores(tiny_directory), plain(HEADS_OF_64), 1e-5)


def test_gguf_and_directory_agree(tiny_directory: Path, tmp_path: Path) -> None:
    convert(tiny_directory, tmp_path / "wide.gguf", "f32")
    assert close(scores(tmp_path / "wide.gguf"), scores(tiny_directory), 1e-5)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(("format", "share"), [("bf16", 0.05), ("q8_0", 0.05), ("q4_0", 0.6)])
def test_formats_differ_as_much_as_they_should(
    tiny_directory: Path, format: WeightFormat, share: float
) -> None:
    exact, rounded = scores(tiny_directory), scores(tiny_directory, format)
    assert not np.array_equal(exact, rounded)
    assert close(rounded, exact, share)


@needs_native
@pytest.mark.parametrize("format", ["native", "q4_0"])
def test_kernels_differ_by_activations_of_a_byte(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, format: WeightFormat
) -> None:
    rounded = scores(tiny_checkpoint, format)
    monkeypatch.setattr(native, "module", None)
    exact = scores(tiny_checkpoint, format)
    assert not np.array_equal(exact, rounded)
    assert close(rounded, exact, 0.05)


@pytest.mark.usefixtures("exact")
def test_quantised_layers_are_the_widened_ones(tiny_checkpoint: Path) -> None:
    assert close(scores(tiny_checkpoint), scores(tiny_checkpoint, "f32"), 1e-5)
    weight = load_checkpoint(tiny_checkpoint).weights["layers.0.mlp.gate_proj.weight"]
    assert weight.format.name == "q8_0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_widened_on_use(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model(TINY["one-kv-head"])
    folder = write_checkpoint(tmp_path / "half", model, dtype)
    checkpoint = load_checkpoint(folder)
    assert activation_dtype(checkpoint.weights) == (
        torch.float32 if dtype == torch.float16 else torch.bfloat16
    )
    stored = "f16" if dtype == torch.float16 else "bf16"
    assert {weight.format.name for weight in checkpoint.weights.values()} == {stored}
    held = sum(weight.numel() for weight in model.state_dict().values())
    assert checkpoint.weights.nbytes == 2 * held
    assert close(scores(folder), plain(TINY["one-kv-head"]), 0.1)


def test_shards_are_one_checkpoint(tiny_directory: Path, tmp_path: Path) -> None:
    source = Safetensors(tiny_directory)
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_directory, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = [
        (name, source.shape(name), FORMATS["f32"], lambda name=name: source.tensor(name))
        for name in source.names()
    ]
    write_safetensors(folder, tensors, max_shard_bytes=200_000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert np.array_equal(scores(folder), scores(tiny_directory))
    next(iter(sorted(folder.glob("*.safetensors")))).unlink()
    with pytest.raises(GemeloError, match="model-00001"):
        load_checkpoint(folder)


def edited(directory: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_missing_and_unknown_weights_are_listed(tiny_directory: Path, tmp_path: Path) -> None:
    deeper = edited(tiny_directory, tmp_path / "deep", num_hidden_layers=8, layer_types=None)
    with pytest.raises(FileFormatError, match=r"13 weights missing: language_model\.layers\.7\."):
        load_checkpoint(deeper)
    shallow = edited(tiny_directory, tmp_path / "shallow", num_hidden_layers=6, layer_types=None)
    with pytest.raises(FileFormatError, match=r"13 weights unknown: language_model\.layers\.6\."):
        load_checkpoint(shallow)
    wide = edited(tiny_directory, tmp_path / "wide", intermediate_size=192)
    with pytest.raises(FileFormatError, match=r"21 weights of the wrong shape.*instead of"):
        load_checkpoint(wide)


def test_a_head_that_repeats_the_embedding_is_dropped_and_another_is_run(tmp_path: Path) -> None:
    model = tiny_model(TINY["one-kv-head"])
    model.lm_head = torch.nn.Linear(40, 512, bias=False)  # type: ignore[assignment]
    model.lm_head.weight = torch.nn.Parameter(model.embed_tokens.weight.clone())
    same = write_checkpoint(tmp_path / "same", model)
    assert close(scores(same), plain(TINY["one-kv-head"]), 1e-5)
    model.lm_head.weight.data[3] += 1
    other = write_checkpoint(tmp_path / "other", model)
    assert any("lm_head.weight differs" in notice for notice in load_checkpoint(other).notices)
    assert not load_checkpoint(same).config.to_hf() == load_checkpoint(other).config.to_hf()
    untied = edited(other, tmp_path / "untied", tie_word_embeddings=False)
    assert not load_checkpoint(untied).notices
    assert np.array_equal(scores(untied), scores(other))
    assert not close(scores(untied)[:, 3:4], scores(same)[:, 3:4], 0.1)
    alone = edited(same, tmp_path / "alone", tie_word_embeddings=False)
    assert np.array_equal(scores(alone), scores(same))  # it is the embedding, stored twice


def test_a_head_in_another_dtype_is_compared_by_its_numbers(tmp_path: Path) -> None:
    model = tiny_model(TINY["one-kv-head"])
    folder = write_checkpoint(tmp_path / "same", model, torch.bfloat16)
    source = Safetensors(folder)
    tensors = {name: held(source.tensor(name)).clone() for name in source.names()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].float()
    write_tensors(folder, tensors)
    assert load_checkpoint(folder).config.tie_word_embeddings
    tensors["lm_head.weight"][5, 7] += 1
    write_tensors(folder, tensors)
    assert not load_checkpoint(folder).config.tie_word_embeddings


@pytest.mark.parametrize("level", ["top", "text", "both", "neither"])
def test_a_multimodal_head_is_untied_at_either_level(
    eyed_directory: Path, tmp_path: Path, level: str
) -> None:
    folder = shutil.copytree(eyed_directory, tmp_path / "eyed")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"]):
        part.pop("tie_word_embeddings", None)
    if level in ("top", "both"):
        config["tie_word_embeddings"] = False
    if level in ("text", "both"):
        config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    source = Safetensors(folder)
    tensors = {name: held(source.tensor(name)).clone() for name in source.names()}
    embedding = next(w for name, w in tensors.items() if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = head = embedding.flip(0)
    write_tensors(folder, tensors)
    checkpoint = load_checkpoint(folder, "f32")
    assert np.array_equal(unpack(checkpoint.weights["lm_head.weight"]), head.float().numpy())
    assert bool(checkpoint.notices) == (level == "neither")
    convert(folder, tmp_path / "again", "f32")
    assert not load_checkpoint(tmp_path / "again").config.tie_word_embeddings


def test_a_head_that_is_promised_and_missing_is_said(tiny_directory: Path, tmp_path: Path) -> None:
    folder = edited(tiny_directory, tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(FileFormatError, match=r"no lm_head\.weight; set it to true"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nowhere", InputError, "no such file"),
        ("empty-folder", InputError, "config.json"),
        ("empty.gguf", FileFormatError, "empty.gguf"),
        ("text.gguf", FileFormatError, "text.gguf"),
        ("x.safetensors", InputError, "give the directory"),
        ("bad-json", FileFormatError, "not readable as JSON"),
        ("list-json", FileFormatError, "expected a JSON object"),
        ("llama", UnsupportedError, "model_type 'llama'"),
    ],
)
def test_what_is_not_a_model_is_said_in_one_line(
    tmp_path: Path, name: str, error: type[GemeloError], message: str
) -> None:
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("hello, I am a text file and no model at all\n" * 10)
    (tmp_path / "x.safetensors").touch()
    for folder, text in (
        ("bad-json", "{"),
        ("list-json", "[]"),
        ("llama", '{"model_type": "llama"}'),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(text)
    with pytest.raises(error, match=message) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_nan_weights_are_named_when_they_are_used(tiny_directory: Path, tmp_path: Path) -> None:
    model = tiny_model(HEADS_OF_64)
    model.layers[4].self_attn.o_proj.weight[0, 0] = float("nan")
    folder = write_checkpoint(tmp_path / "nan", model)
    with pytest.raises(FileFormatError, match=r"layers\.4\.self_attn\.o_proj\.weight holds NaN"):
        load(folder).generate([2, 5, 6], max_tokens=2)
    with pytest.raises(GemeloError, match=r"layers\.4\.self_attn\.o_proj\.weight"):
        load_checkpoint(folder, "q8_0")


def test_settings_of_a_run_are_checked(tiny_directory: Path) -> None:
    with pytest.raises(InputError, match="format 'q9'"):
        load(tiny_directory, format="q9")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="threads = 0"):
        load(tiny_directory, threads=0)
    for device in ("tpu", "mps", "meta", "cpu:x"):
        with pytest.raises(InputError, match=f"device '{device}' is not one of auto, cpu, cuda"):
            load(tiny_directory, device=device)
    with pytest.raises(GemeloError, match="257"):
        load(tiny_directory, context=257)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("format", ["native", "f32"])
def test_without_native_kernels_a_model_says_what_is_lost(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, format: WeightFormat
) -> None:
    (notice,) = load_checkpoint(tiny_checkpoint, format).notices
    assert "NumPy computes" in notice and "install gemelo again" in notice
    monkeypatch.setenv("GEMELO_ISA", "reference")
    assert not load_checkpoint(tiny_checkpoint, format).notices, "it was asked for"


def test_the_decoder_is_finished_beside_the_tokenizer_and_no_thread_stays(
    tiny_directory: Path,
) -> None:
    before, settled = threading.enumerate(), list[object]()
    checkpoint = load_checkpoint(tiny_directory, finish=lambda *found: settled.extend(found))
    assert settled == [checkpoint.source, checkpoint.weights]
    assert checkpoint.tokenizer.encode("the")
    assert threading.enumerate() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError])
def test_what_ends_loading_leaves_no_thread(
    tiny_directory: Path, error: type[BaseException]
) -> None:
    before = threading.enumerate()

    def interrupted(source: object, weights: object) -> None:
        raise error("while weights move")

    with pytest.raises(error, match="while weights move"):
        load_checkpoint(tiny_directory, finish=interrupted)
    assert threading.enumerate() == before


def test_a_broken_tokenizer_beside_whole_weights_is_an_error(
    tiny_directory: Path, tmp_path: Path
) -> None:
    broken = edited(tiny_directory, tmp_path / "broken")
    for file in broken.glob("tokenizer*"):
        file.unlink()
    (broken / "tokenizer.model").write_bytes(b"no message")
    before = threading.enumerate()
    with pytest.raises(FileFormatError, match="tokenizer.model"):
        load(broken)
    assert threading.enumerate() == before
