"""The eye's own file beside a GGUF: written, found, read back, and refused where it is wrong."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import gemelo
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.mmproj import siglip_values
from gemelo.checkpoints.plan import TargetFormat
from gemelo.config import Gemma3Config
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.kernels.quants import FORMATS
from gemelo.weights.gguf import GGUFFile
from tests.mmproj import loaded, rewritten, vision
from tests.multimodal import EYED, eyed, photograph, write


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("hub") / "tiny-eyed", EYED)


@pytest.fixture
def pair(hub: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A text model in GGUF and its eye beside it, exact."""
    model, eye = tmp_path / "tiny.gguf", tmp_path / "mmproj-tiny.gguf"
    convert(hub, model, text_only=True)
    convert(hub, eye, mmproj=True)
    return model, eye


def test_an_eye_comes_back(pair: tuple[Path, Path]) -> None:
    checkpoint = load_checkpoint(pair[0])
    assert isinstance(checkpoint.config, Gemma3Config) and checkpoint.notices == ()
    assert checkpoint.config.vision == EYED.vision
    assert checkpoint.config.mm_tokens_per_image == 16
    assert checkpoint.config.image_token_index == EYED.image_token_index
    wanted = vision(eyed())
    for name, weight in vision(loaded(checkpoint)).items():
        tolerance = 1e-3 if name.endswith("projection_weight") else 1e-6  # float16, and 1 + w
        assert torch.allclose(weight.float(), wanted[name], atol=tolerance, rtol=tolerance), name


