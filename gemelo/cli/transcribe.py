"""`gemelo transcribe`: speech recognition and translation, as text, JSON or subtitles.

A file, stdin or a microphone is encoded as it comes. Ctrl-C ends a microphone's recording, and then
what was said so far is written; a second one ends the program.

    gemelo transcribe talk.mp3 --segment --format srt > talk.srt
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gemelo.cli import options
from gemelo.cli.answer import load_model, note_length_stop
from gemelo.cli.groups import Loading, checked_sampling, grouped
from gemelo.cli.terminal import Interrupt, note, print_json, show
from gemelo.config.sampling import TRANSCRIPTION
from gemelo.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from gemelo.inputs.media.audio import Samples
    from gemelo.transcription import Segment

Format = Literal["text", "json", "srt", "vtt"]
_LIVE_S, _WHOLE_S = 0.5, 10.0  # how much is encoded at a time


@dataclass(frozen=True)
class AudioLoading:
    """How a model is loaded; --format is the transcript's, so that of weights is --weights."""

    submodel: options.Submodel = None
    mmproj: options.Mmproj = None
    repack: options.Repack = True
    weights: options.Weights = "native"
    threads: options.Threads = None
    context: options.Context = None
    device: options.Device = "auto"

    def shared(self) -> Loading:
        """As other commands have it."""
        return Loading(
            mmproj=self.mmproj,
            repack=self.repack,
            format=self.weights,
            threads=self.threads,
            context=self.context,
            device=self.device,
        )


@dataclass(frozen=True)
class TranscriptSampling:
    """What is worth setting for a transcript."""

    max_tokens: options.MaxTokens = TRANSCRIPTION.max_tokens
    temperature: options.Temperature = TRANSCRIPTION.temperature
    seed: options.Seed = TRANSCRIPTION.seed


@grouped
def transcribe(
    source: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="A recording; - reads stdin.")
    ] = None,
    microphone: Annotated[bool, typer.Option("--microphone", help="Record, until Ctrl-C.")] = False,
    language: Annotated[
        str | None,
        typer.Option(
            metavar="L", help="What is spoken: es, or Spanish.", show_default="the model finds out"
        ),
    ] = None,
    translate_to: Annotated[
        str | None,
        typer.Option(
            metavar="L", help="Write it in this language.", show_default="as it is spoken"
        ),
    ] = None,
    chain_of_thought: Annotated[
        bool, typer.Option("--chain-of-thought", help="Transcribe, then translate.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write while the model answers; text alone.")
    ] = False,
    segment: Annotated[
        bool, typer.Option("--segment", help="Cut at pauses into at most 30 s.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How it is written.")] = "text",
    model: options.Model = None,
    *,
    loading: AudioLoading,
    sampling: TranscriptSampling,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write down what is said in a recording, or translate it. Needs a Gemma 3n.

    \b
    gemelo transcribe talk.mp3 -m google/gemma-3n-E2B-it
    gemelo transcribe lecture.m4a --segment --format srt -m google/gemma-3n-E2B-it
    gemelo transcribe - --language es --translate-to en --chain-of-thought < rede.ogg
    gemelo transcribe talk.mp3 -m two.gguf --mmproj mmproj-two.gguf
    gemelo transcribe --microphone --stream --segment -m google/gemma-3n-E2B-it

    A recording of any length is one answer; the model was trained on 30 s, which a note says.
    """
    from gemelo.transcription import Task
    from gemelo.transcription import transcribe as segments_of

    if (source is None) != microphone:
        raise InputError("give a file, - for stdin, or --microphone: one of them")
    if stream and format != "text":
        raise InputError(f"--stream writes text; leave it out for --format {format}")
    task = Task(language, translate_to, chain_of_thought)
    _ = task.instruction  # what is wrong with it is an error before anything is loaded
    chosen = checked_sampling(sampling)
    loaded = load_model(model, loading.shared(), quiet=quiet, verbose=verbose)
    if loading.submodel is not None:
        loaded = loaded.submodel(loading.submodel)
    loaded.audio_stream()  # an error here and not later, if it has no audio encoder
    with Interrupt() if microphone else nullcontext() as interrupt:
        pieces = recorded(source, stream) if interrupt is None else spoken(interrupt)
        parts = segments_of(
            loaded,
            pieces,
            task,
            cut=segment,
            on_text=show if stream and not segment else None,
            on_notice=(lambda notice: None) if quiet else lambda notice: note(f"note: {notice}"),
            sampling=chosen,
        )
        segments = []
        for one in parts:
            segments.append(one)
            if stream and segment:
                show(f"{one.text}\n")
    if not stream:
        write(segments, format)
    elif not segment:
        show("\n")
    if not quiet:
        note_length_stop(loaded, segments, chosen.max_tokens, "--max-tokens")


def write(segments: Sequence[Segment], format: Format) -> None:
    """The whole result on stdout."""
    if format == "json":
        text = " ".join(one.text for one in segments)
        print_json({"text": text, "segments": [asdict(one) for one in segments]})
    elif format == "text":
        show("".join(f"{one.text}\n" for one in segments))
    else:
        show(subtitles(segments, format))


def subtitles(segments: Sequence[Segment], format: Format) -> str:
    """SubRip or WebVTT, a cue a segment; a silent one has none."""
    comma = "," if format == "srt" else "."
    blocks = ["WEBVTT\n"] if format == "vtt" else []
    for number, one in enumerate((one for one in segments if one.text), 1):
        times = f"{clock(one.start_s, comma)} --> {clock(one.end_s, comma)}"
        words = "\n".join(line for line in one.text.splitlines() if line.strip())
        if format == "vtt":
            words = words.replace("-->", "->")
        blocks.append(f"{number}\n{times}\n{words}\n")
    return "\n".join(blocks)


def clock(time_s: float, comma: str) -> str:
    """hh:mm:ss,mmm."""
    thousandths = round(time_s * 1000)
    seconds, rest = divmod(thousandths, 1000)
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}{comma}{rest:03d}"


def recorded(source: str | None, live: bool) -> Iterator[Samples]:
    """A file or stdin, in pieces."""
    from gemelo.inputs.media.audio import stream_audio

    if source == "":
        raise InputError("the name of the recording is empty: name a file, or - for stdin")
    if source is not None and source != "-":
        return stream_audio(source, _LIVE_S if live else _WHOLE_S)
    if sys.stdin is None:
        raise InputError("there is no stdin to read a recording from")
    recording = sys.stdin.buffer
    if isinstance(recording, io.BufferedReader) and not recording.peek(1):
        raise InputError("stdin is empty: no recording came")
    return stream_audio(recording, _LIVE_S)


def spoken(interrupt: Interrupt) -> Iterator[Samples]:
    """A microphone, in pieces, until Ctrl-C."""
    import torch

    from gemelo.inputs.media.audio import SAMPLING_RATE, Samples

    try:
        import sounddevice
    except (ImportError, OSError):
        raise UnavailableError(
            "a microphone needs sounddevice and PortAudio: pip install 'gemelo[microphone]'"
        ) from None
    note("recording; Ctrl-C ends it")
    try:
        with sounddevice.InputStream(SAMPLING_RATE, channels=1, dtype="float32") as microphone:
            while not interrupt.requested:
                values, _ = microphone.read(round(_LIVE_S * SAMPLING_RATE))
                yield Samples(torch.from_numpy(values[:, 0].copy()))
    except sounddevice.PortAudioError as error:
        raise UnavailableError(f"the microphone cannot be read: {error}") from None
