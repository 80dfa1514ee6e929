"""Channels: every number of them, planar or packed, in any order, is the mean or one clear line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from gemelo.inputs.media.audio import SAMPLING_RATE, read_audio, resample
from gemelo.inputs.media.audio_channels import Floats
from tests.inputs.recordings import can_encode, encoded, heard_in_a_child, hertz, voices

# container, codec, rate, numbers of channels
LOSSLESS = [
    ("wav", "pcm_s16le", 16000, (1, 2, 3, 6, 8, 16, 64)),
    ("mov", "pcm_s16le", 48000, (2, 8, 16)),
    ("aiff", "pcm_s16be", 44100, (1, 2, 6, 8)),
    ("caf", "pcm_s16le", 44100, (1, 2, 8, 16)),
    ("au", "pcm_s16be", 16000, (4, 8)),
    ("flac", "flac", 44100, (1, 2, 3, 4, 5, 6, 7, 8)),
    ("matroska", "flac", 48000, (8,)),
    ("mov", "alac", 44100, (1, 2, 6)),
    ("wv", "wavpack", 44100, (1, 2, 6, 8)),
    ("wav", "pcm_s64le", 16000, (2, 8)),
]
LOSSY = [
    ("adts", "aac", 44100, (1, 2, 3, 4, 5, 6, 8)),
    ("mp4", "aac", 48000, (1, 2, 6, 7, 8)),
    ("mpegts", "aac", 48000, (6, 8)),
    ("ogg", "libopus", 48000, (1, 2, 3, 5, 6, 7, 8)),
    ("matroska", "libopus", 48000, (8,)),
    ("ac3", "ac3", 48000, (1, 2, 6)),
    ("eac3", "eac3", 48000, (2, 6)),
    ("mp2", "mp2", 48000, (1, 2)),
]
Found = dict[str, tuple[str, list[str], Floats]]


def cases(table: list[tuple[str, str, int, tuple[int, ...]]]) -> list[tuple[str, str, int, int]]:
    return [(kind, codec, rate, count) for kind, codec, rate, counts in table for count in counts]


def caf(labels: list[int]) -> bytes:
    """A CAF file whose channels have these labels: 1 is left, 2 is right, 3 the middle."""
    held = encoded(voices(len(labels), 44100), 44100, "caf", "pcm_s16le")
    fields = b"".join(struct.pack(">II3f", label, 0, 0, 0, 0) for label in labels)
    named = struct.pack(">III", 0, 0, len(labels)) + fields
    chunk = b"chan" + struct.pack(">q", len(named)) + named
    at = held.find(b"chan")
    if at >= 0:
        (length,) = struct.unpack(">q", held[at + 4 : at + 12])
        held = held[:at] + held[at + 12 + length :]
    after = held.index(b"desc") + 12 + 32
    return held[:after] + chunk + held[after:]


def wav(channels: int) -> bytes:
    """A tenth of a second of zeros in many channels."""
    size = 3200 * channels
    kind = struct.pack("<HHIIHH", 1, channels, 16000, 32000 * channels, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + kind + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", 36 + size) + b"WAVE" + chunks + bytes(size)


def named(case: tuple[str, str, int, int]) -> str:
    return "-".join(map(str, case))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What a child heard of every recording."""
    files = {
        named(case): encoded(voices(case[3], case[2]), case[2], case[0], case[1])
        for case in cases(LOSSLESS + LOSSY)
        if can_encode(case[1])
    }
    files["right-left"] = caf([2, 1])
    files["right-left-middle"] = caf([2, 1, 3])
    files["left-left"] = caf([1, 1])
    files["65-channels"] = wav(65)
    return heard_in_a_child(files, tmp_path_factory.mktemp("channels"))


@pytest.mark.parametrize("case", cases(LOSSLESS), ids=named)
def test_the_mean_of_any_number_of_channels(case: tuple[str, str, int, int], found: Found) -> None:
    outcome, notices, heard = found[named(case)]
    assert (outcome, notices) == ("ok", [])
    said = np.mean(voices(case[3], case[2]), axis=0, dtype=np.float64).astype(np.float32)
    wanted = resample(said, case[2]).values
    near = 1e-2 if case[1] == "wavpack" else 2e-4
    np.testing.assert_allclose(heard, wanted[: len(heard)], atol=near)
    assert len(heard) >= 0.5 * SAMPLING_RATE - 1100  # an encoder may keep its last frame


