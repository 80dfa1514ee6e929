"""A long sound in stretches: at pauses, none over 30 s, nothing lost and nothing doubled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gemelo.inputs.media.audio import SAMPLING_RATE
from gemelo.inputs.media.audio_channels import Floats
from gemelo.inputs.media.segments import (
    MAX_SEGMENT_S,
    MIN_REST_S,
    PAUSE_S,
    AudioSegment,
    Segmenter,
    without_overlap,
)


def speech(seconds: float, seed: int = 0) -> Floats:
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(seconds * SAMPLING_RATE))).astype(np.float32)


def pause(seconds: float) -> Floats:
    return speech(seconds, seed=9) * np.float32(0.01)


def stretches(sound: Floats, piece: int) -> list[tuple[float, Floats, bool]]:
    """(start, samples, overlaps) of every stretch, the sound pushed in pieces."""
    cutter = Segmenter()
    parts: list[AudioSegment] = []
    for at in range(0, len(sound), piece):
        parts += cutter.push(sound[at : at + piece])
    rest = cutter.finish()
    parts += [] if rest is None else [rest]
    found, held = [], []
    for part in parts:
        held.append(part.values)
        if part.ends:
            found.append((part.start_s, np.concatenate(held), part.overlaps))
            held = []
    assert not held
    return found


@pytest.mark.parametrize("piece", [777, 16000, 1 << 30])
def test_it_is_cut_at_the_first_pause_after_a_while(piece: int) -> None:
    spoken = [speech(9), pause(0.5), speech(9), pause(0.5), speech(12)]
    sound = np.concatenate(spoken)
    found = stretches(sound, piece)
    assert len(found) == 2 and not found[1][2]
    assert found[1][0] == pytest.approx(18.8)  # the pause began at 18.5 and lasted 0.3
    assert np.array_equal(np.concatenate([values for _, values, _ in found]), sound)


@pytest.mark.parametrize("piece", [777, 16000, 1 << 30])
def test_without_a_pause_stretches_overlap_by_a_second(piece: int) -> None:
    sound = speech(70)
    found = stretches(sound, piece)
    assert [start for start, _, _ in found] == [0.0, 29.0, 58.0]
    assert [overlaps for _, _, overlaps in found] == [False, True, True]
    assert [len(values) / SAMPLING_RATE for _, values, _ in found] == [30.0, 30.0, 12.0]
    for start, values, _ in found:
        first = round(start * SAMPLING_RATE)
        assert np.array_equal(values, sound[first : first + len(values)])


SPOKEN_S = 18.0  # then a pause of 0.3 s ends the segment
REST = [0.0, 0.01, 0.1, 0.5, 0.95, 0.999]


def begun() -> Floats:
    return np.concatenate([speech(SPOKEN_S), pause(PAUSE_S)])


@pytest.mark.parametrize("piece", [777, 16000, 1 << 30])
@pytest.mark.parametrize("rest", REST)
@pytest.mark.parametrize("made", [speech, pause, lambda s: np.zeros(round(16000 * s), np.float32)])
def test_a_rest_of_less_than_a_second_is_joined(
    piece: int, rest: float, made: Callable[[float], Floats]
) -> None:
    sound = np.concatenate([begun(), made(rest)])
    ((start, values, overlaps),) = stretches(sound, piece)
    assert start == 0.0 and not overlaps and np.array_equal(values, sound)


@pytest.mark.parametrize("piece", [777, 16000, 1 << 30])
@pytest.mark.parametrize("rest", [1.0, 1.01, 1.5])
def test_a_rest_of_a_second_is_a_segment(piece: int, rest: float) -> None:
    first, last = begun(), speech(rest)
    found = stretches(np.concatenate([first, last]), piece)
    assert [values.size for _, values, _ in found] == [first.size, last.size]
    assert found[1][0] == first.size / SAMPLING_RATE


@pytest.mark.parametrize("rest", REST)
def test_a_segment_of_thirty_seconds_lasts_one_more_at_most(rest: float) -> None:
    sound = speech(MAX_SEGMENT_S + rest)
    ((_, values, _),) = stretches(sound, 5000)
    assert np.array_equal(values, sound)
    longer = stretches(speech(MAX_SEGMENT_S + MIN_REST_S), 5000)
    assert [(start, values.size) for start, values, _ in longer] == [(0.0, 480000), (29.0, 32000)]


def test_a_hole_before_the_last_word() -> None:
    """What a decoder fills with silence counts as a pause; the word after it stands with it."""
    hole = np.zeros(5 * SAMPLING_RATE, np.float32)
    sound = np.concatenate([speech(SPOKEN_S), hole, speech(0.4)])
    (_, first, _), (start, last, _) = stretches(sound, 3000)
    assert start == pytest.approx(SPOKEN_S + PAUSE_S)
    assert last.size == pytest.approx((5 - PAUSE_S + 0.4) * SAMPLING_RATE)
    assert np.array_equal(np.concatenate([first, last]), sound)


def test_an_end_is_known_a_second_later() -> None:
    """While a sound goes on: the segment's own samples at once, its end a second after."""
    cutter, first = Segmenter(), begun()
    at_once = [*cutter.push(first)]
    assert sum(part.values.size for part in at_once) == first.size
    assert not any(part.ends for part in at_once)
    assert [*cutter.push(speech(MIN_REST_S - 0.1))] == []
    end, begin = cutter.push(speech(0.1))
    assert (end.ends, end.start_s, end.values.size) == (True, 0.0, 0)
    assert (begin.ends, begin.values.size) == (False, SAMPLING_RATE)
    assert begin.start_s == first.size / SAMPLING_RATE


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.5, 0.99])
def test_less_than_a_second_alone_is_a_segment(seconds: float) -> None:
    sound = speech(seconds)
    ((start, values, overlaps),) = stretches(sound, 700)
    assert start == 0.0 and not overlaps and np.array_equal(values, sound)


def test_a_short_sound_is_one_stretch_and_none_is_none() -> None:
    (only,) = stretches(speech(3.03), 1000)
    assert len(only[1]) == round(3.03 * SAMPLING_RATE)
    assert Segmenter().finish() is None and list(Segmenter().push(np.zeros(0, np.float32))) == []
    cutter = Segmenter()
    assert [*cutter.push(speech(1))] and cutter.finish() is not None and cutter.finish() is None


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("and so it goes", "it goes on and on", "on and on"),
        ("and so it goes.", "It goes, on", "on"),
        ("and so it goes", "oes it goes on", "on"),
        ("and so it goes", "xo so it goes on", "on"),
        ("one", "two three", "two three"),
        ("the", "the end", "end"),
        ("", "all of it", "all of it"),
        ("all of it", "", ""),
        ("all of it", "all of it", ""),
    ],
)
def test_repeated_words_are_written_once(before: str, after: str, wanted: str) -> None:
    assert without_overlap(before, after) == wanted
