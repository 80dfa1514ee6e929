"""Gemma 3n's eye and ear beside a GGUF: written, found, read back exactly, refused where wrong."""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import gemelo
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.formats import reshaped
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.mmproj_gemma3n import NAMES, file_shape
from gemelo.checkpoints.plan import TargetFormat
from gemelo.config import Gemma3nConfig
from gemelo.errors import GemeloError, InputError, UnsupportedError
from gemelo.inputs.prompt.media_loader import VisionOptions
from gemelo.kernels.quants import FORMATS, unpack
from gemelo.models.multimodal import Gemma3nTowers, Towers, towers_of
from gemelo.weights import names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import TensorToWrite, write_gguf
from tests.gemma3n import TINY_3N, write_3n
from tests.mmproj import loaded, rewritten, vision
from tests.multimodal import AWAKE, EYED, awake, photograph, recording, write

BOTH = "clip.vision.projector_type", "clip.audio.projector_type"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("hub") / "tiny-awake", AWAKE)


@pytest.fixture(scope="module")
def pair(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A text model in GGUF and its towers beside it, exact."""
    folder = tmp_path_factory.mktemp("pair")
    convert(hub, folder / "tiny.gguf", text_only=True)
    convert(hub, folder / "mmproj-tiny.gguf", mmproj=True)
    return folder / "tiny.gguf", folder / "mmproj-tiny.gguf"


def towers(module: Towers) -> dict[str, torch.Tensor]:
    assert isinstance(module, Gemma3nTowers)
    return {n: p for n, p in module.state_dict().items() if not n.startswith("language_model.")}


def test_eye_and_ear_come_back_exactly(pair: tuple[Path, Path]) -> None:
    checkpoint = load_checkpoint(pair[0])
    config = checkpoint.config
    assert isinstance(config, Gemma3nConfig)
    assert (config.vision, config.audio) == (AWAKE.vision, AWAKE.audio)
    same = ("vision_config", "audio_config", "eos_token_id")  # the first two in other words
    raw: dict[str, Any] = {field: vars(AWAKE)[field] for field in same}
    assert dataclasses.replace(config, **raw) == AWAKE  # ids and counts too
    wanted, found = towers(awake()), towers(loaded(checkpoint))
    assert found.keys() == wanted.keys()
    for name, weight in found.items():
        assert weight.dtype == torch.float32 and torch.equal(weight, wanted[name]), name
    assert checkpoint.notices == load_checkpoint(pair[0], mmproj=pair[1]).notices


def test_what_it_sees_and_hears_is_the_same(pair: tuple[Path, Path], hub: Path) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 3, "ignore_eos": True}
    content = [
        {"type": "image", "image": photograph()},
        {"type": "audio", "audio": recording(0.5)},
        {"type": "text", "text": "the"},
    ]
    beside, directory = gemelo.load(pair[0]), gemelo.load(hub)
    prompt = directory.prompt([{"role": "user", "content": content}], VisionOptions(image_size=256))
    assert AWAKE.eoi_token_id in prompt.ids and AWAKE.audio_token_id in prompt.ids
    wanted = directory.generate(prompt, **settings)
    assert beside.generate(prompt, **settings).token_ids == wanted.token_ids
    sound = recording(0.5)
    # Not to the bit: a product's sums may depend on where in memory its weights begin.
    heard, expected = beside.encode_audio(sound), directory.encode_audio(sound)
    assert float((heard - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_the_published_size_has_a_name_and_a_shape_for_everything() -> None:
    config = Gemma3nConfig(vision_config={}, audio_config={})
    with torch.device("meta"):
        shapes = {n: tuple(w.shape) for n, w in towers(towers_of(config)).items()}
    written = {names.to_gguf(n, NAMES): file_shape(n, s) for n, s in shapes.items()}
    assert len(written) == len(shapes) == 825
    assert all(names.from_gguf(g, NAMES) == n for g, n in zip(written, shapes, strict=True))
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 12)
    for name, other in zip(shapes, written, strict=True):
        if ".blocks." in name:  # what llama.cpp's converter does beside its table
            assert other == name.replace("vision_tower.timm_model.blocks.", "v.blk.")
        elif ".norm.weight" not in name or "subsample" not in name:
            theirs = f"model.{name}".replace("model.audio_tower.conformer.", "conformer.layers.")
            assert known.get_name(theirs, (".weight", ".bias")) == other
    assert written["v.conv_stem.conv.bias"] == (1, 64, 1, 1)
    assert written["v.blk.2.9.attn.key.down_conv.weight"] == (640, 1, 3, 3)
    assert written["v.blk.3.38.layer_scale.gamma"] == (1, 1280, 1, 1)
    assert written["a.conv1d.1.norm.weight"] == (32,)
    assert written["a.blk.11.conv_dw.weight"] == (1536, 1, 5)
    assert written["mm.input_projection.weight"] == (2048, 2048)
    assert written["mm.a.embedding.weight"] == (128, 1536)


def test_it_is_what_other_readers_expect(pair: tuple[Path, Path]) -> None:
    reader = gguf.GGUFReader(pair[1])
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert facts["general.architecture"] == "clip" and facts["general.type"] == "mmproj"
    assert [facts[key] for key in BOTH] == ["gemma3nv", "gemma3na"]
    assert facts["clip.has_vision_encoder"] is True and facts["clip.has_audio_encoder"] is True
    assert facts["clip.vision.image_size"] == 768
    assert facts["clip.vision.image_mean"] == [0, 0, 0]
    assert facts["clip.vision.image_std"] == [1, 1, 1]
    assert facts["clip.vision.projection_dim"] == facts["clip.audio.projection_dim"] == 64
    assert facts["clip.audio.block_count"] == 2 and facts["clip.audio.num_mel_bins"] == 128
    assert facts["clip.audio.feed_forward_length"] == 128
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors["v.conv_stem.conv.bias"].shape) == [1, 1, 64, 1]
    assert np.array_equal(
        tensors["a.blk.1.per_dim_scale"].data,
        towers(awake())["audio_tower.conformer.1.attention.attn.per_dim_scale"],
    )


def test_only_what_differs_is_said_in_the_configs_words(pair: tuple[Path, Path]) -> None:
    own = {
        "clip.vision.channel_multiplier",
        "clip.vision.msfa_output_resolution",
        "clip.audio.conf_attention_chunk_size",
        "clip.audio.conf_attention_context_left",
        "clip.vision_soft_tokens_per_image",
        "clip.audio_soft_tokens_per_image",
        "clip.boi_token_id",
        "clip.boa_token_id",
    }
    fields = {"vision_config", "audio_config", *vars(AWAKE), *vars(AWAKE.vision)}
    fields |= set(vars(AWAKE.audio))
    keys = GGUFFile(pair[1]).metadata
    found = {key for key in keys if key.rpartition(".")[2] in fields}
    assert found - {"general.architecture"} == own


@pytest.mark.parametrize("format", ["f16", "bf16", "q8_0"])
def test_other_formats(hub: Path, tmp_path: Path, format: TargetFormat) -> None:
    convert(hub, tmp_path / "tiny.gguf", text_only=True)
    notices = convert(hub, tmp_path / "mmproj.gguf", format, mmproj=True).notices
    assert [n for n in notices if "llama.cpp aborts" in n] == list(notices)
    assert bool(notices) == (format == "bf16")
    file = GGUFFile(tmp_path / "mmproj.gguf")
    assert file.format("a.blk.0.attn_q.weight") == FORMATS[format]
    convolution = "f16" if format == "q8_0" else format
    assert file.format("v.blk.0.0.conv_exp.weight") == FORMATS[convolution]
    for name in ("v.conv_stem.conv.weight", "a.blk.0.conv_dw.weight", "v.msfa.norm.weight"):
        assert file.format(name) == FORMATS["f32"]
    found = loaded(load_checkpoint(tmp_path / "tiny.gguf"))
    rounded = copy.deepcopy(awake())
    for name, weight in towers(rounded).items():
        numbers = torch.from_numpy(unpack(file.tensor(names.to_gguf(name, NAMES))))
        weight.copy_(numbers.view_as(weight))
    with torch.inference_mode():
        mel = torch.randn(1, 40, 128, generator=torch.Generator().manual_seed(0))
        ours, steps, exact = (t.encode_audio(mel) for t in (found, rounded, awake()))
        assert apart(ours, steps) < 1e-5 < apart(ours, exact)  # the file's numbers, in floats
        rounded.get_submodule("audio_tower.conformer.0.norm").weight.mul_(1.05)
        assert apart(ours, rounded.encode_audio(mel)) > 1e-3


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_an_eye_or_an_ear_alone(hub: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for gone in ("vision_config", "audio_config"):
        absent: dict[str, Any] = {gone: None}
        config = dataclasses.replace(AWAKE, **absent)
        folder = write(tmp_path / gone, config)
        convert(folder, tmp_path / f"{gone}.gguf", mmproj=True)
        found = load_checkpoint(pair[0], mmproj=tmp_path / f"{gone}.gguf").config
        assert isinstance(found, Gemma3nConfig)
        assert (found.vision, found.audio) == (config.vision, config.audio)


def test_rows_for_ids_are_added_where_a_file_ends_with_the_texts(pair: tuple[Path, Path]) -> None:
    assert GGUFFile(pair[0]).shape("token_embd.weight")[0] == 480
    checkpoint = load_checkpoint(pair[0])
    assert checkpoint.config.vocab_size == 512
    held = unpack(checkpoint.weights["embed_tokens.weight"])
    assert held.shape[0] == 512 and (held[480:] == held[:1]).all()


def test_sides_of_one_are_no_matter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Not every converter gives layer scales four dimensions."""
    file = GGUFFile(pair[1])
    tensors: list[TensorToWrite] = []
    for name in file:
        weight = file.tensor(name)
        if name.endswith("gamma"):
            assert len(weight.shape) == 4
            weight = reshaped(weight, (math.prod(weight.shape),))
        tensors.append((name, weight.shape, weight.format, lambda weight=weight: weight))  # type: ignore[misc]
    write_gguf(tmp_path / "flat.gguf", dict(file.metadata), tensors)
    first, second = (
        towers(loaded(load_checkpoint(pair[0], mmproj=p)))
        for p in (pair[1], tmp_path / "flat.gguf")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"clip__audio__projector_type": "gemma4a"}, "a projector 'gemma4a'"),
        ({"clip__audio__projector_type": "gemma3"}, "a projector 'gemma3'"),
        ({"clip__vision__projector_type": ["a", "b"]}, "a projector"),
        ({"clip__audio__embedding_length": [1, 2]}, "embedding_length is a list"),
        ({"clip__audio__block_count": 3}, "weights missing"),
        ({"clip__audio__block_count": 1}, "weights unknown"),
        ({"clip__audio__block_count": 1 << 23}, "block_count is 8388608, for"),
        ({"clip__audio__embedding_length": 64}, "wrong shape"),
        ({"clip__audio__attention__head_count": 5}, "conf_num_attention_heads = 5"),
        ({"clip__vision__embedding_length": 1024}, "hidden_size = 1024"),
        ({"clip__vision__attention__layer_norm_epsilon": -1.0}, "rms_norm_eps = -1.0"),
        ({"clip__vision__channel_multiplier": "x"}, "channel_multiplier"),
        ({"clip__audio__vocab_offset": 1 << 23}, "its ids reach to 8388624"),
    ],
)
def test_broken_towers_are_told(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    bad = rewritten(pair[1], tmp_path / "bad.gguf", {}, **changes)
    with pytest.raises(GemeloError, match=reason):
        load_checkpoint(pair[0], mmproj=bad)


def test_missing_and_unknown_tensors_are_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    rewritten(pair[1], bad, {"mm.embedding.weight": "mm.other.weight"})
    with pytest.raises(GemeloError, match=r"unknown: mm.other.weight"):
        load_checkpoint(pair[0], mmproj=bad)
    rewritten(pair[1], bad, {"a.conv1d.0.weight": "a.conv1d.0.weights"})
    with pytest.raises(GemeloError, match=r"unknown: a.conv1d.0.weights"):
        load_checkpoint(pair[0], mmproj=bad)


def test_towers_of_the_other_family(pair: tuple[Path, Path], tmp_path: Path) -> None:
    eyed = write(tmp_path / "eyed", EYED)
    convert(eyed, tmp_path / "eyed.gguf", text_only=True)
    with pytest.raises(UnsupportedError, match="for the text model of a Gemma 3n, and eyed"):
        load_checkpoint(tmp_path / "eyed.gguf", mmproj=pair[1])
    shutil.copy(pair[1], tmp_path / "mmproj.gguf")
    checkpoint = load_checkpoint(tmp_path / "eyed.gguf")
    assert not vision(loaded(checkpoint))
    assert checkpoint.notices == ()  # it is another model's, and nobody asked for it


def test_towers_of_another_size(pair: tuple[Path, Path], tmp_path: Path) -> None:
    convert(
        write_3n(tmp_path / "wide", dataclasses.replace(TINY_3N, hidden_size=128)),
        tmp_path / "wide.gguf",
    )
    with pytest.raises(InputError, match="it projects to 64 numbers, and this model takes 128"):
        load_checkpoint(tmp_path / "wide.gguf", mmproj=pair[1])


def test_what_other_converters_say_of_towers_needs_no_word(pair: tuple[Path, Path]) -> None:
    said = {"general.file_type": 1, "clip.use_gelu": True, "clip.audio.block_count": 2}
    path = rewritten(pair[1], pair[1].with_name("said.gguf"), {}, **said)
    assert load_checkpoint(pair[0], mmproj=path).notices == ()
    path = rewritten(pair[1], pair[1].with_name("odd.gguf"), {}, **{"clip.audio.proj_stack": 8})
    assert "clip.audio.proj_stack" in load_checkpoint(pair[0], mmproj=path).notices[-1]


def test_a_list_in_the_place_of_a_number_is_told(pair: tuple[Path, Path]) -> None:
    changes = {"clip.audio.num_mel_bins": np.array([128], np.int32)}
    path = rewritten(pair[1], pair[1].with_name("bad.gguf"), {}, **changes)
    with pytest.raises(GemeloError, match="num_mel_bins is a list"):
        load_checkpoint(pair[0], mmproj=path)
