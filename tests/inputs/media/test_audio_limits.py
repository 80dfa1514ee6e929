"""Small recordings that would take gigabytes or minutes: refused in a line, early, in a child that
measures itself."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemelo.config import Gemma3nConfig
from gemelo.config.gemma3n_audio import AudioConfig
from gemelo.errors import GemeloError, InputError, UnsupportedError
from gemelo.inputs.media.audio import SAMPLING_RATE, read_audio, stream_audio
from gemelo.inputs.media.container import BUDGET_S, TimeBudget
from gemelo.inputs.media.mp4_boxes import check_boxes
from gemelo.inputs.media.parts import MediaPart
from gemelo.inputs.prompt.media_loader import MediaLoader, max_audio_s
from tests.inputs.recordings import encoded, stamped, voices
from tests.media import Pipe

MOST_MB, MOST_S = 600, 3.0
MEASURED = """
import json, sys, time
from gemelo.errors import GemeloError
from gemelo.inputs.media.audio import read_audio

found = []
for path in sys.argv[1:]:
    begin = time.process_time()
    try:
        said = f"ok: {read_audio(path).duration_s}"
    except GemeloError as error:
        said = str(error)
    status = open("/proc/self/status").read().split()  # a child's ru_maxrss begins at its parent's
    peak_mb = int(status[status.index("VmHWM:") + 1]) / 1024
    found.append([said, time.process_time() - begin, peak_mb])
print(json.dumps(found))
"""


def measured(files: list[bytes], folder: Path) -> list[str]:
    """What is said of each recording, if that takes neither much memory nor much time."""
    paths = [folder / str(number) for number in range(len(files))]
    for path, held in zip(paths, files, strict=True):
        path.write_bytes(held)
    child = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, paths)],
        check=True,
        timeout=120,
        capture_output=True,
    )
    found = json.loads(child.stdout)
    for said, spent_s, peak_mb in found:
        assert spent_s < MOST_S and peak_mb < MOST_MB and "\n" not in said, said
    return [said for said, _, _ in found]


def claims(held: bytes, box: bytes, at: int, *numbers: int) -> bytes:
    """The file, with other numbers behind the name of a box."""
    first = held.index(box) + at
    fields = struct.pack(f">{len(numbers)}I", *numbers)
    return held[:first] + fields + held[first + len(fields) :]


def lasting(seconds: int) -> bytes:
    """A FLAC file whose header says how long it is, though a second is there."""
    held = bytearray(encoded(voices(1, 8000, 1.0), 8000, "flac", "flac"))
    packed = int.from_bytes(held[18:26], "big")
    packed = packed >> 36 << 36 | seconds * 8000
    held[18:26] = packed.to_bytes(8, "big")
    return bytes(held)


def many_samples(count: int) -> bytes:
    held = stamped("mp4", "aac")
    held = claims(held, b"stsz", 8, 2, count)
    held = claims(held, b"stsc", 16, count)
    return claims(held, b"stts", 12, count, 1024)


def many_in_a_fragment(count: int) -> bytes:
    """A fragment whose samples are all as its header says."""
    moof = struct.pack(">I4sII", 16, b"mfhd", 0, 1)
    tfhd = struct.pack(">I4sIIII", 24, b"tfhd", 0x000018, 1, 1024, 0)
    trun = struct.pack(">I4sII", 16, b"trun", 0, count)
    traf = struct.pack(">I4s", 8 + len(tfhd) + len(trun), b"traf") + tfhd + trun
    return stamped("mp4", "aac") + struct.pack(">I4s", 8 + len(moof + traf), b"moof") + moof + traf


def information(size: int) -> bytes:
    """A WAV file that says that so many bytes of text follow."""
    held = encoded(voices(1, SAMPLING_RATE, 0.1), SAMPLING_RATE, "wav", "pcm_s16le")
    text = b"LIST" + struct.pack("<I", 0x7FFF0000) + b"INFOISFT" + struct.pack("<I", size)
    at = held.index(b"data")
    return held[:12] + held[12:at].split(b"LIST")[0] + text + held[at:]


# ---- length --------------------------------------------------------------------------------------


def test_a_header_is_believed_before_anything_is_decoded() -> None:
    with pytest.raises(InputError, match="lasts 14040 s or more"):
        read_audio(lasting(14040))
    heard = read_audio(lasting(600))
    assert heard.duration_s == pytest.approx(1.0) and "header says 600.0 s" in heard.notices[0]


@pytest.mark.parametrize(
    ("codec", "width"), [("pcm_s24le", 3), ("pcm_f32le", 4), ("pcm_mulaw", 1), ("pcm_s16le", 2)]
)
def test_hours_of_plain_samples_are_refused_at_once(
    codec: str, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the size of the file, which a header alone may get wrong."""
    held = encoded(voices(2, 8000, 1.0), 8000, "wav", codec)
    at = held.index(b"data") + 4
    size = 7200 * 8000 * 2 * width
    path = tmp_path / "long.wav"
    path.write_bytes(held[:at] + struct.pack("<I", size) + held[at + 4 :])
    assert read_audio(path).duration_s == pytest.approx(1.0)
    with path.open("r+b") as file:
        file.truncate(size + at + 4)  # silence
    monkeypatch.setattr(
        "gemelo.inputs.media.audio_track.decode_frames", lambda *given: pytest.fail("was decoded")
    )
    with pytest.raises(InputError, match="lasts 7200 s or more"):
        read_audio(path)


