"""What an album makes of a medium, wherever its bytes come from."""

from __future__ import annotations

import pytest
import torch

from gemelo.config import Gemma3nConfig
from gemelo.errors import InputError
from gemelo.inputs import album as opener
from gemelo.inputs.album import Album, Viewing
from gemelo.inputs.audio import Samples
from gemelo.inputs.media import MediaPart
from gemelo.inputs.slots import AudioSlot, ImageSlot
from tests.media import Pipe, film

CONFIG = Gemma3nConfig(vision_config={}, audio_config={})


def unfolded(source: object) -> tuple[Album, tuple[object, ...]]:
    album = Album(CONFIG, Viewing(side=256))
    return album, album.unfold(MediaPart("video", source))


def test_a_film_is_its_frames_and_its_sound_from_a_pipe_too() -> None:
    held = film()
    for source in (held, memoryview(held), Pipe(held)):
        album, places = unfolded(source)
        assert places == ("00:00", ImageSlot(), AudioSlot(188))
        assert album.pictures[0].size == (256, 256)
        assert album.recordings[0].duration_s == pytest.approx(1, abs=0.06)
    with pytest.raises(InputError, match="the video has 0 bytes"):
        unfolded(Pipe(b""))


def test_a_sound_track_too_short_for_a_token_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opener, "read_audio", lambda source, limit_s: Samples(torch.zeros(512)))
    album, places = unfolded(film())
    assert places == ("00:00", ImageSlot()) and album.recordings == []
    assert "its sound lasts 0.0320 s: too short to be heard" in album.notices[-1]
