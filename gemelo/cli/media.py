"""Media options: --image, --audio and --video as parts of a prompt.

Files go into the prompt in the order in which they were given, whatever their kinds, in front of
the text; or where the text has the model's own placeholders for them.

    gemelo generate --image a.jpg --audio b.mp3 --image c.png "..."
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemelo.cli.groups import Attachments, Crops, Frames
from gemelo.errors import GemeloError, InputError
from gemelo.extras import check_installed
from gemelo.inputs.media.panscan import DEFAULT, PanScan
from gemelo.inputs.media.parts import MODALITIES, NOUNS, READERS, MediaPart, Modality, open_media

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.inputs.prompt.chat import Prompt
    from gemelo.inputs.prompt.media_loader import VisionOptions


def attached_parts(attached: Attachments, names: Sequence[str]) -> list[MediaPart]:
    """The files of --image, --audio and --video, in the order of the command line: `names` are
    those of its parameters as they came, one for every time.

    Raises MissingExtraError for one that nothing is installed for.
    """
    waiting = {kind: iter(getattr(attached, kind) or ()) for kind in MODALITIES}
    kinds = [kind for name in names for kind in MODALITIES if kind == name]
    for kind in dict.fromkeys(kinds):
        check_extra(kind, READERS[kind])
    return [MediaPart(kind, next(waiting[kind])) for kind in kinds]


def check_extra(modality: Modality, readers: Sequence[str]) -> None:
    """Raise MissingExtraError unless `readers`, and what towers run in, are installed. It takes no
    time, so that it can be said before a model is looked for."""
    for package in (*readers, "torch"):
        check_installed(package, "media", what=f"{NOUNS[modality]}s")


def check_files(files: Sequence[MediaPart]) -> None:
    """Raise what is wrong with a file as an error of the option that named it, by its number."""
    counts: Counter[str] = Counter()
    for file in files:
        counts[file.modality] += 1
        try:
            with open_media(file.source, file.modality):
                pass
        except GemeloError as error:
            option = f"--{file.modality} {counts[file.modality]}"
            raise type(error)(f"{option}: {error}") from None


def vision_options(frames: Frames, crops: Crops, model: Model) -> VisionOptions:
    """How media are looked at, by a command's options, and by the model's files where they are
    silent. Raises InputError for a threshold that nothing would ask about, and for a size that the
    model does not take."""
    from gemelo.inputs.prompt.media_loader import VisionOptions, image_size_of

    own, pan_and_scan = model.checkpoint.preprocessor, frames.pan_and_scan
    is_on = own.do_pan_and_scan if pan_and_scan is None else pan_and_scan
    if not is_on and (overrides := thresholds(crops)):
        name, value = next(iter(overrides.items()))
        raise InputError(
            f"--{name.replace('_', '-')} {value} says nothing without --pan-and-scan: give both"
        )
    image_size = own.image_size if frames.image_size is None else frames.image_size
    image_size_of(model.checkpoint.config, frames.image_size)  # an error before anything is said
    cropping = pan_scan(crops, own.thresholds) if is_on else None
    return VisionOptions(cropping, image_size, frames.fps)


def thresholds(crops: Crops) -> dict[str, Any]:
    """Pan & Scan's thresholds that a command's options give."""
    return {name: value for name, value in vars(crops).items() if value is not None}


def pan_scan(crops: Crops, own: PanScan = DEFAULT) -> PanScan:
    """Pan & Scan as a command's options have it, the model's `own` where they are silent."""
    return dataclasses.replace(own, **thresholds(crops))


def chat_prompt(
    model: Model,
    text: str,
    files: Sequence[MediaPart],
    vision_options: VisionOptions,
    system: str | None,
) -> Prompt:
    """A user's turn of files and a text, after what the system says."""
    from gemelo.inputs.prompt.media_loader import place_media

    parts = place_media(text, files, model.encoders.modalities)
    check_files(files)
    content = parts if files else text
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    return model.prompt(messages, vision_options)


def completion_prompt(
    model: Model, text: str, files: Sequence[MediaPart], vision_options: VisionOptions
) -> Prompt:
    """A text to complete, with files in it."""
    from gemelo.inputs.prompt.chat import render_completion
    from gemelo.inputs.prompt.media_loader import place_media

    if not files:
        return model.prompt(text)
    media_loader = model.media_loader(vision_options)
    parts = place_media(text, files, media_loader.modalities)
    check_files(files)
    return render_completion(parts, model.tokenizer, media_loader)
