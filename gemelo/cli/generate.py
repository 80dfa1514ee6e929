"""`gemelo generate` and `gemelo tokenize`: a text in, its continuation or its tokens out.

A model with a chat template answers the prompt as a user's turn; a base model completes it, and
says so. Without --json the text streams to stdout as it comes and everything else goes to stderr.

    gemelo generate "The capital of France is" --temperature 0 --json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemelo.cli import options
from gemelo.cli.answer import answer, cancelled, load_model, tell_end, tell_timings
from gemelo.cli.terminal import argument_or_stdin, checked_text, note, print_json, show
from gemelo.errors import InputError

if TYPE_CHECKING:
    from gemelo.engine.model import Choice, Completion, Model

_INTERRUPTED = 130
Prompt = Annotated[
    str,
    typer.Argument(
        metavar="PROMPT|-",
        help="The text; - reads stdin, less one last line's end. After -- it may begin with -.",
    ),
]
Text = Annotated[
    str, typer.Argument(metavar="TEXT|-", help="The text; - reads stdin, exactly as it is.")
]


def generate(
    prompt: Prompt,
    system: options.System = None,
    chat: Annotated[bool, typer.Option("--chat", help="Insist on the chat template.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Complete the prompt as it is.")] = False,
    model: options.Model = None,
    format: options.Format = "native",
    threads: options.Threads = None,
    context: options.Context = None,
    kv_format: options.KVCacheFormat = "plain",
    device: options.Device = "auto",
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 1.0,
    top_k: options.TopK = 64,
    top_p: options.TopP = 0.95,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    presence_penalty: options.PresencePenalty = 0.0,
    frequency_penalty: options.FrequencyPenalty = 0.0,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    ignore_eos: options.IgnoreEos = False,
    n: options.Count = 1,
    logprobs: options.Logprobs = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Continue a prompt, or answer it where the model has a chat template.

    \b
    gemelo generate "The capital of France is"
    gemelo generate -m google/gemma-3-1b-it "Why is the sky blue?" --max-tokens 100
    gemelo generate --raw --temperature 0 --stop . --json - < prompt.txt

    Exit codes: 0 done, 1 failed, 2 the input was wrong, 130 interrupted (the text so far is kept).
    """
    text = _prompt(prompt)
    settings = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty, "logit_bias": parse_biases(logit_bias or []),
        "seed": seed, "max_tokens": max_tokens, "ignore_eos": ignore_eos, "n": n,
        "logprobs": logprobs, "stop": [checked_text("--stop", s) for s in stop or []],
    }  # fmt: skip
