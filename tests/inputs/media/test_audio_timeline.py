"""Time stamps: sound is where a player plays it, holes are silence, broken stamps do no harm."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest

from gemelo.errors import InputError
from gemelo.inputs.media.audio import SAMPLING_RATE, read_audio, stream_audio
from gemelo.inputs.media.audio_channels import Floats
from gemelo.inputs.media.audio_timeline import Timeline
from gemelo.inputs.media.segments import Onset, Segmenter
from tests.inputs.recordings import stamped

LENGTH_S = 0.02


def placed(
    stamps: Iterable[float | None], start_s: float | None = 0.0
) -> tuple[list[float], tuple[str, ...]]:
    """The silence before each frame of 20 ms, and what was said."""
    timeline = Timeline("talk.mkv", start_s)
    found: list[tuple[float, int]] = []
    for number, stamp in enumerate(stamps):
        found += timeline.add(number, stamp, LENGTH_S)
    found += timeline.finish()
    assert [number for _, number in found] == list(range(len(found)))
    return [round(silence_s, 6) for silence_s, _ in found], timeline.notices()


def steady(count: int, first_s: float = 0.0) -> list[float]:
    return [first_s + LENGTH_S * number for number in range(count)]


# ---- stamps alone --------------------------------------------------------------------------------


def test_frames_that_follow_each_other_are_joined() -> None:
    jitter = random.Random(0)
    for stamps in (
        steady(500),
        steady(500, 12345.0),
        [stamp + jitter.uniform(-0.04, 0.04) for stamp in steady(500)],
        [None] * 500,
        [None if number % 3 else stamp for number, stamp in enumerate(steady(500))],
        [1.01 * stamp for stamp in steady(5000)],  # a clock that runs a little fast
        [0.5 * stamp for stamp in steady(5000)],  # and one that is far too slow
    ):
        silences, said = placed(stamps, None)
        assert not any(silences) and said == ()


def test_a_late_start_is_silence() -> None:
    silences, said = placed(steady(100, 7.5), 2.5)
    assert silences[0] == 5.0 and not any(silences[1:])
    assert said == ("its sound begins 5.00 s after its start: silence until then",)
    assert placed(steady(100, 7.5), 7.45)[1] == ()


def test_holes_are_silence() -> None:
    stamps = steady(50) + steady(50, 3.0) + steady(50, 9.0)
    silences, said = placed(stamps)
    assert [at for at, silence in enumerate(silences) if silence] == [50, 100]
    assert silences[50] == pytest.approx(2.0) and silences[100] == pytest.approx(5.0)
    assert "2 holes of 7.00 s in all, the first at 1.00 s" in said[0]
    assert "it has a hole of 2.00 s" in placed(stamps[:100])[1][0]


def test_a_hole_before_the_last_frame() -> None:
    silences, _ = placed([*steady(50), 3.0])
    assert silences[50] == pytest.approx(2.0)


def test_packets_lost_one_by_one_add_up() -> None:
    stamps = [stamp for number, stamp in enumerate(steady(1000)) if number % 10 != 5]
    silences, _ = placed(stamps)
    lost = sum(silences)
    assert 1.9 <= lost <= 2.0  # of 2 s; less than a tenth waits for more


@pytest.mark.parametrize("wrong_s", [-1000.0, -0.5, 0.5, 100.0, 1e5, 1e15])
def test_a_stamp_that_is_wrong_alone(wrong_s: float) -> None:
    stamps = steady(100)
    stamps[40] += wrong_s
    silences, said = placed(stamps)
    assert not any(silences) and "broken, 1 times, first at 0.80 s" in said[0]


def test_stamps_that_begin_again_are_joined_and_holes_are_seen_after_that() -> None:
    silences, said = placed(steady(100) + steady(50) + steady(50, 3.0))
    assert [at for at, silence in enumerate(silences) if silence] == [150]
    assert silences[150] == pytest.approx(2.0) and "broken, 1 times" in said[1]


def test_stamps_without_sense_make_no_silence() -> None:
    chance = random.Random(1)
    silences, said = placed(chance.uniform(-1e12, 1e12) for _ in range(2000))
    assert not any(silences) and "time stamps are broken" in said[0]
    silences, _ = placed([*steady(50), *steady(50, 1e7)])  # a third of a year
    assert not any(silences)


def test_too_much_silence_is_refused() -> None:
    for stamps in (steady(50) + steady(50, 4000.0), steady(9, 3601.0)):
        with pytest.raises(InputError, match="talk.mkv .* at most 3600 s of silence") as caught:
            placed(stamps)
        assert "as WAV" in str(caught.value)
    with pytest.raises(InputError, match="10,000 holes"):
        placed(stamp * 10 for stamp in steady(30_000) for _ in (0, 1))


# ---- recordings ----------------------------------------------------------------------------------


def loud_from_s(values: Floats) -> float:
    return float(np.flatnonzero(np.abs(values) > 0.05)[0]) / SAMPLING_RATE


def quiet_s(values: Floats, begin_s: float, end_s: float) -> bool:
    return bool(
        np.abs(values[round(begin_s * SAMPLING_RATE) : round(end_s * SAMPLING_RATE)]).max() < 0.01
    )


FILMS = [
    ("matroska", "libopus"),
    ("matroska", "pcm_s16le"),
    ("matroska", "flac"),
    ("mp4", "aac"),
    ("mov", "pcm_s16le"),
    ("mpegts", "aac"),
    ("mpegts", "mp2"),
    ("nut", "pcm_s16le"),
]


@pytest.mark.parametrize(("container", "codec"), FILMS)
@pytest.mark.parametrize("first_s", [0.0, 1000.0])
def test_sound_that_begins_after_the_pictures(container: str, codec: str, first_s: float) -> None:
    held = stamped(
        container,
        codec,
        late_s=lambda number: first_s + 2.0,
        pictures=(first_s, first_s + 4),
    )
    heard = read_audio(held)
    values = heard.values
    assert loud_from_s(values) == pytest.approx(2.0, abs=0.05)
    assert heard.duration_s == pytest.approx(4.0, abs=0.1)
    (said,) = heard.notices
    assert said.startswith("its sound begins") and "silence until then" in said


@pytest.mark.parametrize(("container", "codec"), FILMS)
def test_a_recording_that_counts_from_elsewhere(container: str, codec: str) -> None:
    heard = read_audio(stamped(container, codec, late_s=lambda number: 77.0))
    assert loud_from_s(heard.values) < 0.05 and heard.notices == ()
    assert heard.duration_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("matroska", "libopus"),
        ("matroska", "pcm_s16le"),
        ("mp4", "aac"),
        ("mpegts", "aac"),
        ("flv", "aac"),
        ("flv", "libmp3lame"),
    ],
)
def test_lost_packets_leave_a_hole(container: str, codec: str) -> None:
    whole = read_audio(stamped(container, codec))
    assert whole.notices == ()
    heard = read_audio(stamped(container, codec, kept=lambda number: not 30 <= number < 60))
    values = heard.values
    assert heard.duration_s == pytest.approx(whole.duration_s, abs=0.05)
    assert quiet_s(values, 0.85, 1.1) and not quiet_s(values, 1.6, 1.7)
    assert "it has a hole of 0." in heard.notices[0]


def test_recordings_one_behind_the_other() -> None:
    for container, codec in (("mpegts", "aac"), ("ogg", "libopus"), ("ogg", "flac")):
        one = stamped(container, codec)
        alone, both = read_audio(one), read_audio(one + one)
        assert both.duration_s == pytest.approx(2 * alone.duration_s, abs=0.1)
    both = read_audio(stamped("adts", "aac") * 2)
    assert both.duration_s == pytest.approx(4.0, abs=0.2) and both.notices == ()


def test_more_silence_than_is_filled_in_is_one_line_while_streaming() -> None:
    held = stamped("matroska", "libopus", late_s=lambda number: 4000.0 * (number >= 50))
    with pytest.raises(InputError, match="at most 3600 s of silence"):
        for piece in stream_audio(held):
            assert piece.duration_s <= 1.0


# ---- subtitles -----------------------------------------------------------------------------------


def test_a_stretch_says_when_it_is_first_heard() -> None:
    held = stamped("matroska", "libopus", late_s=lambda number: 5.0, pictures=(0, 7))
    cutter = Segmenter()
    parts = [part for piece in stream_audio(held) for part in cutter.push(piece.values)]
    last = cutter.finish()
    assert last is not None and last.start_s == 0.0
    assert last.onset_s == pytest.approx(5.0, abs=0.1)
    assert all(part.onset_s == 0.0 for part in parts[:3])


def test_an_onset_does_not_depend_on_the_pieces() -> None:
    sound = np.concatenate([np.zeros(12345, np.float32), np.full(9000, 0.2, np.float32)])
    for size in (1, 777, 16000, 1 << 20):
        onset = Onset()
        for start in range(0, len(sound), size):
            onset.push(sound[start : start + size])
        assert onset.time_s == 0.7
    assert Onset().time_s == 0.0
