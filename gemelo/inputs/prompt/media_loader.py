"""Media loading: the images and audio of one prompt, preprocessed in order and counted in tokens.

How many tokens a medium takes in a prompt is known only once it is open: a long picture has crops,
a recording as many tokens as it lasts, a video is frames with their times and a sound track. So a
renderer hands every medium to a `MediaLoader`, gets back the texts and placeholders it stands for,
and the loader keeps what the towers will be given, in the same order. What a person should know is
in `notices`.

    loader = MediaLoader(config)
    loader.expand(MediaPart("image", "cat.jpg"))      # (ImagePlaceholder(num_crops=0),)
    loader.pictures, loader.recordings, loader.notices
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.config import AudioConfig, Modalities, ModelConfig
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.audio import LIMIT_S, SAMPLING_RATE, Samples, read_audio, resample
from gemelo.inputs.media.file_objects import Readable
from gemelo.inputs.media.image import Picture, read_image, views
from gemelo.inputs.media.mel import HOP_LENGTH, MIN_SAMPLES, NUM_MELS, check_min_samples, num_frames
from gemelo.inputs.media.panscan import PanScan, crops
from gemelo.inputs.media.parts import MediaPart, Part, TextPart, name_of, open_media, video_parts
from gemelo.inputs.media.video import read_video
from gemelo.inputs.prompt.placeholders import (
    AudioPlaceholder,
    ImagePlaceholder,
    Placeholder,
)

TRAINED_S = 30.0  # what the audio encoder was trained on at a time


@dataclass(frozen=True)
class VisionOptions:
    """How images and videos are preprocessed: Pan & Scan if its thresholds are given, Gemma 3n's
    image size in pixels (None for 768), frames a second of a video."""

    pan_and_scan: PanScan | None = None
    image_size: int | None = None
    fps: float = 1.0


class MediaLoader:
    """What the towers will be given for one prompt, for a model of `config`."""

    def __init__(self, config: ModelConfig, vision_options: VisionOptions | None = None) -> None:
        """Raises InputError for a vision_options that the model has no use for."""
        self.config, self.modalities = config, config.modalities
        self.vision_options = VisionOptions() if vision_options is None else vision_options
        self.image_size = image_size_of(config, self.vision_options.image_size)
        self.pictures: list[Picture] = []  # resized; crops after their original
        self.recordings: list[Samples] = []
        self.notices: list[str] = []

    def expand(self, part: MediaPart) -> tuple[str | Placeholder, ...]:
        """The texts and places that a medium stands for; it is opened and kept.

        Raises InputError for what cannot be read as its modality.
        """
        if part.modality == "image":
            return (self._picture(part.source),)
        if part.modality == "audio":
            return (self._recording(part.source),)
        return self._video(part.source)

    def _picture(self, source: Any) -> ImagePlaceholder:
        picture = read_image(source)
        self._note(name_of(source, "image"), picture.notices)
        options = self.vision_options.pan_and_scan
        boxes = [] if options is None else crops(picture.size, options)
        self.pictures += [view.resized(self.image_size) for view in views(picture, boxes)]
        return ImagePlaceholder(len(boxes))

    def _recording(self, source: Any) -> AudioPlaceholder:
        name = name_of(source, "audio")
        samples = samples_of(source, max_audio_s(self.config))
        self._note(name, samples.notices)
        if samples.duration_s > TRAINED_S:
            notice = (
                f"it lasts {samples.duration_s:.0f} s, and the model was trained on "
                f"{TRAINED_S:.0f} s at a time: what comes later may be understood less well"
            )
            self._note(name, (notice,))
        check_min_samples(len(samples.values), name)
        self.recordings.append(samples)
        return AudioPlaceholder(num_audio_tokens(self.config, len(samples.values)))

    def _video(self, source: Any) -> tuple[str | Placeholder, ...]:
        name = name_of(source, "video")
        if isinstance(source, Readable):  # a pipe can be read once, and is needed twice
            with open_media(source, "video") as source:
                return self._frames_and_sound(source, name)
        return self._frames_and_sound(source, name)

    def _frames_and_sound(self, source: Any, name: str) -> tuple[str | Placeholder, ...]:
        video = read_video(source, fps=self.vision_options.fps, image_size=self.image_size)
        self._note(name, video.notices)
        takes_sound = video.has_sound and self.modalities.audio is not None
        if video.has_sound and not takes_sound:
            self._note(name, ("its sound is left out: the model has no audio encoder",))
        frames = [(frame.timestamp, frame.picture) for frame in video.frames]
        sound = read_audio(source, max_audio_s(self.config)) if takes_sound else None
        if sound is not None and len(sound.values) < MIN_SAMPLES:
            self._note(
                name, (f"its sound lasts {sound.duration_s:.4f} s: too short for an audio token",)
            )
            sound = None
        expanded: list[str | Placeholder] = []
        for part in video_parts(frames, sound):
            expanded += (part.text,) if isinstance(part, TextPart) else self.expand(part)
        return tuple(expanded)

    def _note(self, name: str, notices: Sequence[str]) -> None:
        self.notices += [f"{name}: {notice}" for notice in notices]


def image_size_of(config: ModelConfig, asked: int | None) -> int:
    """The side of the square that a vision tower takes, in pixels; 0 where there is none."""
    sizes = () if config.vision is None else config.vision.image_sizes
    if asked is not None and asked not in sizes:
        takes = f"pictures of {sizes[0]} pixels" if sizes else "no picture"
        cure = f"this model takes {takes}; leave it out"
        if len(sizes) > 1:
            cure = f"give one of {', '.join(map(str, sizes))}"
        raise InputError(f"an image size of {asked} pixels: {cure}")
    return asked or max(sizes, default=0)


def num_audio_tokens(config: ModelConfig, num_samples: int) -> int:
    """Audio tokens of a recording at 16 kHz: what the reference gives any clip, or more where it
    lasts longer. Raises InputError for one that is too short."""
    encoder, tokens = config.audio, config.modalities.audio
    if encoder is None or tokens is None:
        raise UnsupportedError("the model cannot take recordings: it has no tower for them")
    check_min_samples(num_samples)
    return max(tokens.num_tokens, encoder.num_tokens(num_frames(num_samples)))


def check_audio_encoder(config: AudioConfig | None) -> None:
    """Raise UnsupportedError for a model without an audio encoder, or one of other spectrograms."""
    if config is None:
        raise UnsupportedError(
            "the model has no audio encoder: use a Gemma 3n with its audio encoder"
        )
    if config.input_feat_size != NUM_MELS:
        raise UnsupportedError(
            f"audio_config has input_feat_size = {config.input_feat_size}; gemelo makes "
            f"spectrograms of {NUM_MELS}"
        )


def max_audio_s(config: ModelConfig) -> float:
    """The longest recording that a context of the model can hold, in seconds."""
    encoder = config.audio
    if encoder is None:
        return LIMIT_S
    return config.max_position_embeddings * encoder.frames_per_token * HOP_LENGTH / SAMPLING_RATE


def samples_of(source: Any, limit_s: float = LIMIT_S) -> Samples:
    """A recording at 16 kHz: a file, or samples at 16 kHz in an array or a tensor."""
    if isinstance(source, Samples):
        return source
    if isinstance(source, str | Path | bytes | bytearray | memoryview | Readable):
        return read_audio(source, limit_s)
    return resample(source, SAMPLING_RATE)


def place_media(text: str, media: Sequence[MediaPart], modalities: Modalities) -> tuple[Part, ...]:
    """A text and its media as parts: at the placeholders that the text has for their modality,
    those of a modality that it has none for in front of it, all in the order given.

    Raises InputError where the placeholders of a modality are not as many as its media.
    """
    if not media:
        return (TextPart(text),)
    known = {"image": modalities.image, "audio": modalities.audio}
    placed = {
        tokens.placeholder: modality
        for modality, tokens in known.items()
        if tokens is not None and tokens.placeholder in text
    }
    waiting = {
        placeholder: [part for part in media if part.modality == modality]
        for placeholder, modality in placed.items()
    }
    for placeholder, files in waiting.items():
        if (count := text.count(placeholder)) != len(files):
            raise InputError(
                f"the prompt has {placeholder} {count} times for {len(files)} files of that kind: "
                "give one for each, or leave it out of the text"
            )
    parts: list[Part] = [part for part in media if part.modality not in placed.values()]
    pattern = "|".join(map(re.escape, waiting))
    for piece in re.split(f"({pattern})", text) if waiting else (text,):
        if piece in waiting:
            parts.append(waiting[piece].pop(0))
        elif piece:
            parts.append(TextPart(piece))
    return tuple(parts)
