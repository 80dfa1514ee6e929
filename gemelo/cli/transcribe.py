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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gemelo.checkpoints.locate import DEMO, default_name, resolve
from gemelo.cli import options
from gemelo.cli.answer import load_model, note_length_stop
from gemelo.cli.groups import Loading, checked_sampling, grouped
from gemelo.cli.media import check_extra
from gemelo.cli.terminal import Interrupt, note, print_json, show, size
from gemelo.config.languages import LANGUAGES, OTHER_NAMES, language_name
from gemelo.config.sampling import TRANSCRIPTION
from gemelo.config.speech_task import Task
from gemelo.engine.memory.process import peak_rss_bytes
from gemelo.errors import InputError, MissingExtraError, UnavailableError, UnsupportedError
from gemelo.extras import require
from gemelo.inputs.media.parts import READERS, open_media

if TYPE_CHECKING:
    from gemelo.inputs.media.audio import Samples
    from gemelo.transcription import Segment

Format = Literal["text", "json", "srt", "vtt"]
_LIVE_S, _WHOLE_S = 0.5, 10.0  # how much is encoded at a time
_CURE = (
    "transcribe needs a Gemma 3n: -m google/gemma-3n-E2B-it, once its licence is accepted on its "
    "page of the hub (and HF_TOKEN set)"
)


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
            metavar="L",
            help="What is spoken: es, or Spanish.",
            show_default="the model finds out",
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
        bool, typer.Option("--segment", help="Cut at pauses into at most 30 s, the last 31.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How it is written.")] = "text",
    languages: Annotated[
        bool, typer.Option("--languages", help="List the languages by code and name, and leave.")
    ] = False,
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
    gemelo transcribe --languages

    A recording of any length is one answer; the model was trained on 30 s, which a note says.
    """
    if languages:
        show(language_list())
        return
    if (source is None) != microphone:
        raise InputError("give a file, - for stdin, or --microphone: one of them")
    if stream and format != "text":
        raise InputError(f"--stream writes text; leave it out for --format {format}")
    task = checked_task(language, translate_to, chain_of_thought)
    chosen = checked_sampling(sampling)
    check_recording(source)
    check_extra("audio", () if microphone else READERS["audio"])
    check_model(model)
    from gemelo.transcription import transcribe as segments_of

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
            if verbose and segment:
                note(f"segment {len(segments)}: {cost(one)}")
    if not stream:
        write(segments, format)
    elif not segment:
        show("\n")
    if not quiet:
        note_length_stop(loaded, segments, chosen.max_tokens, "--max-tokens")
    if verbose and segments:
        note_total(segments)


def checked_task(language: str | None, translate_to: str | None, chain_of_thought: bool) -> Task:
    """The task of the options; what is wrong with one is an error that names it."""
    if language is not None:
        language_name(language, "--language")
    if translate_to is not None:
        language_name(translate_to, "--translate-to")
    elif chain_of_thought:
        raise InputError("--chain-of-thought transcribes, then translates: say what --translate-to")
    return Task(language, translate_to, chain_of_thought)


def check_recording(source: str | None) -> None:
    """Raise InputError for a file that is missing, before a model is looked for."""
    if source == "":
        raise InputError("the name of the recording is empty: name a file, or - for stdin")
    if source is not None and source != "-":
        with open_media(source, "audio"):
            pass


def check_model(name: str | None) -> None:
    """Raise UnsupportedError for a model of a family that hears nothing, by its header alone."""
    if name != "" and (name or default_name()) == DEMO and not Path(DEMO).exists():
        embedded = "no model was named, and the embedded" if name is None else "the embedded"
        raise UnsupportedError(f"{embedded} Gemma 3 270M has no audio encoder; {_CURE}")
    from gemelo.checkpoints.open import open_source

    path = resolve(name)
    if not open_source(path).config.is_matformer:
        raise UnsupportedError(f"{path} is a Gemma 3 and has no audio encoder; {_CURE}")


def language_list() -> str:
    """A line for every language: its code, its name, and what else it is called."""
    others: dict[str, list[str]] = {}
    for name, code in OTHER_NAMES.items():
        others.setdefault(code, []).append(name)
    names = {code: ", ".join([name, *others.get(code, ())]) for code, name in LANGUAGES.items()}
    return "".join(f"{code:8}{name}\n" for code, name in names.items())


def cost(one: Segment) -> str:
    """What one segment took: seconds of sound, of encoding, of prefill and of decoding."""
    timings = one.timings
    return (
        f"{one.sound_s:.1f} s of sound, encoded in {one.encode_s:.2f} s; "
        f"prompt {timings.prefill_tokens} tokens in {timings.prefill_s:.2f} s "
        f"({timings.prefill_tokens_per_s:.1f} tokens/s), {timings.reused_tokens} reused; "
        f"answer {len(one.token_ids)} tokens in {timings.decode_s:.2f} s "
        f"({timings.decode_tokens_per_s:.1f} tokens/s); {times_real_time(one.sound_s, [one])}"
    )


def times_real_time(sound_s: float, segments: Sequence[Segment]) -> str:
    """Seconds of sound by the seconds that they took."""
    took_s = sum(one.encode_s + one.timings.prefill_s + one.timings.decode_s for one in segments)
    return f"{sound_s / took_s:.1f} x real time" if took_s else "in no time"


def note_total(segments: Sequence[Segment]) -> None:
    """What all of it took, on stderr; the cost of a sound that is one segment is told with it."""
    if len(segments) == 1:
        total = cost(segments[0])
    else:
        timings = [one.timings for one in segments]
        total = (
            f"{len(segments)} segments, {segments[-1].end_s:.1f} s of sound, encoded in "
            f"{sum(one.encode_s for one in segments):.2f} s; "
            f"prompts {sum(one.prefill_tokens for one in timings)} tokens in "
            f"{sum(one.prefill_s for one in timings):.2f} s; "
            f"answers {sum(len(one.token_ids) for one in segments)} tokens in "
            f"{sum(one.decode_s for one in timings):.2f} s; "
            f"{times_real_time(segments[-1].end_s, segments)}"
        )
    note(f"{total}; seed {segments[0].seed}; peak memory {size(peak_rss_bytes())}")


def write(segments: Sequence[Segment], format: Format) -> None:
    """The whole result on stdout."""
    if format == "json":
        text = " ".join(one.text for one in segments)
        print_json(
            {
                "text": text,
                "segments": [segment_fields(one) for one in segments],
                "seed": segments[0].seed if segments else None,
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
    elif format == "text":
        show("".join(f"{one.text}\n" for one in segments))
    else:
        show(subtitles(segments, format))


def segment_fields(one: Segment) -> dict[str, Any]:
    """A segment as JSON has it."""
    return {
        "start_s": one.start_s,
        "end_s": one.end_s,
        "text": one.text,
        "token_ids": list(one.token_ids),
        "finish_reason": one.finish_reason,
        "timings": {
            "sound_s": one.sound_s,
            "encode_s": one.encode_s,
            "prefill_s": one.timings.prefill_s,
            "decode_s": one.timings.decode_s,
            "prefill_tokens_per_s": one.timings.prefill_tokens_per_s,
            "decode_tokens_per_s": one.timings.decode_tokens_per_s,
        },
    }


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
    from gemelo.inputs.media.audio import SAMPLING_RATE, Samples

    try:
        require("sounddevice", "microphone", what="microphones")
    except MissingExtraError as error:
        raise MissingExtraError(f"{error}; on Linux also your system's libportaudio2") from None
    import sounddevice

    note("recording; Ctrl-C ends it")
    try:
        with sounddevice.InputStream(SAMPLING_RATE, channels=1, dtype="float32") as microphone:
            while not interrupt.requested:
                values, _ = microphone.read(round(_LIVE_S * SAMPLING_RATE))
                yield Samples(values[:, 0].copy())
    except sounddevice.PortAudioError as error:
        raise UnavailableError(f"the microphone cannot be read: {error}") from None