def test_a_limit_holds_while_decoding() -> None:
    held = encoded(voices(1, 8000, 3.0), 8000, "wav", "pcm_mulaw")
    with pytest.raises(InputError, match=r"longer than the 2 s that are read at once"):
        list(stream_audio(held, 0.1, limit_s=2))
    assert sum(piece.duration_s for piece in stream_audio(held, 0.1)) == pytest.approx(3.0)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x40000000, 0])
def test_sizes_of_wav_files_are_not_believed(size: int) -> None:
    held = encoded(voices(1, SAMPLING_RATE, 1.0), SAMPLING_RATE, "wav", "pcm_s16le")
    at = held.index(b"data") + 4
    said = struct.pack("<I", size)
    heard = read_audio(held[:4] + said + held[8:at] + said + held[at + 4 :])
    assert heard.duration_s == 1.0 and heard.notices == ()


def test_a_model_hears_what_its_context_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Gemma3nConfig(audio_config=vars(AudioConfig()))
    assert max_audio_s(config) == pytest.approx(config.max_position_embeddings * 0.16)
    media_loader = MediaLoader(replace(config, max_position_embeddings=50))
    held = encoded(voices(1, SAMPLING_RATE, 9.0), SAMPLING_RATE, "wav", "pcm_s16le")
    with pytest.raises(InputError, match="longer than the 8 s that are read at once"):
        media_loader.expand(MediaPart("audio", held))


# ---- memory --------------------------------------------------------------------------------------


def test_claims_that_would_take_memory(tmp_path: Path) -> None:
    files = {
        "30,000,000 samples": many_samples(30_000_000),
        "4,294,967,295 samples": many_samples(0xFFFFFFFF),
        "claims 100,000,": many_in_a_fragment(100_000_000),
        "": information(0x7A000000),
        "cannot": information(0x3FFFFFFF),
        "lasts 40000 s": lasting(40000),
    }
    for word, said in zip(files, measured([*files.values()], tmp_path), strict=True):
        assert word in said


def test_a_header_may_be_compressed_or_edited_too_much() -> None:
    held = stamped("mp4", "aac")
    with pytest.raises(InputError, match="compressed header"):
        check_boxes("a.mov", io.BytesIO(held.replace(b"mvhd", b"cmov")))
    with pytest.raises(InputError, match="track of the number 2147483648"):
        check_boxes("a.mov", io.BytesIO(claims(held, b"tkhd", 16, 1 << 31)))
    edits = claims(held, b"elst", 8, 1_000_000)
    with pytest.raises(InputError, match="1,000,000 edits"):
        check_boxes("a.mov", io.BytesIO(edits))


@pytest.mark.parametrize("container", ["mp4", "mov", "ipod", "3gp"])
def test_honest_boxes_are_let_through(container: str) -> None:
    held = stamped(container, "aac")
    file = io.BytesIO(held)
    check_boxes("a.mp4", file)
    assert file.tell() == 0
    wanted = read_audio(held)
    assert wanted.duration_s == pytest.approx(2.0, abs=0.1) and wanted.notices == ()
    piped = read_audio(Pipe(held))  # with its index at the end
    assert np.array_equal(piped.values, wanted.values)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 16, 0xFFFFFFFF])
def test_boxes_of_any_length_end(length: int) -> None:
    held = stamped("mp4", "aac")
    for box in (b"moov", b"trak", b"stbl", b"stsz", b"stsd", b"mdat", b"free"):
        at = held.find(box) - 4
        if at >= 0:
            broken = held[:at] + struct.pack(">I", length) + held[at + 4 :]
            check_boxes("a.mp4", io.BytesIO(broken))
            try:
                read_audio(broken)
            except GemeloError as error:
                assert len(str(error)) <= 500


# ---- time and kinds ------------------------------------------------------------------------------


def test_patience_ends_unless_there_is_sound() -> None:
    time_budget = TimeBudget("a.mp3")
    assert time_budget.left_s == BUDGET_S
    time_budget.left_s = 0.05
    time_budget.begin()
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        pass
    time_budget.earn(1.0)
    for _ in range(50):
        time_budget.check()
    time_budget.earn(-1.0)
    with pytest.raises(InputError, match=r"a\.mp3 takes too long"):
        for _ in range(50):
            time_budget.check()
    time_budget.end()


def test_coders_that_nobody_has_are_refused_by_name() -> None:
    held = bytearray(encoded(voices(1, 8000, 1.0), 8000, "wav", "pcm_s16le"))
    held[20:22] = b"\x22\0"  # what its samples are
    with pytest.raises(UnsupportedError, match="coded as truespeech.* convert it to FLAC"):
        read_audio(bytes(held))


def test_formats_that_nobody_has_are_refused() -> None:
    held = encoded(voices(1, 48000, 1.0), 48000, "spdif", "ac3")
    with pytest.raises(InputError, match="not one of those that are read"):
        read_audio(held)
