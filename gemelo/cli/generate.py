"""`gemelo generate` and `gemelo tokenize`: a prompt's completion as text or JSON, its token ids.

A model with a chat template answers the prompt as a user's turn; a base model completes it, and
says so. Without --json the text streams to stdout as it comes and everything else goes to stderr.

    gemelo generate "The capital of France is" --temperature 0 --json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemelo.checkpoints.locate import default_name, resolve
from gemelo.cli import elastic, media, options
from gemelo.cli.answer import answer, cancelled, load_model, note_length_stop, note_timings
from gemelo.cli.groups import (
    Attachments,
    Crops,
    Elastic,
    Frames,
    Loading,
    SamplingOptions,
    checked_sampling,
    grouped,
)
from gemelo.cli.parsing import TYPED
from gemelo.cli.prompt_text import PromptSource, note_media_files, piped, prompt_text
from gemelo.cli.terminal import argument_or_stdin, checked_text, note, print_json, show
from gemelo.engine.memory.process import peak_rss_bytes
from gemelo.errors import InputError

if TYPE_CHECKING:
    from gemelo.api import Model
    from gemelo.config.sampling import Sampling
    from gemelo.engine.completion import Choice, Completion
    from gemelo.engine.session import Session
    from gemelo.inputs.media.parts import MediaPart
    from gemelo.inputs.tokenizer.tokenizer import Tokenizer

_INTERRUPTED = 130
Prompt = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT|-",
        help="The text, in quotes; - reads it from stdin, and so does a pipe without a PROMPT. "
        "After -- it may begin with -.",
        show_default=False,
    ),
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", "-p", metavar="TEXT", hidden=True, help="PROMPT.")
]
PromptFile = Annotated[
    str | None,
    typer.Option("--file", "-f", metavar="FILE", help="Read the prompt from a text file."),
]
Text = Annotated[
    str | None,
    typer.Argument(
        metavar="TEXT|-",
        help="The text; - reads stdin exactly, without a byte order mark, and so does a pipe "
        "without a TEXT.",
        show_default=False,
    ),
]


@grouped
def generate(
    ctx: typer.Context,
    prompt: Prompt = None,
    *,
    prompt_option: PromptOption = None,
    file: PromptFile = None,
    system: options.System = None,
    attached: Attachments,
    frames: Frames,
    crops: Crops,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", help="Put the prompt into the chat template; an error if there is none."
        ),
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the prompt as it is, without a chat template.")
    ] = False,
    model: options.Model = None,
    sizes: Elastic,
    loading: Loading,
    sampling: SamplingOptions,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Continue a prompt, or answer it as a chat model.

    \b
    gemelo generate "The capital of France is"
    gemelo generate -m google/gemma-3-1b-it "Why is the sky blue?" --max-tokens 100
    gemelo generate --raw --temperature 0 --stop . --json --file prompt.txt
    git log -5 | gemelo generate -m google/gemma-3-1b-it --system "Sum this up."
    gemelo generate -m google/gemma-3n-E2B-it --image a.jpg --audio b.mp3 "What is this?"

    Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 interrupted (the text so far is kept).
    """
    text = prompt_text(PromptSource(prompt, prompt_option, file))
    files = media.attached_parts(attached, ctx.meta[TYPED].names)
    elastic.check_one_answer(sizes)
    _ = media.pan_scan(crops)  # what is wrong with it is an error before anything is loaded
    chosen = checked_sampling(sampling)
    if chosen.logprobs is not None and not json:
        raise InputError("--logprobs needs --json, which is where they are printed")
    if chosen.n > 1 and (sizes.speculate is not None or sizes.policy is not None):
        option = "--speculate" if sizes.policy is None else "--policy"
        raise InputError(f"{option} is for one continuation: leave it out, or --n {chosen.n}")
    if not quiet:
        _note_prompt(text, files)
    loaded = load_model(model, loading, sizes, quiet=quiet, verbose=verbose)
    session = loaded.session()
    elastic.apply(loaded, session, sizes)
    vision_options = media.vision_options(frames, crops, loaded)
    if _in_turns(loaded, system, chat, raw, quiet):
        instructions = None if system is None else checked_text("--system", system)
        full_prompt = media.chat_prompt(loaded, text, files, vision_options, instructions)
    else:
        full_prompt = media.completion_prompt(loaded, text, files, vision_options)
    streamed = not json and chosen.n == 1
    completion = answer(loaded, session, full_prompt, chosen, show if streamed else _swallow, quiet)
    if json:
        print_json(_json(model or default_name(), session, completion, chosen))
    else:
        _finish_text(completion, streamed)
    if not quiet:
        note_length_stop(loaded, completion.choices, chosen.max_tokens, "--max-tokens")
    if verbose:
        note_timings(completion)
        for line in elastic.summary(session):
            note(line)
    if cancelled(completion):
        if not quiet:
            note("(interrupted)")
        raise typer.Exit(_INTERRUPTED)


