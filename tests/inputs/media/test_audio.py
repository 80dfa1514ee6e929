"""Recordings: every container, rate and channel count; bad ones in one line."""

from __future__ import annotations

import io
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.media.audio import (
    SAMPLING_RATE,
    Samples,
    read_audio,
    resample,
    stream_audio,
)
from tests.inputs.recordings import encoded, needs, voices
from tests.media import Pipe, film, recording, tone, write_video

RECORDINGS = {  # container, codec, rate, how near its samples are to what was said
    "wav-16": ("wav", "pcm_s16le", 16000, 1e-4),
    "wav-8-bit": ("wav", "pcm_u8", 16000, 0.01),
    "wav-24-bit": ("wav", "pcm_s24le", 48000, 1e-3),
    "wav-float": ("wav", "pcm_f32le", 22050, 1e-3),
    "wav-double": ("wav", "pcm_f64le", 96000, 1e-3),
    "flac": ("flac", "flac", 44100, 1e-3),
    "mp3": ("mp3", "libmp3lame", 44100, 0.06),
    "m4a": ("mp4", "aac", 48000, 0.02),
    "ogg-opus": ("ogg", "libopus", 48000, 0.05),
    "webm": ("webm", "libopus", 48000, 0.05),
    "telephone": ("wav", "pcm_mulaw", 8000, 0.03),
    "aiff": ("aiff", "pcm_s16be", 11025, 1e-3),
}


def error_of(source: Any) -> str:
    with pytest.raises(GemeloError) as caught:
        read_audio(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what is heard -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECORDINGS)
def test_every_container_and_rate(kind: str) -> None:
    container, codec, rate, near = RECORDINGS[kind]
    samples = read_audio(recording([tone(440, rate)], rate, container, codec))
    assert samples.values.dtype == np.float32 and samples.notices == ()
    assert samples.duration_s == pytest.approx(1, abs=0.06)  # lossy coders add their last frame
    middle = samples.values[4000:12000]  # whose phase may have moved, if its coder delays
    wave = np.exp(2j * np.pi * 440 * np.arange(8000) / SAMPLING_RATE)
    strength = 2 * (middle * wave).mean()
    rest = middle - np.real(strength * wave.conj())
    assert abs(strength) == pytest.approx(0.5, abs=near)
    assert np.sqrt((rest**2).mean()) <= near


def test_samples_of_the_right_rate_are_not_touched() -> None:
    said = np.random.default_rng(0).integers(-32768, 32767, 20000).astype(np.int16)
    file = io.BytesIO()
    header = b"RIFF" + struct.pack("<I", 36 + 40000) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, SAMPLING_RATE, 2 * SAMPLING_RATE, 2, 16)
    file.write(header + b"data" + struct.pack("<I", 40000) + said.tobytes())
    heard = read_audio(file.getvalue()).values
    assert np.array_equal(heard, said / np.float32(32768))
    assert np.array_equal(resample(said, SAMPLING_RATE).values, heard)


@pytest.mark.parametrize("count", [2, 6])
def test_channels_are_averaged(count: int) -> None:
    channels = [tone(440, SAMPLING_RATE), *[np.zeros(SAMPLING_RATE, np.float32)] * (count - 1)]
    heard = read_audio(recording(channels, SAMPLING_RATE, "wav", "pcm_f32le")).values
    np.testing.assert_allclose(heard, tone(440, SAMPLING_RATE) / count, atol=1e-6)


def test_what_16_khz_cannot_hold_is_filtered_out() -> None:
    heard = resample(tone(12000, 48000), 48000).values
    assert np.abs(heard).max() < 0.01 or np.abs(heard[200:-200]).max() < 1e-3
    kept = resample(tone(6000, 48000), 48000).values
    np.testing.assert_allclose(kept[200:-200], tone(6000, SAMPLING_RATE)[200:-200], atol=2e-3)


def test_the_sound_track_of_a_film() -> None:
    assert read_audio(film()).duration_s == pytest.approx(1, abs=0.06)


def test_paths_bytes_files_and_pipes(tmp_path: Path) -> None:
    held = recording([tone(440, 44100)], 44100)
    path = tmp_path / "a sound.wav"
    path.write_bytes(held)
    wanted = read_audio(held).values
    with path.open("rb") as file:
        for source in (path, str(path), file, io.BytesIO(held), Pipe(held)):
            assert np.array_equal(read_audio(source).values, wanted)


