"""The audio encoder against transformers on random weights, whole and in any pieces."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma3nAudioConfig, Gemma3nAudioEncoder

from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.models import conformer
from gemelo.models.conformer import Conformer, ConformerState
from gemelo.weights.names import CONFORMER

# A cap that the scores reach, and clipping that clips.
TINY: dict[str, Any] = {
    "hidden_size": 48,
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 3,
    "input_feat_size": 32,
    "sscp_conv_channel_size": (8, 4),
    "conf_attention_logit_cap": 2.0,
}
OTHER = TINY | {
    "gradient_clipping": 1.5,
    "rms_norm_eps": 0.02,
    "conf_attention_chunk_size": 5,
    "conf_attention_context_left": 8,
    "conf_conv_kernel_size": 3,
    "conf_reduction_factor": 2,
    "conf_residual_weight": 0.7,
    "sscp_conv_group_norm_eps": 0.3,
}
CONFIGS = {"as-published-but-small": TINY, "every-number-changed": OTHER}
TOLERANCE = 3e-4


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys(), scope="module")
def twins(request: pytest.FixtureRequest) -> tuple[Conformer, Gemma3nAudioEncoder]:
    """Ours and the reference's, with the same weights, none of which is neutral."""
    ours = Conformer(AudioConfig(**request.param)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, weight in ours.state_dict().items():
        spread = 0.5 if weight.dim() == 1 else 0.3
        weight.normal_(0, spread, generator=generator)
        assert weight.abs().min() < 2, name
    theirs = Gemma3nAudioEncoder(Gemma3nAudioConfig(**request.param)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def sound(rows: int, num_frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randn(rows, num_frames, 32, generator=generator) * 3 - 5


def in_pieces(
    ear: Conformer, mel: Tensor, sizes: list[int]
) -> tuple[list[Tensor], list[ConformerState]]:
    """Tokens of each piece and of the end; the states in between."""
    states, tokens, start = [ear.init_state(mel.shape[0])], [], 0
    while start < mel.shape[1]:
        size = sizes[len(tokens) % len(sizes)]
        new, state = ear(mel[:, start : start + size], states[-1])
        tokens.append(new)
        states.append(state)
        start += size
    return [*tokens, ear.finish(mel[:, :0], states[-1])], states


def distance(ours: Tensor, wanted: Tensor) -> float:
    assert ours.shape == wanted.shape
    return float((ours - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 7, 8, 16, 17, 97, 250])
@torch.inference_mode()
def test_whole_clips_equal_the_reference(
    twins: tuple[Conformer, Gemma3nAudioEncoder], num_frames: int
) -> None:
    ours, theirs = twins
    mel = sound(2, num_frames)
    heard = torch.zeros(2, num_frames, dtype=torch.bool)  # True is padding
    wanted = theirs(mel, heard).last_hidden_state
    assert distance(ours.encode(mel), wanted) <= TOLERANCE


@pytest.mark.parametrize("num_frames", [1, 7, 16, 97, 250])
@pytest.mark.parametrize("seed", range(3))
@torch.inference_mode()
def test_any_pieces_give_the_same_tokens(
    twins: tuple[Conformer, Gemma3nAudioEncoder], num_frames: int, seed: int
) -> None:
    ours, _ = twins
    mel = sound(1, num_frames)
    dice = random.Random(seed)
    sizes = [dice.choice([0, 1, 2, 3, 5, 16, 31, 64]) for _ in range(9)] + [1]
    tokens, _ = in_pieces(ours, mel, sizes)
    assert distance(torch.cat(tokens, dim=1), ours.encode(mel)) <= 1e-5


@torch.inference_mode()
def test_a_token_comes_as_soon_as_it_is_settled() -> None:
    config = AudioConfig(**TINY)
    ear = seeded(config)
    tokens, _ = in_pieces(ear, sound(1, 200), [1])
    for frame, new in enumerate(tokens[:-1]):
        assert new.shape[1] == (frame % 16 == 6 and 1), frame
    assert tokens[-1].shape[1] == config.num_tokens(200) - sum(t.shape[1] for t in tokens[:-1])


@torch.inference_mode()
def test_long_sounds_go_through_in_pieces_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    ear = seeded(AudioConfig(**TINY))
    mel = sound(1, 333)
    wanted = ear.encode(mel)
    monkeypatch.setattr(conformer, "PIECE_FRAMES", 50)
    assert distance(ear.encode(mel), wanted) <= 1e-5
    first, state = ear(mel[:, :7], ear.init_state())
    rest = ear.finish(mel[:, 7:], state)
    assert distance(torch.cat([first, rest], dim=1), wanted) <= 1e-5


@torch.inference_mode()
def test_the_state_is_small_however_long_it_lasts() -> None:
    ear = seeded(AudioConfig(**TINY))
    _, states = in_pieces(ear, sound(1, 1600), [16])
    sizes = [state.nbytes for state in states]
    assert len(set(sizes[1:])) == 1
    memory = sum(tensor.untyped_storage().nbytes() for tensor in tensors(states[-1]))
    assert memory == sizes[-1]  # no view of something large


@torch.inference_mode()
def test_a_state_can_be_gone_on_from_twice() -> None:
    ear = seeded(AudioConfig(**TINY))
    mel = sound(1, 120)
    _, middle = ear(mel[:, :50], ear.init_state())
    first, _ = ear(mel[:, 50:], middle)
    ear.finish(mel[:, 50:], middle)
    again, _ = ear(mel[:, 50:], middle)
    assert torch.equal(first, again)


@torch.inference_mode()
def test_sounds_side_by_side_do_not_hear_each_other() -> None:
    ear = seeded(AudioConfig(**TINY))
    mel = sound(3, 90)
    alone = torch.cat([ear.encode(row[None]) for row in mel])
    assert distance(ear.encode(mel), alone) <= 1e-5


def test_nothing_said_is_nothing_heard() -> None:
    ear = seeded(AudioConfig(**TINY))
    assert ear.encode(sound(2, 0)).shape == (2, 0, 48)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_stays_close_and_finite(dtype: torch.dtype) -> None:
    ear = seeded(AudioConfig(**TINY))
    mel = sound(1, 160)
    wanted = ear.encode(mel)
    tokens = torch.cat(in_pieces(ear.to(dtype), mel, [40])[0], dim=1)
    assert tokens.dtype == dtype
    assert distance(tokens.float(), wanted) <= 0.1


def test_names_and_shapes_at_the_real_size() -> None:
    with torch.device("meta"):
        ours = Conformer(AudioConfig()).state_dict()
        theirs = Gemma3nAudioEncoder(Gemma3nAudioConfig()).state_dict()
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in theirs.items()}
    assert sum(weight.numel() for weight in ours.values()) == 681_348_640
    known = {pattern.replace("{n}", str(n)) for pattern in CONFORMER for n in range(12)}
    assert set(ours) == known


def seeded(config: AudioConfig) -> Conformer:
    ear = Conformer(config).eval()
    generator = torch.Generator().manual_seed(1)
    for weight in ear.state_dict().values():
        weight.normal_(0, 0.3, generator=generator)
    return ear


def tensors(part: Any) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    return [t for inner in part for t in tensors(inner)] if isinstance(part, tuple) else []
