"""Where pictures and recordings stand in a prompt, and the ids they become.

A family's template leaves one placeholder for each. Before the text is tokenised it is replaced
by a marker, as many soft tokens as the tower gives, a closing marker, and two newlines on either
side. That it happens in the text matters: the newlines merge with those around them, so "user\\n"
before a picture ends in one token of three newlines. Here text stays text until every piece is in
its place, and what lies between two markers is tokenised in one go. A placeholder in what a person
says in a chat is no placeholder: only a template's own, and those of a plain prompt, are.

    senses = senses_of(config)
    pieces = place("<start_of_image>What is this?", [ImageSlot()], [], senses, tokenizer)
    expand(pieces, senses, tokenizer)    # [2, 108, 255999, 262144, ..., 256000, 108, 3689, ...]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from gemelo.config import Modalities, ModelConfig, PlaceholderTokens
from gemelo.errors import ContextLengthError, InputError, UnsupportedError
from gemelo.inputs.media.panscan import BEFORE_CROPS, BEFORE_ORIGINAL, BETWEEN_CROPS
from gemelo.inputs.media.parts import Part, TextPart
from gemelo.inputs.templates.text import Text, spans
from gemelo.inputs.tokenizer.tokenizer import Tokenizer

AROUND = "\n\n"  # before the opening marker and after the closing one
Marks = PlaceholderTokens
Senses = Modalities


@dataclass(frozen=True)
class ImageSlot:
    """The place of a picture, and of the crops that Pan & Scan shows with it."""

    num_crops: int = 0


@dataclass(frozen=True)
class AudioSlot:
    """The place of a recording; num_tokens: its soft tokens, None for the reference's number."""

    num_tokens: int | None = None


Slot = ImageSlot | AudioSlot
Piece = str | int | Slot  # plain text, the id of a control string, or a place


def senses_of(config: ModelConfig) -> Senses:
    """The senses of a checkpoint; a text-only one has none."""
    return config.modalities


def check_senses(parts: Iterable[Part], senses: Senses) -> None:
    """Raises UnsupportedError where a model is given what it has no sense for.

    To be asked before anything is decoded. A video needs an eye; its sound is a part of its own.
    """
    kinds = [part.kind for part in parts if not isinstance(part, TextPart)]
    num_seen = sum(kind != "audio" for kind in kinds)
    if num_seen and senses.image is None:
        raise _senseless("eye", num_seen, "picture or video", "pictures and videos", senses)
    if len(kinds) > num_seen and senses.audio is None:
        heard = len(kinds) - num_seen
        raise _senseless("ear", heard, "recording", "recordings", senses)


def place(
    text: str,
    images: Sequence[ImageSlot],
    recordings: Sequence[AudioSlot],
    senses: Senses,
    tokenizer: Tokenizer,
) -> list[Piece]:
    """A plain prompt or a template's text in pieces, its placeholders filled, its controls read.

    Of a template's `Text` only the runs that the template wrote are read; what people said in it
    stays text. Raises InputError unless there are as many placeholders of a kind as slots.
    """
    runs = list(spans(text)) if isinstance(text, Text) else [(text, True)]
    written = [run for run, is_own in runs if is_own]
    slots: dict[str, Iterator[Slot]] = {}
    if images or senses.image is not None:
        eye = _needed(senses.image, "pictures")
        slots[eye.placeholder] = _matched(written, eye, images, "pictures")
    if recordings or senses.audio is not None:
        ear = _needed(senses.audio, "recordings")
        slots[ear.placeholder] = _matched(written, ear, recordings, "recordings")
    pieces: list[Piece] = []
    pattern = "|".join(map(re.escape, slots))
    for run, is_own in runs:
        if not is_own:
            pieces.append(run)
            continue
        for part in re.split(f"({pattern})", run) if slots else (run,):
            pieces += [next(slots[part])] if part in slots else tokenizer.split(part)
    return pieces