@pytest.mark.parametrize("piece_s", [0.01, 0.32, 0.5, 7])
def test_pieces_are_the_whole(piece_s: float) -> None:
    held = recording([tone(440, 44100, 1.7)], 44100, "flac", "flac")
    pieces = [piece.values for piece in stream_audio(held, piece_s)]
    assert {len(piece) for piece in pieces[:-1]} <= {round(piece_s * SAMPLING_RATE)}
    assert np.array_equal(np.concatenate(pieces), read_audio(held).values)


def test_a_pipe_is_heard_while_it_is_spoken() -> None:
    pipe = Pipe(recording([tone(440, SAMPLING_RATE, 60)], SAMPLING_RATE))
    first = next(stream_audio(pipe, 0.1))
    assert first.duration_s == 0.1 and pipe.num_read < 600_000  # of 1.9 million


def test_an_hour_takes_no_more_memory_than_a_minute() -> None:
    """A file that says the same frame over and over; only the pieces are held."""
    frame = recording([tone(440, 44100, 0.5)], 44100, "mp3", "libmp3lame")
    longest = total = 0
    for piece in stream_audio(frame * 60, piece_s=1):
        longest, total = max(longest, len(piece.values)), total + len(piece.values)
    assert longest == SAMPLING_RATE and total > 25 * SAMPLING_RATE


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int16", "int32", "uint8"])
def test_arrays_of_any_kind(dtype: str) -> None:
    said = tone(440, SAMPLING_RATE)
    kind = np.dtype(dtype)
    if kind.kind != "f":
        top = 2.0 ** (8 * kind.itemsize - 1)
        said = np.round(said * top) + (top if kind.kind == "u" else 0)
    heard = resample(said.astype(kind), SAMPLING_RATE).values
    np.testing.assert_allclose(heard, tone(440, SAMPLING_RATE), atol=0.01)


def test_tensors_lists_and_two_channels() -> None:
    said = torch.from_numpy(tone(440, SAMPLING_RATE))
    both = torch.stack([said, torch.zeros_like(said)])
    for values, factor in ((said, 1), (said.bfloat16(), 1), (said.tolist(), 1), (both, 2)):
        np.testing.assert_allclose(resample(values, SAMPLING_RATE).values, said / factor, atol=2e-3)
    assert np.array_equal(
        resample(both, SAMPLING_RATE).values, resample(both.T, SAMPLING_RATE).values
    )
    assert resample(said, 44100).duration_s == pytest.approx(16000 / 44100, abs=1e-3)


# ---- what cannot be heard ------------------------------------------------------------------------


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "none.mp3")
    assert "not a file" in error_of(tmp_path)
    assert "0 bytes" in error_of(b"")
    assert "cannot be read" in error_of(b"Dear reader,\n" * 100)
    assert "cannot be read" in error_of(os.urandom(5000))
    assert "not fetched" in error_of("https://example.com/a.mp3")
    assert "binary mode" in error_of(io.StringIO("RIFF"))
    assert "path, bytes" in error_of(17)


def test_recordings_without_sound(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mp4", [0, 0.2])
    assert "no sound track: it holds only video" in error_of(film)
    whole = recording([tone(440, SAMPLING_RATE)], SAMPLING_RATE)
    header = whole[: whole.index(b"data") + 4] + struct.pack("<I", 0)
    assert "holds no sound" in error_of(header)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 32767.0])
def test_samples_that_are_no_numbers(value: float) -> None:
    said = tone(440, SAMPLING_RATE)
    said[12345] = value
    held = recording([said], SAMPLING_RATE, "wav", "pcm_f32le")
    assert "at index 12345" in error_of(held)
    with pytest.raises(InputError, match="at index 12345"):
        resample(said, 44100)


