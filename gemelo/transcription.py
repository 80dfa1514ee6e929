"""Transcription: what was said, written down while it is being said.

The instruction comes first and the sound after it, so that soft tokens go into the cache as they
are settled, through the half of Gemma 3n's layers that own keys; when the sound is over only its
tail and the end of the prompt are left to read. A sound of any length is one stream; `cut` hears it
in stretches of at most 30 s, which is what the model was trained on, and puts the texts together.

    for heard in transcribe(model, stream_audio("talk.mp3"), Task(language="es")):
        print(heard.start_s, heard.text)

J soft tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gemelo.api import Model
from gemelo.engine.continuation import FinishReason, Piece
from gemelo.engine.media.encoders import content_key
from gemelo.engine.sampler import Sampling
from gemelo.engine.session import Session
from gemelo.engine.tokens import Soft
from gemelo.errors import InputError
from gemelo.inputs.media.audio import RATE, Samples
from gemelo.inputs.media.mel import SPAN, check_span
from gemelo.inputs.media.parts import MediaPart, Part, TextPart
from gemelo.inputs.media.segments import Cutter, Onset, Stretch, without_repeated
from gemelo.inputs.prompt.chat import complete
from gemelo.inputs.prompt.media_loader import TRAINED_S, num_places

LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "hi": "Hindi",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}


@dataclass(frozen=True)
class Task:
    """What is to be written: the words as they are, or in another language.

    Languages are codes of two letters or names. chain_of_thought transcribes before it translates,
    in one answer, as the model's announcement recommends.
    """

    language: str | None = None
    translate_to: str | None = None
    chain_of_thought: bool = False

    @property
    def instruction(self) -> str:
        """The words before the sound. Raises InputError for a chain without a translation."""
        spoken, wanted = language_name(self.language), language_name(self.translate_to)
        if self.chain_of_thought:
            if wanted is None:
                raise InputError(
                    "a chain of thought transcribes, then translates: say what into (translate_to)"
                )
            spoken = f" in {spoken}" if spoken else ""
            return (
                f"Transcribe the following speech segment{spoken}, then translate it into {wanted}:"
            )
        if wanted is not None:
            spoken = f" from {spoken}" if spoken else ""
            return f"Translate this audio{spoken} into {wanted}:"
        return f"Transcribe this audio{f' into {spoken}' if spoken else ''}:"


def language_name(language: str | None) -> str | None:
    """The English name of a language given by its code; any other word stands for itself."""
    if language is None:
        return None
    name = language.strip()
    if not name:
        raise InputError("the language is empty: give a code such as es, or a name")
    if len(name) == 2 and name.lower() not in LANGUAGES:
        raise InputError(f"language {name!r}: known codes are {', '.join(LANGUAGES)}; or its name")
    return LANGUAGES.get(name.lower(), name)


@dataclass(frozen=True)
class Heard:
    """What was said from start_s to end_s, in seconds from where a player begins; the silence
    before the first sound is left out."""

    start_s: float
    end_s: float
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


class Listening:
    """A prompt whose recording is still going on."""

    def __init__(self, model: Model, session: Session, instruction: str) -> None:
        self.model, self.session = model, session
        self.stream = model.audio_stream()
        marks = model.perception.senses.audio
        assert marks is not None, "a model without an ear has no stream"
        ids = prompt_ids(model, instruction)
        first = ids.index(marks.token_id)
        self.soft_id, self.num_samples = marks.token_id, 0
        self.before, self.after = ids[:first], ids[first + ids.count(marks.token_id) :]
        self.runs: list[Soft] = []

    def push(self, values: Any) -> None:
        """Hear samples (N,) at 16 kHz, and read what they settle."""
        self.num_samples += len(values)
        self._place(self.stream.push(values))
        self.session.listen(self._ids(), tuple(self.runs))

    def finish(self, sampling: Sampling) -> Iterator[Piece]:
        """The sound is over: read the rest, and answer."""
        self._place(self.stream.finish())
        spare = num_places(self.model.checkpoint.config, self.num_samples) - self._count()
        with torch.inference_mode():
            self._place(self.model.perception.silence(spare))
        ids = [*self._ids(), *self.after]
        return self.session.stream(ids, sampling, soft=tuple(self.runs))

    def _count(self) -> int:
        return sum(len(run.embeds) for run in self.runs)

    def _ids(self) -> list[int]:
        return [*self.before, *[self.soft_id] * self._count()]

    def _place(self, soft: Tensor) -> None:
        if len(soft):
            begin = len(self.before) + self._count()
            self.runs.append(Soft(begin, soft, content_key(soft.float())))


def prompt_ids(model: Model, instruction: str) -> list[int]:
    """The prompt of an instruction and a recording that is yet to come."""
    nothing = Samples(torch.zeros(2 * SPAN))
    if model.tokenizer.chat_template is None:
        parts: list[Part] = [TextPart(f"{instruction} "), MediaPart("audio", nothing)]
        return list(complete(parts, model.tokenizer, model.album()).ids)
    content = [{"type": "text", "text": instruction}, {"type": "audio", "audio": nothing}]
    return model.prompt_ids([{"role": "user", "content": content}])


def transcribe(
    model: Model,
    pieces: Iterable[Samples],
    task: Task | None = None,
    *,
    cut: bool = False,
    show: Callable[[str], None] | None = None,
    tell: Callable[[str], None] = lambda notice: None,
    **sampling: Any,
) -> Iterator[Heard]:
    """What is said in a sound that comes in pieces, each of any length; one `Heard`, or with `cut`
    one a stretch of at most 30 s.

    show gets the text as it is written, of an uncut sound alone; tell gets what a person should
    know. Sampling's fields follow; greedy unless they say otherwise. Raises UnsupportedError for a
    model without an ear, ContextLengthError for an uncut sound longer than the context, InputError
    for one too short for a token.
    """
    instruction = (Task() if task is None else task).instruction
    settings = Sampling.of({"temperature": 0.0, "max_tokens": 4096} | sampling)
    session = model.session()
    parts = stretches(pieces, tell) if cut else whole(pieces, tell)
    listening, text, longest = Listening(model, session, instruction), "", 0
    for part in parts:
        if len(part.values):
            listening.push(part.values)
        if not part.ends:
            continue
        longest = max(longest, listening.num_samples)
        if listening.num_samples >= SPAN:
            heard = answered(listening, settings, None if cut else show, part)
            if part.overlaps:
                heard = replace(heard, text=without_repeated(text, heard.text))
            text = heard.text
            yield heard
        elif longest >= SPAN and listening.num_samples:
            spare_s = listening.num_samples / RATE
            tell(f"the last {spare_s:.4f} s are a segment too short to be heard: left out")
        listening = Listening(model, session, instruction)
    check_span(longest)


def answered(
    listening: Listening, sampling: Sampling, show: Callable[[str], None] | None, last: Stretch
) -> Heard:
    """The answer to a sound that is over with its last part."""
    pieces = []
    for piece in listening.finish(sampling):
        pieces.append(piece)
        if show is not None:
            show(piece.text)
    return Heard(
        last.heard_s,
        last.start_s + listening.num_samples / RATE,
        "".join(piece.text for piece in pieces).strip(),
        tuple(token for piece in pieces for token in piece.token_ids),
        pieces[-1].finish_reason or "cancelled",
    )


def whole(pieces: Iterable[Samples], tell: Callable[[str], None]) -> Iterator[Stretch]:
    """A sound as one stretch of any length."""
    total, told, onset = 0, False, Onset()
    for piece in pieces:
        _tell_all(piece, tell)
        total += len(piece.values)
        if total > TRAINED_S * RATE and not told:
            told = True
            tell(
                f"the sound is longer than the {TRAINED_S:.0f} s that the model was trained on at "
                "a time: what comes later may be heard less well; cut it into segments"
            )
        values = piece.values.numpy()
        onset.hear(values)
        yield Stretch(values, 0.0, False, False, onset.time_s)
    yield Stretch(torch.zeros(0).numpy(), 0.0, True, False, onset.time_s)


def stretches(pieces: Iterable[Samples], tell: Callable[[str], None]) -> Iterator[Stretch]:
    """A sound in stretches of at most 30 s."""
    cutter = Cutter()
    for piece in pieces:
        _tell_all(piece, tell)
        yield from cutter.push(piece.values)
    rest = cutter.finish()
    if rest is not None:
        yield rest


def _tell_all(piece: Samples, tell: Callable[[str], None]) -> None:
    for notice in piece.notices:
        tell(f"the recording: {notice}")
