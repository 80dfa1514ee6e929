"""Transcription: speech recognition and translation, segment by segment, while sound comes in.

The instruction comes first and the sound after it, so that embeddings go into the KV cache as they
are settled, through the half of Gemma 3n's layers that own keys; when the sound is over only its
tail and the end of the prompt are left to read. A sound of any length is one segment; `cut` makes
segments of at most 30 s (the last may have a second more), which is what the model was trained on,
and takes what two of them share out of the later one's text.

    for segment in transcribe(model, "talk.mp3", "es"):
        print(segment.start_s, segment.text)

J embeddings, D decoder width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from gemelo.api import Model
from gemelo.config.options import FinishReason
from gemelo.config.sampling import TRANSCRIPTION, Sampling, SamplingSettings
from gemelo.config.speech_task import Task
from gemelo.engine.continuation import Piece
from gemelo.engine.media.encoders import as_array, content_key
from gemelo.engine.session import Session
from gemelo.engine.timings import Timings
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.errors import InputError, shown
from gemelo.inputs.media.audio import SAMPLING_RATE, Samples, stream_audio
from gemelo.inputs.media.audio_channels import is_tensor
from gemelo.inputs.media.file_objects import Readable
from gemelo.inputs.media.mel import MIN_SAMPLES, check_min_samples
from gemelo.inputs.media.parts import MediaPart, Source, TextPart
from gemelo.inputs.media.segments import AudioSegment, Onset, Segmenter, without_overlap
from gemelo.inputs.prompt.chat import render, render_completion
from gemelo.inputs.prompt.media_loader import TRAINED_S, MediaLoader, samples_of
from gemelo.inputs.prompt.placeholders import AudioPlaceholder, Placeholder

if TYPE_CHECKING:
    from torch import Tensor

FILE_PIECE_S = 10.0  # of a file that is read piece by piece
SHORTEST_S = 1.0  # of a segment, where there is as much: a cue that can be read


@dataclass(frozen=True)
class Segment:
    """What was said from start_s to end_s, in seconds from where a player begins; the silence
    before the first sound is left out, as far as a second is left."""

    start_s: float
    end_s: float
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    sound_s: float = 0.0  # of sound that was heard for it, silence and overlap included
    encode_s: float = 0.0  # seconds that the audio encoder took
    timings: Timings = field(default_factory=Timings)  # of its prompt and its answer
    seed: int = 0


class StreamingPrompt:
    """A prompt whose recording is still going on. Every second costs the same, however long it
    has been: what is settled is written after what the cache holds."""

    def __init__(self, model: Model, session: Session, instruction: str) -> None:
        self.model, self.session, self.instruction = model, session, instruction
        self.stream = model.audio_stream()
        audio = model.encoders.modalities.audio
        assert audio is not None, "a model without an audio encoder has no stream"
        self.ids, self.after = prompt_around_audio(model, instruction)
        self.placeholder, self.num_samples = audio.token_id, 0
        self.num_audio_tokens = 0  # embeddings so far
        self.spans: list[EmbeddingSpan] = []
        self.encode_s = self.write_s = 0.0  # seconds so far, of the encoder and of the decoder
        self.reused_tokens: int | None = None  # that the cache held; None until it was asked

    def push(self, values: Any) -> None:
        """Encode samples (N,) at 16 kHz, and write the embeddings that are settled to the cache."""
        self.num_samples += len(values)
        started = time.perf_counter()
        more = self._append(self.stream.push(values))
        encoded = time.perf_counter()
        if self.spans and len(self.session.ids) + len(more) == len(self.ids):
            self.session.extend(more)
        else:  # the first piece, or one after a piece that was interrupted
            whole = Tokens(self.ids, self.spans)
            if self.reused_tokens is None:
                self.reused_tokens = self.session.tokens.common_prefix(whole)
            self.session.write(whole)
        self.encode_s += encoded - started
        self.write_s += time.perf_counter() - encoded

    def finish(self, sampling: Sampling) -> Iterator[Piece]:
        """The sound is over: read the rest, and answer."""
        started = time.perf_counter()
        self._append(self.stream.finish())
        encoders = self.model.encoders
        self._append(encoders.audio_padding(self.num_samples, self.num_audio_tokens))
        self.encode_s += time.perf_counter() - started
        tokens = Tokens([*self.ids, *self.after], self.spans)
        return self.session.stream(tokens, sampling)

    @property
    def timings(self) -> Timings:
        """Of the whole prompt and its answer: what was written before the sound was over is part
        of the prefill, and not reused."""
        turn, reused = self.session.timings, self.reused_tokens
        total = turn.reused_tokens + turn.prefill_tokens
        reused = turn.reused_tokens if reused is None else reused
        return replace(
            turn,
            prefill_s=self.write_s + turn.prefill_s,
            reused_tokens=reused,
            prefill_tokens=total - reused,
        )

    def _append(self, embeds: Tensor) -> Tokens:
        """Put embeddings (J, D) at the prompt's end; returns them alone, as tokens."""
        if not len(embeds):
            return Tokens([])
        values = as_array(embeds)
        span = EmbeddingSpan(0, values, content_key(values))
        more = [self.placeholder] * len(values)
        self.spans.append(span.moved(len(self.ids)))
        self.ids.extend(more)
        self.num_audio_tokens += len(values)
        return Tokens(more, [span])


