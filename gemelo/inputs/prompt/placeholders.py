"""Placeholder tokens: where images and audio stand in a prompt, and the token ids they become.

A family's template leaves one placeholder for each. Before the text is tokenised it is replaced
by a begin token, as many tokens as the tower gives, an end token, and two newlines on either
side. That it happens in the text matters: the newlines merge with those around them, so "user\\n"
before a picture ends in one token of three newlines. Here text stays text until every piece is in
its place, and what lies between two markers is tokenised in one go. A placeholder in what a person
says in a chat is no placeholder: only a template's own, and those of a plain prompt, are.

    modalities = config.modalities
    prompt, images = "<start_of_image>What is this?", [ImagePlaceholder()]
    chunks = fill_placeholders(prompt, images, [], modalities, tokenizer)
    tokenize(chunks, modalities, tokenizer)    # [2, 108, 255999, 262144, ..., 256000, 108, ...]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gemelo.config import Modalities, PlaceholderTokens
from gemelo.errors import ContextLengthError, InputError, UnsupportedError
from gemelo.inputs.media.panscan import BEFORE_CROPS, BEFORE_ORIGINAL, BETWEEN_CROPS
from gemelo.inputs.media.parts import NOUNS, Part, TextPart
from gemelo.inputs.templates.text import Text, spans
from gemelo.inputs.tokenizer.tokenizer import Tokenizer

AROUND = "\n\n"  # before the begin token and after the end token


@dataclass(frozen=True)
class ImagePlaceholder:
    """Where a picture stands, and the crops that Pan & Scan shows with it."""

    num_crops: int = 0


@dataclass(frozen=True)
class AudioPlaceholder:
    """Where a recording stands; num_tokens: None for the reference's number."""

    num_tokens: int | None = None


Placeholder = ImagePlaceholder | AudioPlaceholder
Chunk = str | int | Placeholder  # plain text, the id of a control string, or a placeholder


def check_modalities(parts: Iterable[Part], modalities: Modalities) -> None:
    """Raises UnsupportedError where a model is given a modality that it has no tower for.

    To be asked before anything is decoded. A video needs a vision tower; its sound is a part of its
    own.
    """
    given = [part.modality for part in parts if not isinstance(part, TextPart)]
    counts = {noun: given.count(kind) for kind, noun in NOUNS.items()}
    heard = {NOUNS["audio"]: counts.pop(NOUNS["audio"])}
    if any(counts.values()) and modalities.image is None:
        raise _unsupported_modality("vision tower", counts, modalities)
    if any(heard.values()) and modalities.audio is None:
        raise _unsupported_modality("audio encoder", heard, modalities)


def fill_placeholders(
    text: str,
    images: Sequence[ImagePlaceholder],
    recordings: Sequence[AudioPlaceholder],
    modalities: Modalities,
    tokenizer: Tokenizer,
) -> list[Chunk]:
    """A plain prompt or a template's text in chunks, its placeholders filled, its controls read.

    Of a template's `Text` only the runs that the template wrote are read; what people said in it
    stays text. Raises InputError unless there are as many placeholders of a modality as media.
    """
    runs = list(spans(text)) if isinstance(text, Text) else [(text, True)]
    written = [run for run, is_own in runs if is_own]
    waiting: dict[str, Iterator[Placeholder]] = {}
    if images or modalities.image is not None:
        tokens = _needed(modalities.image, "pictures")
        waiting[tokens.placeholder] = _matched(written, tokens, images, "pictures")
    if recordings or modalities.audio is not None:
        tokens = _needed(modalities.audio, "recordings")
        waiting[tokens.placeholder] = _matched(written, tokens, recordings, "recordings")
    chunks: list[Chunk] = []
    pattern = "|".join(map(re.escape, waiting))
    for run, is_own in runs:
        if not is_own:
            chunks.append(run)
            continue
        for part in re.split(f"({pattern})", run) if waiting else (run,):
            chunks += [next(waiting[part])] if part in waiting else tokenizer.split(part)
    return chunks