def test_it_is_what_other_readers_expect(pair: tuple[Path, Path]) -> None:
    reader = gguf.GGUFReader(pair[1])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == len(vision(eyed()))
    projection = tensors["mm.input_projection.weight"]
    assert projection.tensor_type == gguf.GGMLQuantizationType.F16
    assert list(projection.shape) == [96, 32]  # the decoder's width first
    assert list(tensors["v.patch_embd.weight"].shape) == [4, 4, 3, 32]
    assert tensors["v.position_embd.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    norm = torch.from_numpy(np.array(tensors["mm.soft_emb_norm.weight"].data))
    held = vision(eyed())["multi_modal_projector.mm_soft_emb_norm.weight"]
    assert torch.allclose(norm, held + 1)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    assert facts["general.architecture"] == "clip" and facts["general.type"] == "mmproj"
    assert facts["clip.projector_type"] == "gemma3" and facts["clip.has_vision_encoder"] is True
    assert facts["clip.vision.block_count"] == 2 and facts["clip.vision.projection_dim"] == 96
    assert facts["clip.vision.projector.scale_factor"] == 2
    assert facts["clip.vision.image_mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("format", ["f16", "bf16", "q8_0"])
def test_other_formats(hub: Path, tmp_path: Path, format: TargetFormat) -> None:
    convert(hub, tmp_path / "tiny.gguf", text_only=True)
    convert(hub, tmp_path / "mmproj.gguf", format, mmproj=True)
    file = GGUFFile(tmp_path / "mmproj.gguf")
    assert file.format("v.blk.0.attn_q.weight") == FORMATS[format]
    down = "f16" if format == "q8_0" else format  # rows of 48 are no whole blocks of 32
    assert file.format("v.blk.0.ffn_down.weight") == FORMATS[down]
    towers = loaded(load_checkpoint(tmp_path / "tiny.gguf"))
    with torch.inference_mode():
        pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        ours, exact = towers.encode_image(pixels), eyed().encode_image(pixels)
    assert 0 < float((ours - exact).abs().max() / exact.abs().max()) < 0.05


def test_a_picture_is_read_by_a_gguf(pair: tuple[Path, Path], hub: Path) -> None:
    content = [{"type": "image", "image": photograph()}, {"type": "text", "text": "the"}]
    model = gemelo.load(pair[0])
    assert model.encode_image(photograph()).shape == (16, 96)
    alone = pair[0].parent / "alone"
    alone.mkdir()
    shutil.copy(pair[0], alone / "tiny.gguf")
    blind = gemelo.load(alone / "tiny.gguf")
    with pytest.raises(UnsupportedError, match="no vision tower"):
        blind.encode_image(photograph())
    told = gemelo.load(alone / "tiny.gguf", mmproj=pair[1])
    prompt = told.media_loader()
    assert prompt.modalities.image is not None and prompt.modalities.image.num_tokens == 16
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 3, "ignore_eos": True}
    wanted = gemelo.load(hub).prompt([{"role": "user", "content": content}])
    found = told.generate(wanted, **settings)
    assert found.token_ids == model.generate(wanted, **settings).token_ids


def test_swapped_names_of_early_converters(pair: tuple[Path, Path], tmp_path: Path) -> None:
    swaps = {}
    for layer in (0, 1):
        for leaf in ("weight", "bias"):
            up, down = (f"v.blk.{layer}.ffn_{way}.{leaf}" for way in ("up", "down"))
            swaps |= {up: down, down: up}
    early = rewritten(pair[1], tmp_path / "early.gguf", swaps)
    first, second = (
        vision(loaded(load_checkpoint(pair[0], mmproj=eye))) for eye in (pair[1], early)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"general__architecture": "gemma3"}, "is no mmproj file"),
        ({"clip__projector_type": "pixtral"}, "a projector 'pixtral'"),
        ({"clip__vision__image_mean": np.full(3, 0.48, np.float32)}, "image_mean is .0.47999"),
        ({"clip__vision__image_std": 1.0}, "image_std is .1.0"),
        ({"clip__use_silu": True}, "use_silu is .True"),
        ({"clip__use_gelu": False}, "use_gelu is .False"),
        ({"clip__vision__block_count": 3}, "weights missing"),
        ({"clip__vision__block_count": 0}, "num_hidden_layers = 0"),
        ({"clip__vision__block_count": "x"}, "num_hidden_layers = 'x'"),
        ({"clip__vision__attention__head_count": 5}, "do not divide evenly"),
        ({"clip__vision__patch_size": 5}, "do not divide evenly"),
        ({"clip__vision__projector__scale_factor": 0}, "scale_factor is 0"),
        ({"clip__vision__attention__layer_norm_epsilon": -1.0}, "epsilon is -1.0"),
    ],
)
def test_broken_eyes_are_told(
    pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    bad = rewritten(pair[1], tmp_path / "bad.gguf", {}, **changes)
    with pytest.raises(GemeloError, match=reason):
        load_checkpoint(pair[0], mmproj=bad)


def test_what_does_not_fit(pair: tuple[Path, Path], tmp_path: Path, tiny_checkpoint: Path) -> None:
    other = dataclasses.replace(EYED, hidden_size=64)
    wide = write(tmp_path / "other", other)
    convert(wide, tmp_path / "other.gguf", text_only=True)
    with pytest.raises(InputError, match="the vision tower of another model: it projects 32 to 96"):
        load_checkpoint(tmp_path / "other.gguf", mmproj=pair[1])
    shutil.copy(pair[1], tmp_path / "mmproj-of-another.gguf")
    beside = load_checkpoint(tmp_path / "other.gguf")
    assert beside.notices == () and not beside.config.is_multimodal
    with pytest.raises(UnsupportedError, match="gives a vision tower to a text model of Gemma 3"):
        load_checkpoint(wide, mmproj=pair[1])
    with pytest.raises(UnsupportedError, match="gemma3_text has neither"):
        convert(tiny_checkpoint, tmp_path / "x.gguf", mmproj=True)
    with pytest.raises(InputError, match="ends in .gguf"):
        convert(wide, tmp_path / "folder", mmproj=True)
    with pytest.raises(FileFormatError):
        load_checkpoint(pair[0], mmproj=Path(__file__))


def test_key_values_of_a_vision_tower() -> None:
    vision = EYED.vision
    assert vision is not None
    assert siglip_values(EYED, vision, "x")["clip.vision.image_size"] == 32


def test_bytes_behind_an_eye_are_told(pair: tuple[Path, Path]) -> None:
    with pair[1].open("ab") as file:
        file.write(b"rubbish!")
    (notice,) = load_checkpoint(pair[0], mmproj=pair[1]).notices
    assert "mmproj-tiny.gguf holds" in notice and "belong to no tensor" in notice


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip.vision.block_count": 3}, "missing: vision_tower"),
        ({"clip.vision.block_count": 1}, "unknown: vision_tower"),
        ({"clip.vision.patch_size": 2}, "of the wrong shape: vision_tower"),
        ({"clip.vision.projector.scale_factor": 0}, "scale_factor is 0; expected 1 to 8"),
        ({"clip.vision.projector.scale_factor": True}, "scale_factor is True"),
        ({"clip.vision.image_size": 1 << 24}, "mm_tokens_per_image"),
    ],
)
def test_an_error_about_an_eye_names_its_file(
    pair: tuple[Path, Path], changes: dict[str, Any], words: str
) -> None:
    bad = rewritten(pair[1], pair[1].with_name("bad.gguf"), {}, **changes)
    with pytest.raises(GemeloError, match=words) as caught:
        load_checkpoint(pair[0], mmproj=bad)
    assert str(bad) in str(caught.value) and str(pair[0]) not in str(caught.value)


def test_a_setting_of_an_eye_that_nobody_knows_is_told(pair: tuple[Path, Path]) -> None:
    early = {"clip.has_text_encoder": False, "clip.has_llava_projector": False}
    path = rewritten(pair[1], pair[1].with_name("early.gguf"), {}, **early)
    assert load_checkpoint(pair[0], mmproj=path).notices == ()
    odd = {"clip.minicpmv_version": 3, "clip.vision.n_wa_pattern": 2}
    path = rewritten(pair[1], pair[1].with_name("odd.gguf"), {}, **odd)
    (notice,) = load_checkpoint(pair[0], mmproj=path).notices
    assert "clip.minicpmv_version, clip.vision.n_wa_pattern" in notice
