"""An album: the pictures and recordings of one prompt, opened in order and counted.

How many places a medium takes in a prompt is known only once it is open: a long picture has crops,
a recording as many tokens as it lasts, a video is frames with their times and a sound track. So a
renderer hands every medium to an album, gets back the texts and places it stands for, and the album
keeps what the towers will be given, in the same order. What a person should know is in `notices`.

    album = Album(config)
    album.unfold(MediaPart("image", "cat.jpg"))      # (ImageSlot(num_crops=0),)
    album.pictures, album.recordings, album.notices
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.config import ModelConfig
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.audio import LIMIT_S, RATE, Samples, read_audio, resample
from gemelo.inputs.media.borrowed import Readable
from gemelo.inputs.media.image import Picture, read_image, views
from gemelo.inputs.media.mel import HOP, SPAN, check_span, num_frames
from gemelo.inputs.media.panscan import PanScan, crops
from gemelo.inputs.media.parts import MediaPart, Part, TextPart, name_of, opened, video_parts
from gemelo.inputs.media.video import read_video
from gemelo.inputs.prompt.placeholders import AudioSlot, ImageSlot, Senses, Slot, senses_of

TRAINED_S = 30.0  # what the ear was trained on at a time


@dataclass(frozen=True)
class Viewing:
    """How media are looked at: Pan & Scan if its thresholds are given, the side of Gemma 3n's
    square in pixels (None for 768), frames a second of a video."""

    pan_and_scan: PanScan | None = None
    side: int | None = None
    fps: float = 1.0


class Album:
    """What the towers will be given for one prompt, for a model of `config`."""

    def __init__(self, config: ModelConfig, viewing: Viewing | None = None) -> None:
        """Raises InputError for a viewing that the model has no use for."""
        self.config, self.senses = config, senses_of(config)
        self.viewing = Viewing() if viewing is None else viewing
        self.side = side_of(config, self.viewing.side)
        self.pictures: list[Picture] = []  # squeezed; crops after their original
        self.recordings: list[Samples] = []
        self.notices: list[str] = []

    def unfold(self, part: MediaPart) -> tuple[str | Slot, ...]:
        """The texts and places that a medium stands for; it is opened and kept.

        Raises InputError for what cannot be read as its kind.
        """
        if part.kind == "image":
            return (self._picture(part.source),)
        if part.kind == "audio":
            return (self._recording(part.source),)
        return self._video(part.source)

    def _picture(self, source: Any) -> ImageSlot:
        picture = read_image(source)
        self._note(name_of(source, "image"), picture.notices)
        options = self.viewing.pan_and_scan
        boxes = [] if options is None else crops(picture.size, options)
        self.pictures += [view.squeezed(self.side) for view in views(picture, boxes)]
        return ImageSlot(len(boxes))

    def _recording(self, source: Any) -> AudioSlot:
        name = name_of(source, "audio")
        samples = samples_of(source, longest_s(self.config))
        self._note(name, samples.notices)
        if samples.duration_s > TRAINED_S:
            told = (
                f"it lasts {samples.duration_s:.0f} s, and the model was trained on "
                f"{TRAINED_S:.0f} s at a time: what comes later may be heard less well"
            )
            self._note(name, (told,))
        check_span(len(samples.values), name)
        self.recordings.append(samples)
        return AudioSlot(num_places(self.config, len(samples.values)))

    def _video(self, source: Any) -> tuple[str | Slot, ...]:
        name = name_of(source, "video")
        if isinstance(source, Readable):  # a pipe can be read once, and is needed twice
            with opened(source, "video") as source:
                return self._frames_and_sound(source, name)
        return self._frames_and_sound(source, name)

    def _frames_and_sound(self, source: Any, name: str) -> tuple[str | Slot, ...]:
        video = read_video(source, fps=self.viewing.fps, side=self.side)
        self._note(name, video.notices)
        hears = video.has_sound and self.senses.audio is not None
        if video.has_sound and not hears:
            self._note(name, ("its sound is left out: the model has no ear",))
        frames = [(frame.timestamp, frame.picture) for frame in video.frames]
        sound = read_audio(source, longest_s(self.config)) if hears else None
        if sound is not None and len(sound.values) < SPAN:
            self._note(name, (f"its sound lasts {sound.duration_s:.4f} s: too short to be heard",))
            sound = None
        unfolded: list[str | Slot] = []
        for part in video_parts(frames, sound):
            unfolded += (part.text,) if isinstance(part, TextPart) else self.unfold(part)
        return tuple(unfolded)

    def _note(self, name: str, notices: Sequence[str]) -> None:
        self.notices += [f"{name}: {notice}" for notice in notices]


def side_of(config: ModelConfig, asked: int | None) -> int:
    """The side of the square that a tower sees, in pixels; 0 where there is no eye."""
    sizes = () if config.vision is None else config.vision.image_sizes
    if asked is not None and asked not in sizes:
        sees = f"pictures of {sizes[0]} pixels" if sizes else "no picture"
        cure = f"this model sees {sees}; leave it out"
        if len(sizes) > 1:
            cure = f"give one of {', '.join(map(str, sizes))}"
        raise InputError(f"a side of {asked} pixels: {cure}")
    return asked or max(sizes, default=0)


def num_places(config: ModelConfig, num_samples: int) -> int:
    """Soft tokens of a recording at 16 kHz: what the reference gives any clip, or more where it
    lasts longer. Raises InputError for one that is too short to be heard."""
    ear, tokens = config.audio, config.modalities.audio
    if ear is None or tokens is None:
        raise UnsupportedError("the model cannot take recordings: it has no tower for them")
    check_span(num_samples)
    return max(tokens.num_tokens, ear.num_tokens(num_frames(num_samples)))


def longest_s(config: ModelConfig) -> float:
    """The longest recording that a context of the model can hold, in seconds."""
    ear = config.audio
    if ear is None:
        return LIMIT_S
    return config.max_position_embeddings * ear.frames_per_token * HOP / RATE


def samples_of(source: Any, limit_s: float = LIMIT_S) -> Samples:
    """A recording as the ear hears it: a file, or samples at 16 kHz in an array or a tensor."""
    if isinstance(source, Samples):
        return source
    if isinstance(source, str | Path | bytes | bytearray | memoryview | Readable):
        return read_audio(source, limit_s)
    return resample(source, RATE)


def arranged(text: str, media: Sequence[MediaPart], senses: Senses) -> tuple[Part, ...]:
    """A text and its media as parts: at the placeholders that the text has for their kind, those
    of a kind that it has none for in front of it, all in the order given.

    Raises InputError where the placeholders of a kind are not as many as its media.
    """
    if not media:
        return (TextPart(text),)
    known = {"image": senses.image, "audio": senses.audio}
    kinds = {
        marks.placeholder: kind
        for kind, marks in known.items()
        if marks is not None and marks.placeholder in text
    }
    waiting = {mark: [part for part in media if part.kind == kind] for mark, kind in kinds.items()}
    for mark, files in waiting.items():
        if text.count(mark) != len(files):
            raise InputError(
                f"the prompt has {mark} {text.count(mark)} times for {len(files)} files of that "
                "kind: give one for each, or leave it out of the text"
            )
    parts: list[Part] = [part for part in media if part.kind not in kinds.values()]
    pattern = "|".join(map(re.escape, waiting))
    for piece in re.split(f"({pattern})", text) if waiting else (text,):
        if piece in waiting:
            parts.append(waiting[piece].pop(0))
        elif piece:
            parts.append(TextPart(piece))
    return tuple(parts)
