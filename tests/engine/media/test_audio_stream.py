"""A sound that is still going on: when the encoder runs, and that it never runs in vain."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from gemelo.config import AudioConfig, Gemma3nConfig
from gemelo.engine.media.audio_stream import AudioStream
from gemelo.errors import SessionBusyError, UnsupportedError
from gemelo.models.conformer import Block, Conformer
from gemelo.models.multimodal import Gemma3nTree

EAR = AudioConfig(
    hidden_size=48,
    conf_num_attention_heads=4,
    conf_num_hidden_layers=2,
    sscp_conv_channel_size=(8, 4),
)
WIDTH = 64


@pytest.fixture(scope="module")
def tree() -> Gemma3nTree:
    with torch.device("meta"):
        tree = Gemma3nTree(Gemma3nConfig(hidden_size=WIDTH, audio_config=vars(EAR)))
    generator = torch.Generator().manual_seed(3)
    for part in (tree.audio_tower, tree.embed_audio):
        part.to_empty(device="cpu")
        for weight in part.state_dict().values():
            weight.normal_(0, 0.3, generator=generator)
    return tree


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every run of a conformer block, from here on."""
    found: list[int] = []
    forward = Block.forward

    def counted(block: Block, x: Tensor, *rest: object) -> object:
        found.append(x.shape[1])
        return forward(block, x, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Block, "forward", counted)
    return found


def sound(num_samples: int) -> Tensor:
    return torch.rand(num_samples, generator=torch.Generator().manual_seed(num_samples)) - 0.5


def heard(stream: AudioStream, samples: Tensor, piece: int) -> list[Tensor]:
    """What comes of every piece, and of the end."""
    return [*map(stream.push, torch.split(samples, piece)), stream.finish()]


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("piece", [160, 1280, 7000])
def test_tokens_are_the_same_however_many_come_at_once(
    tree: Gemma3nTree, at_once: int, piece: int
) -> None:
    samples = sound(33_000)
    wanted = AudioStream(tree, EAR).whole(samples)
    tokens = torch.cat(heard(AudioStream(tree, EAR, at_once), samples, piece))
    assert tokens.shape == wanted.shape == (13, WIDTH)
    assert float((tokens - wanted).abs().max() / wanted.abs().max()) <= 1e-5


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_encoder_runs_when_enough_is_settled_and_not_before(
    tree: Gemma3nTree, runs: list[int], at_once: int
) -> None:
    stream = AudioStream(tree, EAR, at_once)
    samples = sound(40_000)
    for end in range(160, 40_000, 160):
        before = len(runs)
        tokens = stream.push(samples[end - 160 : end])
        settled = (end - 1472) // 2560 + 1 if end >= 1473 else 0  # 92 ms into each 160
        ready = settled // at_once if (end - 1473) % 2560 < 160 and settled % at_once == 0 else 0
        assert len(tokens) == (at_once if ready else 0), end
        assert len(runs) - before == (EAR.conf_num_hidden_layers if ready else 0)


@pytest.mark.parametrize("num_samples", range(3000, 6000, 160))
def test_the_end_runs_the_encoder_once_or_where_nothing_is_to_come_not_at_all(
    tree: Gemma3nTree, runs: list[int], num_samples: int
) -> None:
    stream = AudioStream(tree, EAR, tokens_at_once=1)
    before = len(stream.push(sound(num_samples)))
    runs.clear()
    rest = len(stream.finish())
    padded = num_samples + -num_samples % 128
    assert before + rest == EAR.num_tokens((padded - 513) // 160 + 1)
    assert len(runs) == (EAR.conf_num_hidden_layers if rest else 0)


def test_a_whole_sound_goes_through_once(tree: Gemma3nTree, runs: list[int]) -> None:
    AudioStream(tree, EAR).whole(sound(50_000))
    assert len(runs) == EAR.conf_num_hidden_layers


def test_what_is_kept_is_the_same_after_a_second_as_after_a_minute(tree: Gemma3nTree) -> None:
    stream = AudioStream(tree, EAR)
    most = []
    for _ in range(6):
        sizes = []
        for piece in torch.split(sound(163_840), 1280):  # 10.24 s, whole turns of 320 ms
            stream.push(piece)
            sizes.append(stream.nbytes)
        most.append(max(sizes))
    assert len(set(most[1:])) == 1 and most[0] <= most[1]


def test_a_silent_model_says_so(tree: Gemma3nTree) -> None:
    with pytest.raises(UnsupportedError, match="no audio encoder"):
        AudioStream(tree, None)


def test_settled_is_what_comes_out(tree: Gemma3nTree) -> None:
    ear: Conformer = tree.audio_tower
    with torch.inference_mode():
        for num_frames in (0, 1, 6, 7, 8, 22, 23, 24, 39, 100):
            tokens, _ = ear(torch.rand(1, num_frames, 128), ear.init_state())
            assert tokens.shape[1] == ear.num_settled(num_frames), num_frames


def test_a_sound_is_one_threads_at_a_time(tree: Gemma3nTree) -> None:
    """Pieces pushed at once have no order: the second is refused, and none of it is heard."""
    stream, alone = AudioStream(tree, EAR), AudioStream(tree, EAR)
    samples, refused = sound(9000), []

    def push() -> None:
        try:
            stream.push(samples)
        except SessionBusyError as error:
            refused.append(str(error))

    def amid() -> None:
        thread = threading.Thread(target=push)
        thread.start()
        thread.join(60)

    stream.turns.once(amid)
    assert len(refused) == 1 and "the sound is in the middle of a turn" in refused[0]
    assert torch.equal(stream.whole(samples), alone.whole(samples))
