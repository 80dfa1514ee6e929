"""What a `MediaLoader` makes of a medium, wherever its bytes come from."""

from __future__ import annotations

import numpy as np
import pytest

from gemelo.config import Gemma3nConfig
from gemelo.errors import InputError
from gemelo.inputs.media.audio import Samples
from gemelo.inputs.media.parts import MediaPart
from gemelo.inputs.prompt import media_loader as opener
from gemelo.inputs.prompt.media_loader import MediaLoader, VisionOptions
from gemelo.inputs.prompt.placeholders import AudioPlaceholder, ImagePlaceholder
from tests.media import Pipe, film

CONFIG = Gemma3nConfig(vision_config={}, audio_config={})


def expanded(source: object) -> tuple[MediaLoader, tuple[object, ...]]:
    media_loader = MediaLoader(CONFIG, VisionOptions(image_size=256))
    return media_loader, media_loader.expand(MediaPart("video", source))


def test_a_film_is_its_frames_and_its_sound_from_a_pipe_too() -> None:
    held = film()
    for source in (held, memoryview(held), Pipe(held)):
        media_loader, places = expanded(source)
        assert places == ("00:00", ImagePlaceholder(), AudioPlaceholder(188))
        assert media_loader.pictures[0].size == (256, 256)
        assert media_loader.recordings[0].duration_s == pytest.approx(1, abs=0.06)
    with pytest.raises(InputError, match="the video has 0 bytes"):
        expanded(Pipe(b""))


def test_a_sound_track_too_short_for_a_token_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        opener, "read_audio", lambda source, limit_s: Samples(np.zeros(512, np.float32))
    )
    media_loader, places = expanded(film())
    assert places == ("00:00", ImagePlaceholder()) and media_loader.recordings == []
    assert "its sound lasts 0.0320 s: too short for an audio token" in media_loader.notices[-1]