def tokenize(
    text: Text = None,
    model: options.Model = None,
    no_bos: Annotated[bool, typer.Option("--no-bos", help="Without <bos> in front.")] = False,
    no_special: Annotated[
        bool, typer.Option("--no-special", help="Spell out control strings in the text.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show the token ids of a text.

    Each line is an id and the vocabulary's piece for it. Loads no weights.

    \b
    gemelo tokenize "The capital of France is"
    gemelo tokenize --json - < prompt.txt
    """
    if text is None and not piped():
        raise InputError('there is no TEXT: gemelo tokenize "The capital of France is"')
    said = argument_or_stdin(text or "-")
    path = resolve(model, notify=lambda text: note(f"note: {text}"))
    from gemelo.checkpoints.tokenizers import read_tokenizer

    tokenizer: Tokenizer = read_tokenizer(path)
    ids = tokenizer.encode(said, bos=not no_bos, special=not no_special)
    pieces = tokenizer.pieces(ids)
    if json:
        print_json({"ids": ids, "pieces": pieces})
    else:
        for token, piece in zip(ids, pieces, strict=True):
            show(f"{token:7} {printable(piece)}\n")


def printable(piece: str) -> str:
    """A piece on one line: control characters as Python writes them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in piece)


def _note_prompt(text: str, files: Sequence[MediaPart]) -> None:
    """What a prompt looks like that was not meant so."""
    if not text and not files:
        note("note: the prompt is empty; the model begins from nothing")
    if not files:
        note_media_files(text)


def _in_turns(model: Model, system: str | None, chat: bool, raw: bool, quiet: bool) -> bool:
    """Whether the prompt is a user's turn: if the model has turns and nobody said --raw."""
    if chat and raw:
        raise InputError("--chat and --raw are opposites; give one of them")
    template = model.tokenizer.chat_template is not None
    if raw or not (template or chat or system):
        if system:
            raise InputError("--system needs a chat template; with --raw, put it in the prompt")
        if not raw and not quiet:
            note("note: this is a base model without a chat template; it completes the prompt")
        return False
    if not template:
        raise InputError(
            f"{'--chat' if chat else '--system'} needs a chat template and this base model has "
            "none; leave it out to complete the prompt, or use an instruction-tuned model"
        )
    return True


def _swallow(text: str) -> None:
    """Show nothing yet: the text is printed when it is whole."""


def _finish_text(completion: Completion, streamed: bool) -> None:
    if streamed:
        show("\n")
        return
    for number, choice in enumerate(completion.choices, 1):
        show(f"--- {number} ---\n{choice.text}\n")


def _json(
    name: str, session: Session, completion: Completion, sampling: Sampling
) -> dict[str, Any]:
    """The contract's object; `choices` too where there are several."""
    timings, logprobs = completion.timings, sampling.logprobs is not None
    first = _choice(completion.choices[0], logprobs)
    return {
        "model": name,
        "submodel": session.active.name if session.active else None,
        "prompt_token_ids": list(completion.prompt_token_ids),
        **first,
        "seed": completion.seed,
        "timings": {
            "load_s": timings.load_s,
            "time_to_first_token_s": timings.time_to_first_token_s,
            "prefill_s": timings.prefill_s,
            "decode_s": timings.decode_s,
            "repack_s": timings.repack_s,
            "prefill_tokens_per_s": timings.prefill_tokens_per_s,
            "decode_tokens_per_s": timings.decode_tokens_per_s,
        },
        "peak_rss_bytes": peak_rss_bytes(),
        **elastic.to_json(session),
    } | ({"choices": [_choice(c, logprobs) for c in completion.choices]} if sampling.n > 1 else {})


def _choice(choice: Choice, logprobs: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "finish_reason": choice.finish_reason,
    }
    if logprobs:
        fields["logprobs"] = _logprobs(choice)
    return fields


def _logprobs(choice: Choice) -> list[dict[str, Any]]:
    """One object a token; `top` lists the likeliest as [id, log-probability]."""
    tops: Sequence[Sequence[tuple[int, float]]] = choice.top_logprobs or [()] * len(
        choice.token_ids
    )
    return [
        {"id": token, "logprob": value, "top": [list(pair) for pair in top]}
        for token, value, top in zip(choice.token_ids, choice.logprobs, tops, strict=True)
    ]