def expand(
    pieces: Iterable[Piece], senses: Senses, tokenizer: Tokenizer, *, bos: bool = True
) -> list[int]:
    """The ids of a prompt, with soft tokens where its pictures and recordings stand.

    Plain text between two ids is tokenised as a whole, its control strings spelt out. bos: begin
    with BOS, and not twice. Raises UnsupportedError for a slot the model has no sense for.
    """
    ids: list[int] = []
    for is_text, run in groupby(_written(pieces, senses), lambda piece: isinstance(piece, str)):
        if is_text:
            ids += tokenizer.encode("".join(map(str, run)), bos=False, special=False)
        else:
            ids += (id for held in run if not isinstance(held, str) for id in held)
    return tokenizer.begun(ids) if bos else ids


def check_room(ids: Sequence[int], senses: Senses, context: int) -> None:
    """Raises ContextLengthError for a prompt of more than `context` ids, with what fills it."""
    if len(ids) <= context:
        return
    filled = []
    for marks, noun in ((senses.image, "pictures and crops"), (senses.audio, "recordings")):
        if marks is not None and (count := ids.count(marks.begin_token_id)):
            filled.append(f"{ids.count(marks.token_id):,} of them for {count} {noun}")
    cure = "give fewer of them" if filled else "give a shorter one"
    raise ContextLengthError(
        f"the prompt has {', '.join([f'{len(ids):,} tokens', *filled])}: "
        f"the context holds {context:,}; {cure}"
    )


# ---- writing -------------------------------------------------------------------------------------


def _written(pieces: Iterable[Piece], senses: Senses) -> Iterator[str | list[int]]:
    """Texts and runs of ids, every slot written out."""
    for piece in pieces:
        if isinstance(piece, str):
            yield piece
        elif isinstance(piece, int):
            yield [piece]
        elif isinstance(piece, AudioSlot):
            marks = _needed(senses.audio, "recordings")
            yield from _full(marks, piece.num_tokens)
        else:
            yield from _views(_needed(senses.image, "pictures"), piece.num_crops)


def _views(marks: Marks, num_crops: int) -> Iterator[str | list[int]]:
    """A picture by itself, or the original and its crops with the words between them."""
    if not num_crops:
        yield from _full(marks)
        return
    yield BEFORE_ORIGINAL
    yield from _full(marks)
    for index in range(num_crops):
        yield BETWEEN_CROPS if index else BEFORE_CROPS
        yield from _full(marks)


def _full(marks: Marks, num_tokens: int | None = None) -> Iterator[str | list[int]]:
    count = marks.num_tokens if num_tokens is None else num_tokens
    yield AROUND
    yield [marks.begin_token_id, *[marks.token_id] * count, marks.end_token_id]
    yield AROUND


# ---- checks --------------------------------------------------------------------------------------


def _matched(runs: Sequence[str], marks: Marks, given: Sequence[Slot], noun: str) -> Iterator[Slot]:
    count = sum(run.count(marks.placeholder) for run in runs)
    if count != len(given):
        cure = "give one for each" if count > len(given) else f"write {marks.placeholder} for each"
        raise InputError(
            f"the prompt has {marks.placeholder} {count} times for {len(given)} {noun}: {cure}"
        )
    return iter(given)


def _needed(marks: Marks | None, noun: str) -> Marks:
    if marks is None:
        raise UnsupportedError(f"the model cannot take {noun}: it has no tower for them")
    return marks


def _senseless(organ: str, count: int, one: str, many: str, senses: Senses) -> UnsupportedError:
    has = "reads text only" if senses == Senses() else f"has no {organ}"
    able = "Gemma 3 from 4B up or a Gemma 3n" if organ == "eye" else "Gemma 3n with its ear"
    given = f"1 {one}" if count == 1 else f"{count} {many}"
    return UnsupportedError(f"the model {has}, and was given {given}: use a {able}")
