"""Gemma 3n's eye against timm's, on random weights with no parameter at its neutral value."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import timm
import torch
from timm.layers import create_conv2d
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.mobilenetv5 import _gen_mobilenet_v5
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Gemma3nVisionConfig

from gemelo.config.gemma3n_vision import Vision3nConfig
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.models import mobilenet_blocks
from gemelo.models.mobilenet import MobileNet, MobileNetTower
from gemelo.models.mobilenet_blocks import (
    Convolution,
    Depthwise,
    same_padding,
    scaled_gelu,
)
from gemelo.weights import names
from tests.mobilenet import TINY_STAGES

TOLERANCE = 3e-4
SIDE = 4  # of the tiny network's output
TINY_TIMM = [
    ["er_r1_k3_s2_e4_c16", "er_r1_k3_s1_e4_c16"],
    ["uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"],
    ["uir_r1_a5_k5_s2_e6_c32", "mqa_r1_k3_h2_v2_s1_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
    ["uir_r1_a0_k5_s2_e6_c48", "mqa_r1_k3_h3_s1_d24_c48", "uir_r1_a0_k0_s1_e1_c48"],
]


def randomise(module: nn.Module) -> None:
    """Weights that keep a signal's size, and gammas and biases that can be seen."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.detach().uniform_(0.5, 1.5, generator=generator)
        else:
            spread = (2 / parameter[0].numel()) ** 0.5
            parameter.detach().normal_(0, spread, generator=generator)


def tiny_timm() -> nn.Module:
    network: nn.Module = _gen_mobilenet_v5(
        "mobilenetv5_300m_enc",
        encoder=True,
        block_args=decode_arch_def(TINY_TIMM),
        msfa_output_resolution=SIDE,
        stem_size=16,
        pad_type="same",
    ).eval()
    return network


