"""Readers of what people write, show and say: templates, messages, pictures, sound, video."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import templates
from fuzzing.mutations import (
    mutated_bytes,
    mutated_value,
)
from fuzzing.readers import Reader
from fuzzing.seeds import MESSAGES, Seeds, vocabulary
from gemelo.inputs.media.audio import read_audio, stream_audio
from gemelo.inputs.media.image import pixel_values, read_image
from gemelo.inputs.media.video import read_video
from gemelo.inputs.prompt import chat
from gemelo.inputs.tokenizer.tokenizer import Tokenizer

MEAN = (0.5, 0.5, 0.5)


def chat_readers() -> list[Reader]:
    tokenizer = Tokenizer.from_gguf(vocabulary())

    def template(rng: Random) -> tuple[str, Any]:
        messages = MESSAGES if rng.random() < 0.8 else mutated_value(rng, MESSAGES)
        return templates.made(rng), messages

    def take_template(case: tuple[str, Any], folder: Path) -> None:
        text, messages = case
        chat.render(messages, dataclasses.replace(tokenizer, chat_template=text))

    def take_messages(messages: Any, folder: Path) -> None:
        chat.render(messages, tokenizer)

    return [
        Reader("template", template, take_template),
        Reader("messages", lambda rng: mutated_value(rng, MESSAGES, 4), take_messages),
    ]


# ---- media ---------------------------------------------------------------------------------------


def media_readers(seeds: Seeds) -> list[Reader]:
    def of(kind: list[bytes]) -> Callable[[Random], bytes]:
        return lambda rng: mutated_bytes(rng, rng.choice(kind), until=2048)

    return [
        Reader("picture", of(seeds.pictures), _take_picture),
        Reader("sound", of(seeds.sounds), _take_sound),
        Reader("video", of(seeds.videos), _take_video),
    ]


def _take_picture(content: bytes, folder: Path) -> None:
    pixel_values(read_image(content).resized(32), MEAN, MEAN)


def _take_sound(content: bytes, folder: Path) -> None:
    try:
        read_audio(content)
    finally:
        path = folder / "sound"
        path.write_bytes(content)
        for _ in stream_audio(path):
            pass


def _take_video(content: bytes, folder: Path) -> None:
    video = read_video(content, image_size=32, max_frames=20)
    if video.has_sound:
        read_audio(content)
