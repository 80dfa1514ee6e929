"""A sound heard as it comes is the sound heard whole, and little is left to do after it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemelo import transcription
from gemelo.api import Model, load
from gemelo.config.speech_task import Task
from gemelo.engine import session as session_module
from gemelo.engine.sampler import Sampling
from gemelo.engine.tokens import Tokens
from gemelo.errors import ContextLengthError, InputError, UnsupportedError
from gemelo.inputs.media import audio_channels
from gemelo.inputs.media.audio import SAMPLING_RATE, Samples, read_audio, stream_audio
from gemelo.inputs.media.parts import MediaPart, TextPart
from gemelo.inputs.media.segments import MIN_SEGMENT_S, Segmenter
from gemelo.transcription import StreamingPrompt, prompt_around_audio, transcribe
from tests.multimodal import recording, write_wave

GREEDY = {"max_tokens": 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def model(awake_directory: Path) -> Model:
    return load(awake_directory)


def in_pieces(sound: np.ndarray, piece: int) -> Iterator[Samples]:
    for at in range(0, len(sound), piece):
        yield Samples(sound[at : at + piece].copy())


@pytest.mark.parametrize("piece", [900, 4000, 1 << 20])
def test_pieces_make_no_difference(model: Model, piece: int) -> None:
    sound = recording(2.5)
    content = [
        {"type": "text", "text": "Transcribe this audio:"},
        {"type": "audio", "audio": sound},
    ]
    wanted = model.generate([{"role": "user", "content": content}], temperature=0, **GREEDY)
    shown: list[str] = []
    (heard,) = transcribe(model, in_pieces(sound, piece), on_text=shown.append, **GREEDY)
    assert heard.token_ids == wanted.token_ids and heard.text == wanted.text.strip()
    assert "".join(shown) == wanted.text
    assert (heard.start_s, heard.end_s) == (0.0, 2.5)


def test_a_sound_of_any_kind(model: Model, tmp_path: Path) -> None:
    write_wave(tmp_path / "talk.wav", recording(2.5))
    read = read_audio(tmp_path / "talk.wav")
    (wanted,) = transcribe(model, iter([read]), **GREEDY)
    with (tmp_path / "talk.wav").open("rb") as file:
        for audio in (
            tmp_path / "talk.wav",
            str(tmp_path / "talk.wav"),
            (tmp_path / "talk.wav").read_bytes(),
            file,
            read,
            read.values,
            read.values,
            [read],
            stream_audio(tmp_path / "talk.wav", 0.5),
        ):
            for cut in (False, True):
                if audio is file:
                    file.seek(0)
                if isinstance(audio, Iterator) and cut:
                    continue
                (heard,) = transcribe(model, audio, cut=cut, **GREEDY)
                assert (heard.token_ids, heard.end_s) == (wanted.token_ids, 2.5)


def test_a_language_is_a_task(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = transcription.prompt_around_audio

    def noted(model: Model, instruction: str) -> tuple[list[int], list[int]]:
        asked.append(instruction)
        return plain(model, instruction)

    monkeypatch.setattr(transcription, "prompt_around_audio", noted)
    for task in ("es", "Spanish", Task("es"), Task(translate_to="es"), None):
        transcribe(model, in_pieces(recording(), 50000), task, **GREEDY)
    into = "Transcribe this audio into Spanish:"
    assert asked == [into] * 3 + ["Translate this audio into Spanish:", "Transcribe this audio:"]


def test_what_is_no_sound_and_no_task(model: Model) -> None:
    """It is said at once, and not at the first segment."""
    for audio in (None, 5, {"audio": 1}):
        with pytest.raises(InputError, match="expected a file, Samples or an array at 16 kHz, or"):
            transcribe(model, audio)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="audio of type float: 0.5; expected a file, Samples or"):
        list(transcribe(model, [0.5]))  # type: ignore[list-item]
    with pytest.raises(InputError, match="/gone.wav: no such file"):
        list(transcribe(model, "/gone.wav"))
    with pytest.raises(InputError, match="task = 5; expected a Task, or a language"):
        transcribe(model, recording(), 5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Klingon"):
        transcribe(model, recording(), "Klingon")


def test_all_but_the_tail_is_read_before_the_end(model: Model) -> None:
    session = model.session()
    prompt = StreamingPrompt(model, session, "Transcribe this audio:")
    sound = recording(4.0)  # 25 tokens: more than the places that any recording gets
    for at in range(0, len(sound), 1600):
        prompt.push(sound[at : at + 1600])
    assert prompt.num_audio_tokens >= 24 and len(session.ids) == len(prompt.ids)
    pieces = [*prompt.finish(Sampling(temperature=0, max_tokens=2, ignore_eos=True))]
    assert len(pieces) == 2
    assert session.timings.prefill_tokens <= len(prompt.after) + 1


def test_a_long_sound_is_one_stream_with_a_notice(model: Model) -> None:
    notices: list[str] = []
    (heard,) = transcribe(
        model, in_pieces(recording(31), 80000), on_notice=notices.append, **GREEDY
    )
    assert heard.end_s == 31.0
    assert len(notices) == 1 and "longer than the 30 s" in notices[0]


def test_segments_are_short_and_timed(model: Model) -> None:
    notices: list[str] = []
    sound = recording(31)
    found = [
        *transcribe(model, in_pieces(sound, 50000), cut=True, on_notice=notices.append, **GREEDY)
    ]
    assert [(heard.start_s, heard.end_s) for heard in found] == [(0.0, 30.0), (29.0, 31.0)]
    assert notices == []


@pytest.mark.parametrize("cut", [False, True])
def test_samples_are_checked_once(model: Model, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    checked: list[int] = []
    plain = audio_channels.check_finite

    def counted(name: str, values: audio_channels.Floats, first: int) -> None:
        checked.append(len(values))
        plain(name, values, first)

    sound = recording(2.5)
    monkeypatch.setattr(audio_channels, "check_finite", counted)
    assert len([*transcribe(model, in_pieces(sound, 4000), cut=cut, **GREEDY)]) == 1
    assert sum(checked) == len(sound)
    sound[-9] = np.nan
    with pytest.raises(InputError, match="the sample nan"):
        list(transcribe(model, in_pieces(sound, 4000), cut=cut, **GREEDY))


@pytest.mark.parametrize("rest", [0.01, 0.06, 0.7])
def test_a_short_rest_is_heard_with_the_segment_before(model: Model, rest: float) -> None:
    sound = np.concatenate([recording(MIN_SEGMENT_S), np.zeros(2 * SAMPLING_RATE, np.float32)])
    first = next(part for part in Segmenter().push(sound) if part.ends)
    end = len(first.values) + round(rest * SAMPLING_RATE)
    notices: list[str] = []
    pieces = in_pieces(sound[:end], 50000)
    (heard,) = transcribe(model, pieces, cut=True, on_notice=notices.append, **GREEDY)
    assert (heard.start_s, heard.end_s, notices) == (0.0, end / SAMPLING_RATE, [])


@pytest.mark.parametrize("cut", [False, True])
def test_a_word_after_silence_is_timed_with_a_second(model: Model, cut: bool) -> None:
    sound = np.concatenate([np.zeros(3 * SAMPLING_RATE, np.float32), recording(0.25)])
    (heard,) = transcribe(model, in_pieces(sound, 50000), cut=cut, **GREEDY)
    assert (heard.start_s, heard.end_s) == (2.25, 3.25)


def test_a_sound_longer_than_the_context(awake_directory: Path) -> None:
    short = load(awake_directory, context=100)
    with pytest.raises(ContextLengthError, match="the context holds 100"):
        [*transcribe(short, in_pieces(recording(20), 50000), **GREEDY)]


def test_a_model_without_an_ear(eyed_directory: Path) -> None:
    deaf = load(eyed_directory)
    with pytest.raises(UnsupportedError, match="no audio encoder"):
        [*transcribe(deaf, in_pieces(recording(), 50000), **GREEDY)]


def test_a_segment_tells_what_it_took(model: Model) -> None:
    """Nothing of a prompt counts twice, however much of it was read while the sound came."""
    sound = recording(4.0)
    for piece in (1600, 1 << 20):
        prompt = StreamingPrompt(model, model.session(), "the")
        for at in range(0, len(sound), piece):
            prompt.push(sound[at : at + piece])
        for _ in prompt.finish(Sampling(temperature=0, max_tokens=3, ignore_eos=True)):
            pass
        timings = prompt.timings
        assert timings.prefill_tokens == len(prompt.ids) + len(prompt.after)
        assert (timings.reused_tokens, timings.decode_tokens) == (0, 2)
        assert timings.prefill_s > prompt.write_s > 0 and prompt.encode_s > 0
    (heard,) = transcribe(model, in_pieces(sound, 1600), seed=3, **GREEDY)
    assert (heard.sound_s, heard.seed) == (4.0, 3) and heard.encode_s > 0


def test_the_prompt_says_it_before_the_sound(model: Model) -> None:
    before, after = prompt_around_audio(model, "the")
    word = model.tokenizer.encode("the", bos=False)[0]
    assert word in before and word not in after
    assert not {497} & {*before, *after}
    content = [TextPart("the"), MediaPart("audio", Samples(np.zeros(8000, np.float32)))]
    whole = model.prompt([{"role": "user", "content": content}])
    sound = [497] * whole.ids.count(497)
    assert [*before, *sound, *after] == list(whole.ids)


def test_every_second_costs_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it has been: only what is new is looked at."""
    looked_at: list[int] = []
    checked = session_module.checked

    def counted(tokens: Tokens, *rest: Any, **more: Any) -> Tokens:
        looked_at.append(len(tokens))
        return checked(tokens, *rest, **more)

    monkeypatch.setattr(session_module, "checked", counted)
    prompt = StreamingPrompt(model, model.session(), "the")
    sound = recording(12.0)
    for begin in range(0, len(sound), SAMPLING_RATE):
        prompt.push(sound[begin : begin + SAMPLING_RATE])
    begun = len(prompt.ids) - prompt.num_audio_tokens
    assert looked_at[0] >= begun and max(looked_at[1:]) <= 8  # a second makes six or seven
    assert sum(looked_at) == len(prompt.ids) == len(prompt.session.ids)


@pytest.mark.parametrize("cut", [False, True])
def test_a_sound_too_short_for_a_token(model: Model, cut: bool) -> None:
    for short in (0, 512):
        with pytest.raises(InputError, match="too short for an audio token: give one of 0.0321 s"):
            list(transcribe(model, in_pieces(recording(1.0)[:short], 200), cut=cut, **GREEDY))
    (heard,) = transcribe(model, in_pieces(recording(1.0)[:513], 200), cut=cut, **GREEDY)
    assert len(heard.token_ids) == 5