class _PendingRecording(MediaLoader):
    """Opens nothing: a recording that is yet to come is one placeholder."""

    def expand(self, part: MediaPart) -> tuple[str | Placeholder, ...]:
        return (AudioPlaceholder(1),)


def prompt_around_audio(model: Model, instruction: str) -> tuple[list[int], list[int]]:
    """The ids before and after a recording that is yet to come, as the model's template has it."""
    loader = _PendingRecording(model.checkpoint.config, model.vision_options)
    parts = (TextPart(instruction), MediaPart("audio", "yet to come"))
    if model.tokenizer.chat_template is None:
        spaced = (TextPart(f"{instruction} "), parts[1])
        prompt = render_completion(spaced, model.tokenizer, loader)
    else:
        message = {"role": "user", "content": parts}
        prompt = render([message], model.tokenizer, media_loader=loader)
    audio = loader.modalities.audio
    assert audio is not None, "a model without an audio encoder has no stream"
    index = prompt.ids.index(audio.token_id)
    return list(prompt.ids[:index]), list(prompt.ids[index + 1 :])


def transcribe(
    model: Model,
    audio: Source | Samples | NDArray[Any] | Tensor | Iterable[Samples],
    task: Task | str | None = None,
    *,
    cut: bool = False,
    on_text: Callable[[str], None] | None = None,
    on_notice: Callable[[str], None] = lambda notice: None,
    sampling: Sampling | None = None,
    **settings: Unpack[SamplingSettings],
) -> Iterator[Segment]:
    """What is said in a recording, or in a sound that comes in pieces, each of any length; one
    `Segment`, or with `cut` one for at most 30 s each.

    audio is a file (a path, bytes, an open file), `Samples`, an array or a tensor at 16 kHz, or an
    iterable of `Samples`, such as `stream_audio` gives. task is a `Task`, or the language that is
    spoken: "es", or "Spanish"; None leaves that to the model.
    on_text gets the text as it is written, of an uncut sound alone; on_notice gets notices, for a
    person to read. sampling, or its fields as keywords, says how tokens are chosen; greedy if
    neither does.
    Raises UnsupportedError for a model without an audio encoder, ContextLengthError for an uncut
    sound longer than the context, InputError for one too short for a token, and for what is no
    sound, no task or no language.
    """
    prompt = StreamingPrompt(model, model.session(), _task(task).instruction)
    chosen, pieces = _sampling(sampling, settings), pieces_of(audio)
    parts = cut_at_pauses(pieces, on_notice) if cut else uncut(pieces, on_notice)
    return _segments(prompt, parts, chosen, cut, on_text)


def _segments(
    prompt: StreamingPrompt,
    parts: Iterator[AudioSegment],
    chosen: Sampling,
    cut: bool,
    on_text: Callable[[str], None] | None,
) -> Iterator[Segment]:
    """A segment for every part that ends one, each in a prompt of its own."""
    text, longest = "", 0
    for part in parts:
        if len(part.values):
            prompt.push(part.values)
        if not part.ends:
            continue
        longest = max(longest, prompt.num_samples)
        if prompt.num_samples >= MIN_SAMPLES:
            segment = transcribe_segment(prompt, chosen, None if cut else on_text, part)
            if part.overlaps:
                segment = replace(segment, text=without_overlap(text, segment.text))
            text = segment.text
            chosen = replace(chosen, seed=segment.seed)  # what one drew holds for all
            yield segment
        prompt = StreamingPrompt(prompt.model, prompt.session, prompt.instruction)
    check_min_samples(longest)


