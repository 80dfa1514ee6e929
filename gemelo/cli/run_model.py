"""`gemelo run`: a model by its name, then a prompt to complete or answer; a chat without one.

Ollama's habit. With a PROMPT, or a pipe on stdin, it is `gemelo generate`, without them `gemelo
chat`, each with its own options and defaults. Both a pipe and a PROMPT are one text, the pipe's
first, as Ollama has it; `generate` reads its PROMPT alone then, as llama.cpp does, so that a loop
over the lines of stdin can call it.

    git diff | gemelo run small.gguf "What does this change?"
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import typer

from gemelo.cli.chat import chat
from gemelo.cli.generate import generate
from gemelo.cli.groups import with_parameters
from gemelo.cli.parsing import TYPED
from gemelo.cli.prompt_text import PromptSource, piped, plain, prompt_text
from gemelo.cli.terminal import read_stdin
from gemelo.errors import InputError


def _run(ctx: typer.Context, **values: Any) -> None:
    """Answer a prompt with a model, or chat with it.

    \b
    gemelo run demo "The capital of France is"
    gemelo run gemma3:1b
    git diff | gemelo run gemma3:1b "What does this change?"

    With a PROMPT, or a text from a pipe, this is `gemelo generate`; else it is `gemelo chat`, with
    the options and defaults of that. A pipe's text stands before the PROMPT.
    """
    source = PromptSource(values["prompt"], values["prompt_option"], values["file"])
    if source == PromptSource() and not piped():
        _chat(ctx, values)
    else:
        values |= {"prompt": None, "prompt_option": _joined(source), "file": None}
        generate(ctx=ctx, **values)


run_model = with_parameters(_run, signature(generate).parameters.values())


def _joined(source: PromptSource) -> str:
    """A prompt behind what a pipe holds."""
    reads_stdin = "-" in (source.prompt, source.file)
    if source == PromptSource() or reads_stdin or not piped():
        return prompt_text(source)
    asked, before = prompt_text(source), plain(read_stdin())
    return f"{before}\n\n{asked}" if before else asked


def _chat(ctx: typer.Context, values: dict[str, Any]) -> None:
    """The conversation, with what was said on the command line and chat's own defaults."""
    known, typed = signature(chat).parameters, ctx.meta[TYPED]
    given = [name for name in typed.names if name in values]
    for name in given:
        if name not in known:
            raise InputError(
                f"{typed.spelt[name]} is of `gemelo generate`: give a PROMPT too, or leave it out "
                "to chat"
            )
    settings = {
        name: ctx if parameter.annotation is typer.Context else parameter.default
        for name, parameter in known.items()
    }
    chat(**settings | {name: values[name] for name in (*given, "model")})