@pytest.mark.parametrize(
    ("values", "rate", "word"),
    [
        ([], SAMPLING_RATE, "0 samples"),
        (np.zeros((0, 2)), SAMPLING_RATE, "0 samples"),
        (np.zeros((2, 2, 2)), SAMPLING_RATE, "3 axes"),
        (0.5, SAMPLING_RATE, "0 axes"),
        ([[0.1], [0.1, 0.2]], SAMPLING_RATE, "different lengths"),
        (np.array(["a"]), SAMPLING_RATE, "<U1"),
        (np.zeros(4, np.complex64), SAMPLING_RATE, "complex64"),
        (np.zeros(4, bool), SAMPLING_RATE, "bool"),
        (np.zeros(400), 0, "0 samples a second"),
        (np.zeros(400), 44100.5, "44100.5"),
        (np.zeros(400), 1 << 40, "768,000"),
        (np.full(4, 1e300), SAMPLING_RATE, "inf"),
        (np.array([[np.inf, 0.1, 0.2], [-np.inf, 0.1, 0.2]]), SAMPLING_RATE, "nan at index 0"),
        (np.zeros(1), 768_000, "holds no sound"),
    ],
)
def test_arrays_that_are_no_sound(values: Any, rate: int, word: str) -> None:
    with pytest.raises(InputError, match=word):
        resample(values, rate)


def test_a_rate_that_would_swell_is_refused() -> None:
    held = recording([tone(440, SAMPLING_RATE)], SAMPLING_RATE)
    assert "1 samples a second" in error_of(
        held.replace(struct.pack("<I", SAMPLING_RATE), b"\1\0\0\0", 1)
    )


def test_too_long_to_hold_at_once() -> None:
    held = recording([tone(440, SAMPLING_RATE, 3)], SAMPLING_RATE)
    with pytest.raises(InputError, match="longer than the 2 s"):
        read_audio(held, limit_s=2)
    assert read_audio(held, limit_s=3).duration_s == 3


@pytest.mark.parametrize("piece_s", [0, -1, float("nan"), float("inf"), "1"])
def test_pieces_of_no_length(piece_s: Any) -> None:
    with pytest.raises(InputError, match="piece_s"):
        next(stream_audio(recording([tone(440, SAMPLING_RATE)], SAMPLING_RATE), piece_s))


def test_a_lost_end_and_broken_packets_are_noticed() -> None:
    flac = recording([tone(440, SAMPLING_RATE, 10)], SAMPLING_RATE, "flac", "flac")
    cut = read_audio(flac[: len(flac) // 2])
    assert 2 < cut.duration_s < 8 and "though its header says 10.0 s" in cut.notices[-1]
    mp3 = bytearray(recording([tone(440, 44100, 5)], 44100, "mp3", "libmp3lame"))
    half = len(mp3) // 2
    mp3[half : half + 600] = np.random.default_rng(0).bytes(600)
    heard = read_audio(bytes(mp3))
    assert 4.5 < heard.duration_s < 5.1 and "broken packets" in heard.notices[0]


FUZZED = {
    kind: recording([tone(440, rate, 0.3)], rate, container, codec)
    for kind, (container, codec, rate, _) in RECORDINGS.items()
    if kind in ("wav-16", "flac", "mp3", "m4a", "ogg-opus")
}


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(sorted(FUZZED)),
    cut=st.integers(1, 20000),
    spoilt=st.lists(st.tuples(st.integers(0, 20000), st.integers(0, 255)), max_size=8),
)
def test_broken_files_never_crash(kind: str, cut: int, spoilt: list[tuple[int, int]]) -> None:
    held = bytearray(FUZZED[kind][:cut])
    for at, value in spoilt:
        held[at % len(held)] = value
    try:
        assert isinstance(read_audio(bytes(held), limit_s=60), Samples)
    except GemeloError as error:
        assert "\n" not in str(error)


def test_a_chain_that_ends_early_is_said() -> None:
    needs("libopus")
    first = encoded(voices(2, 48000, 1.0), 48000, "ogg", "libopus")
    other = encoded(voices(1, 24000, 1.0), 24000, "ogg", "libopus")
    heard = read_audio(first + other)
    assert heard.duration_s == pytest.approx(1.0, abs=0.05)
    assert heard.notices[0].startswith("it is broken after 1.00 s, or goes on as another recording")


@pytest.mark.parametrize("container", ["matroska", "flac"])
def test_half_a_download_is_said(container: str) -> None:
    codec = "flac" if container == "flac" else "pcm_s16le"
    held = encoded(voices(1, 16000, 4.0), 16000, container, codec)
    notices = read_audio(held[: len(held) // 2]).notices
    assert re.match(r"it ends after [12]\.\d s, though its header says 4\.0 s", notices[-1])
    assert read_audio(held).notices == ()