def _task(task: Task | str | None) -> Task:
    """A task; a text is the language that is spoken."""
    if task is None or isinstance(task, str):
        return Task(task)
    if not isinstance(task, Task):
        raise InputError(f'task = {shown(task)}; expected a Task, or a language such as "es"')
    return task


def pieces_of(
    audio: Source | Samples | NDArray[Any] | Tensor | Iterable[Samples],
) -> Iterator[Samples]:
    """A sound of any kind in pieces. Raises InputError for what is none."""
    if isinstance(audio, Samples):
        return iter((audio,))
    if isinstance(audio, np.ndarray) or is_tensor(audio):
        return iter((samples_of(audio),))
    if isinstance(audio, str | Path | bytes | bytearray | memoryview | Readable):
        return stream_audio(audio, FILE_PIECE_S)
    if not isinstance(audio, Iterable) or isinstance(audio, Mapping):
        raise _no_sound(audio)
    return map(_checked_piece, audio)


def _checked_piece(piece: Samples) -> Samples:
    if not isinstance(piece, Samples):
        raise _no_sound(piece)
    return piece


def _no_sound(value: object) -> InputError:
    return InputError(
        f"audio of type {type(value).__name__}: {shown(value)}; expected a file, Samples or an "
        "array at 16 kHz, or an iterable of Samples, as gemelo.stream_audio gives"
    )


def _sampling(sampling: Sampling | None, settings: Mapping[str, Any]) -> Sampling:
    """What was given, over the defaults of a transcription."""
    return Sampling.of(settings if sampling else vars(TRANSCRIPTION) | dict(settings), sampling)


def transcribe_segment(
    prompt: StreamingPrompt,
    sampling: Sampling,
    on_text: Callable[[str], None] | None,
    last: AudioSegment,
) -> Segment:
    """The answer to a sound that is over with its last part."""
    pieces = []
    for piece in prompt.finish(sampling):
        pieces.append(piece)
        if on_text is not None:
            on_text(piece.text)
    end_s = last.start_s + prompt.num_samples / SAMPLING_RATE
    return Segment(
        min(last.onset_s, max(last.start_s, end_s - SHORTEST_S)),
        end_s,
        "".join(piece.text for piece in pieces).strip(),
        tuple(token for piece in pieces for token in piece.token_ids),
        pieces[-1].finish_reason or "cancelled",
        prompt.num_samples / SAMPLING_RATE,
        prompt.encode_s,
        prompt.timings,
        prompt.session.seed,
    )


def uncut(pieces: Iterable[Samples], on_notice: Callable[[str], None]) -> Iterator[AudioSegment]:
    """A sound as one segment of any length, piece by piece."""
    total, noted, onset = 0, False, Onset()
    for piece in pieces:
        _report_notices(piece, on_notice)
        total += len(piece.values)
        if total > TRAINED_S * SAMPLING_RATE and not noted:
            noted = True
            on_notice(
                f"the sound is longer than the {TRAINED_S:.0f} s that the model was trained on at "
                "a time: what comes later may be heard less well; cut it into segments"
            )
        values = piece.values
        onset.push(values)
        yield AudioSegment(values, 0.0, False, False, onset.time_s)
    yield AudioSegment(np.zeros(0, np.float32), 0.0, True, False, onset.time_s)


def cut_at_pauses(
    pieces: Iterable[Samples], on_notice: Callable[[str], None]
) -> Iterator[AudioSegment]:
    """A sound in segments of at most 30 s, each in one part or more."""
    segmenter = Segmenter()
    for piece in pieces:
        _report_notices(piece, on_notice)
        yield from segmenter.push(piece.values)
    rest = segmenter.finish()
    if rest is not None:
        yield rest


def _report_notices(piece: Samples, on_notice: Callable[[str], None]) -> None:
    for notice in piece.notices:
        on_notice(f"the recording: {notice}")