@pytest.mark.parametrize("case", cases(LOSSY), ids=named)
def test_every_channel_of_a_lossy_coder(case: tuple[str, str, int, int], found: Found) -> None:
    if named(case) not in found:
        pytest.skip("this build of the library has no encoder for it")
    outcome, notices, heard = found[named(case)]
    assert (outcome, notices) == ("ok", [])
    middle = heard[1200:6800].astype(np.float64) * np.hanning(5600) * 2
    for channel in range(case[3]):
        turn = np.exp(-2j * np.pi * hertz(channel, case[3]) * np.arange(5600) / SAMPLING_RATE)
        strength = 2 * abs(np.mean(middle * turn)) * case[3]
        assert strength == pytest.approx(0.4, rel=0.35), f"channel {channel}"


@pytest.mark.parametrize(("name", "count"), [("right-left", 2), ("right-left-middle", 3)])
def test_channels_in_an_order_of_their_own(name: str, count: int, found: Found) -> None:
    outcome, _, heard = found[name]
    assert outcome == "ok"
    wanted = resample(voices(count, 44100).mean(0), 44100).values
    np.testing.assert_allclose(heard, wanted, atol=2e-4)


def test_one_channel_twice_and_too_many(found: Found) -> None:
    assert found["left-left"][0] == "ok"
    assert found["65-channels"][0] == "UnsupportedError"
    assert "65 channels: at most 64" in found["65-channels"][1][0]


# ---- what the mean loses -------------------------------------------------------------------------


def notices_of(sound: Floats, container: str = "wav", codec: str = "pcm_s16le") -> tuple[str, ...]:
    return read_audio(encoded(sound, 48000, container, codec)).notices


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_f32le"])
def test_opposite_phases_are_said(codec: str) -> None:
    voice = voices(1, 48000)
    (said,) = notices_of(np.concatenate([voice, -voice]), "wav", codec)
    assert "cancel each other out" in said and "one of them alone" in said
    four = np.concatenate([voice, -voice, 0.5 * voice, -0.5 * voice])
    assert "cancel" in notices_of(four)[0]
    assert notices_of(np.concatenate([voice, -0.5 * voice])) == ()
    assert notices_of(np.concatenate([voice, np.zeros_like(voice)])) == ()


def test_silence_is_said() -> None:
    assert notices_of(np.zeros((1, 24000), np.float32)) == ("it is silent: every sample is 0",)
    assert notices_of(np.zeros((6, 24000), np.float32)) == ("it is silent: every sample is 0",)
    (said,) = notices_of(0.001 * voices(1, 48000))
    assert "nearly silent" in said and "0.0004" in said
    assert notices_of(0.01 * voices(1, 48000)) == ()


def test_arrays_are_told_of_as_files_are() -> None:
    voice = voices(1, SAMPLING_RATE)[0]
    assert "cancel" in resample(np.stack([voice, -voice]), SAMPLING_RATE).notices[0]
    assert "cancel" in resample(np.stack([voice, -voice], axis=1), 44100).notices[0]
    assert "silent" in resample(np.zeros(8000), SAMPLING_RATE).notices[0]
    assert resample(voice, SAMPLING_RATE).notices == ()


def test_several_tracks_are_said(tmp_path: Path) -> None:
    import io

    import av

    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        tracks = [out.add_stream("pcm_s16le", rate=SAMPLING_RATE, layout="mono") for _ in range(3)]
        for track in tracks:
            frame = av.AudioFrame.from_ndarray(voices(1, SAMPLING_RATE), "flt", "mono")
            frame.sample_rate, frame.pts = SAMPLING_RATE, 0
            out.mux(track.encode(frame))
    (said,) = read_audio(file.getvalue()).notices
    assert said == "it has 3 sound tracks: number 1 is used"