def tokenize(
    chunks: Iterable[Chunk], modalities: Modalities, tokenizer: Tokenizer, *, bos: bool = True
) -> list[int]:
    """The ids of a prompt, with image and audio tokens where its media stand.

    Plain text between two ids is tokenised as a whole, its control strings as text. bos: begin
    with BOS, and not twice. Raises UnsupportedError for a modality that the model has no tower for.
    """
    ids: list[int] = []
    for is_text, run in groupby(_written(chunks, modalities), lambda chunk: isinstance(chunk, str)):
        if is_text:
            ids += tokenizer.encode("".join(map(str, run)), bos=False, special=False)
        else:
            ids += (id for run_ids in run if not isinstance(run_ids, str) for id in run_ids)
    return tokenizer.with_prefix_tokens(ids) if bos else ids


def check_context_length(ids: Sequence[int], modalities: Modalities, context: int) -> None:
    """Raises ContextLengthError for a prompt of more than `context` ids, with what fills it."""
    if len(ids) <= context:
        return
    filled = []
    for tokens, noun in (
        (modalities.image, "pictures and crops"),
        (modalities.audio, "recordings"),
    ):
        if tokens is not None and (count := ids.count(tokens.begin_token_id)):
            filled.append(f"{ids.count(tokens.token_id):,} of them for {count} {noun}")
    cure = "give fewer of them" if filled else "give a shorter one"
    raise ContextLengthError(
        f"the prompt has {', '.join([f'{len(ids):,} tokens', *filled])}: "
        f"the context holds {context:,}; {cure}"
    )


# ---- writing -------------------------------------------------------------------------------------


def _written(chunks: Iterable[Chunk], modalities: Modalities) -> Iterator[str | list[int]]:
    """Texts and runs of ids, every placeholder written out."""
    for chunk in chunks:
        if isinstance(chunk, str):
            yield chunk
        elif isinstance(chunk, int):
            yield [chunk]
        elif isinstance(chunk, AudioPlaceholder):
            tokens = _needed(modalities.audio, "recordings")
            yield from _full(tokens, chunk.num_tokens)
        else:
            yield from _views(_needed(modalities.image, "pictures"), chunk.num_crops)


def _views(tokens: PlaceholderTokens, num_crops: int) -> Iterator[str | list[int]]:
    """A picture by itself, or the original and its crops with the words between them."""
    if not num_crops:
        yield from _full(tokens)
        return
    yield BEFORE_ORIGINAL
    yield from _full(tokens)
    for index in range(num_crops):
        yield BETWEEN_CROPS if index else BEFORE_CROPS
        yield from _full(tokens)


def _full(tokens: PlaceholderTokens, num_tokens: int | None = None) -> Iterator[str | list[int]]:
    count = tokens.num_tokens if num_tokens is None else num_tokens
    yield AROUND
    yield [tokens.begin_token_id, *[tokens.token_id] * count, tokens.end_token_id]
    yield AROUND


# ---- checks --------------------------------------------------------------------------------------


def _matched(
    runs: Sequence[str], tokens: PlaceholderTokens, given: Sequence[Placeholder], noun: str
) -> Iterator[Placeholder]:
    count = sum(run.count(tokens.placeholder) for run in runs)
    if count != len(given):
        cure = "give one for each" if count > len(given) else f"write {tokens.placeholder} for each"
        raise InputError(
            f"the prompt has {tokens.placeholder} {count} times for {len(given)} {noun}: {cure}"
        )
    return iter(given)


def _needed(tokens: PlaceholderTokens | None, noun: str) -> PlaceholderTokens:
    if tokens is None:
        raise UnsupportedError(f"the model cannot take {noun}: it has no tower for them")
    return tokens


def _unsupported_modality(
    tower: str, counts: Mapping[str, int], modalities: Modalities
) -> UnsupportedError:
    has = "reads text only" if modalities == Modalities() else f"has no {tower}"
    able = (
        "Gemma 3 from 4B up or a Gemma 3n"
        if tower == "vision tower"
        else f"Gemma 3n with its {tower}"
    )
    given = [
        f"the {noun}" if count == 1 else f"the {count} {noun}s"
        for noun, count in counts.items()
        if count
    ]
    return UnsupportedError(
        f"the model {has} and cannot take {' and '.join(given)}: use a {able}, or with a GGUF its "
        "own mmproj file (--mmproj)"
    )