def picture(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module", autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def twins() -> tuple[MobileNet, nn.Module]:
    """The tiny network, ours and timm's."""
    theirs = tiny_timm()
    randomise(theirs)
    ours = MobileNet(TINY_STAGES, stem=16, width=2048, side=SIDE).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


# Sides that halve evenly, that leave a remainder at every stage, that are smaller than a kernel;
# maps that pool, that are stretched, and that already fit.
@pytest.mark.parametrize("sides", [(128, 128), (64, 64), (97, 97), (131, 75), (33, 64), (2, 1)])
def test_equals_the_reference(twins: tuple[MobileNet, nn.Module], sides: tuple[int, int]) -> None:
    ours, theirs = twins
    pixels = picture(2, 3, *sides)
    found = ours(pixels).permute(0, 3, 1, 2)
    assert found.shape == (2, 2048, SIDE, SIDE)
    assert apart(found, theirs(pixels)) <= TOLERANCE


def test_pictures_of_a_batch_do_not_meet(twins: tuple[MobileNet, nn.Module]) -> None:
    pixels = picture(3, 3, 64, 64)
    alone = torch.cat([twins[0](one) for one in pixels.split(1)])
    assert apart(twins[0](pixels), alone) <= 1e-5


def test_the_input_is_left_as_it_was(twins: tuple[MobileNet, nn.Module]) -> None:
    pixels = picture(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    before = pixels.clone()
    twins[0](pixels)
    assert torch.equal(pixels, before)


def test_bfloat16_is_as_near_as_the_reference_s(twins: tuple[MobileNet, nn.Module]) -> None:
    pixels = picture(2, 3, 128, 128)
    exact = twins[1](pixels)
    ours = MobileNet(TINY_STAGES, stem=16, width=2048, side=SIDE).eval()
    ours.load_state_dict(twins[1].state_dict())
    off = (ours.bfloat16()(pixels.bfloat16()).permute(0, 3, 1, 2).float() - exact).norm()
    theirs = tiny_timm()
    theirs.load_state_dict(twins[1].state_dict())
    wanted = (theirs.bfloat16()(pixels.bfloat16()).float() - exact).norm()
    assert off <= 1.5 * wanted < 0.1 * exact.norm()


@pytest.mark.parametrize("multiplier", [0.0625, 0.1])
def test_all_stages_at_another_width_as_soft_tokens(multiplier: float) -> None:
    arguments = {"channel_multiplier": multiplier, "msfa_output_resolution": 3}
    theirs = timm.create_model("mobilenetv5_300m_enc", **arguments).eval()
    randomise(theirs)
    tower = MobileNetTower(Vision3nConfig.from_hf({"model_args": arguments})).eval()
    tower.timm_model.load_state_dict(theirs.state_dict())
    pixels = picture(1, 3, 96, 96)
    wanted = theirs(pixels).flatten(2).transpose(1, 2) * 2048**0.5
    assert tower(pixels).shape == (1, 9, 2048)
    assert apart(tower(pixels), wanted) <= TOLERANCE


def test_the_published_layout_has_a_place_for_every_weight() -> None:
    with torch.device("meta"):
        theirs = timm.create_model("mobilenetv5_300m_enc")
        tower = MobileNetTower(Vision3nConfig())
    wanted = {f"timm_model.{name}": w.shape for name, w in theirs.state_dict().items()}
    assert {name: w.shape for name, w in tower.state_dict().items()} == wanted
    assert len(wanted) == 548
    assert sum(w.numel() for w in tower.parameters()) == 294_126_912
    assert all(names.is_tower_3n(f"vision_tower.{name}") for name in wanted)
    for side in (256, 512, 768):
        assert tower(torch.empty(1, 3, side, side, device="meta")).shape == (1, 256, 2048)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_padding_is_tensorflow_s(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    ours = Depthwise(8, kernel, stride)
    theirs = create_conv2d(8, 8, kernel, stride=stride, padding="same", depthwise=True, bias=False)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = picture(2, 8, size, size + 1)
    found = ours(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert found.shape == theirs(x).shape
    torch.testing.assert_close(found, theirs(x), atol=1e-5, rtol=1e-5)
    padded = ours.padded(x.permute(0, 2, 3, 1))
    torch.testing.assert_close(ours.valid(padded).permute(0, 3, 1, 2), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_and_plain_gelu_agree(dtype: torch.dtype) -> None:
    x = 4 * torch.randn(2, 5, 3, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = picture(24).to(dtype) + 0.5
    exact = F.gelu(x.double() * weight.double(), approximate="tanh")
    limit = 1e-5 if dtype == torch.float32 else 0.1  # a rounding or two of numbers up to 20
    assert float((scaled_gelu(x, weight).double() - exact).abs().max()) <= limit


def test_without_onednn_the_numbers_are_the_same(
    twins: tuple[MobileNet, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(1, 3, 64, 64)
    fused = twins[0](pixels)
    monkeypatch.setattr(mobilenet_blocks, "has_fused_gelu", lambda x: False)
    assert apart(twins[0](pixels), fused) <= 1e-5


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 3, 0, 64)])
def test_what_is_not_a_picture_is_refused(
    twins: tuple[MobileNet, nn.Module], shape: tuple[int, ...]
) -> None:
    with pytest.raises(InputError, match="pixels have the shape"):
        twins[0](torch.zeros(shape))


def test_a_stem_may_have_a_bias_and_nothing_else_does() -> None:
    assert Convolution(3, 4, 3, bias=True).bias is not None
    biases = [
        name for name, _ in MobileNet(TINY_STAGES, 16, 2048, 4).named_parameters() if "bias" in name
    ]
    assert biases == ["conv_stem.conv.bias"]


def test_config_defaults_are_the_reference_s() -> None:
    raw = Gemma3nVisionConfig().to_dict()
    assert Vision3nConfig.from_hf(raw) == Vision3nConfig() == Vision3nConfig.from_hf({})
    for name in ("architecture", "hidden_size", "vocab_size", "vocab_offset", "rms_norm_eps"):
        assert raw[name] == getattr(Vision3nConfig(), name)
    assert Vision3nConfig().num_tokens == 256


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ({"architecture": "resnet50"}, UnsupportedError),
        ({"hidden_size": 1024}, UnsupportedError),
        ({"model_args": {"block_args": []}}, UnsupportedError),
        ({"model_args": [1]}, FileFormatError),
        ({"model_args": {"channel_multiplier": 1e9}}, FileFormatError),
        ({"model_args": {"channel_multiplier": "wide"}}, FileFormatError),
        ({"model_args": {"channel_multiplier": float("nan")}}, FileFormatError),
        ({"model_args": {"msfa_output_resolution": 0}}, FileFormatError),
        ({"model_args": {"msfa_output_resolution": 1 << 20}}, FileFormatError),
        ({"vocab_size": -1}, FileFormatError),
        ({"rms_norm_eps": 0}, FileFormatError),
    ],
)
def test_configs_that_make_no_eye(raw: dict[str, object], error: type[GemeloError]) -> None:
    with pytest.raises(error):
        Vision3nConfig.from_hf(raw)
