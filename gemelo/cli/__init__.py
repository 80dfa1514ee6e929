"""Command-line interface: the typer app, its commands, and exit codes of errors.

A command parses, calls one library function and prints. Each lives in the file of its group and
imports what it needs when it runs, so that `gemelo --help` loads typer and nothing else. Errors
become one line and an exit code here: 0 done, 1 failed, 2 the input was wrong, 130 interrupted. The
program itself begins in `gemelo.__main__`.

    gemelo generate "The capital of France is"
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

import gemelo
from gemelo.cli import bench, chat, convert, generate, models, run_model, terminal, transcribe
from gemelo.cli import show as show_commands
from gemelo.cli.aliases import own_words
from gemelo.cli.groups import model_first
from gemelo.cli.parsing import CommandGroup, SectionedCommand, ShowGroup, bad_value
from gemelo.errors import GemeloError, InputError

_FAILED, _WRONG, _INTERRUPTED = 1, 2, 130
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

app = typer.Typer(
    cls=CommandGroup,
    rich_markup_mode=None,  # rich help takes twice as long as all the rest
    pretty_exceptions_enable=False,
    context_settings=_SETTINGS,
    invoke_without_command=True,
)
shows = typer.Typer(
    cls=ShowGroup,
    rich_markup_mode=None,
    help="Show a model, its sub-models, or a picture's crops.",
    no_args_is_help=False,
)
for _group, _name, _command in (
    (app, "run", model_first(run_model.run_model)),
    (app, "generate", generate.generate),
    (app, "chat", model_first(chat.chat)),
    (app, "transcribe", transcribe.transcribe),
    (app, "tokenize", generate.tokenize),
    (app, "pull", models.pull),
    (app, "list", models.list_models),
    (app, "rm", models.remove),
    (app, "convert", convert.convert),
    (app, "slice", convert.slice_model),
    (app, "bench", model_first(bench.bench)),
    (shows, "model", model_first(show_commands.show_model)),
    (shows, "sizes", model_first(show_commands.show_sizes)),
    (shows, "crops", show_commands.show_crops),
):
    _group.command(_name, cls=SectionedCommand, context_settings=_SETTINGS)(_command)
app.add_typer(shows, name="show", context_settings=_SETTINGS)


def _print_version(verbose: bool) -> None:
    print(f"gemelo {gemelo.__version__}")
    if verbose:
        import platform

        from gemelo.kernels import native

        python = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
        missing = native.missing_kernels_notice()
        print(f"{python}; {missing or f'native kernels: {native.isa()}'}")


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version; with -v what it runs on, too.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the traceback of an internal error.")
    ] = False,
) -> None:
    """Run, convert and look into Gemma 3 and Gemma 3n models on the hardware you have.

    \b
    First steps:
    gemelo run demo "The capital of France is"   demo is the embedded Gemma 3 270M; it goes
                                                 on with a text, and cannot converse
    gemelo run gemma3:1b                         a conversation, with a model that is fetched
                                                 first (0.8 GB, no account); Ctrl-D leaves
    gemelo list --known                          names to fetch, their sizes, and what each reads
    gemelo list                                  the models that are on this machine

    \b
    Then:
    gemelo convert google/gemma-3-1b-it small.gguf --format q4_0
    gemelo run small.gguf "Why is the sky blue?" --temperature 0
    git log -5 | gemelo run small.gguf "Sum this up."
    gemelo help generate                         or any other command

    \b
    GEMELO_MODEL     the model where none is named; without it, demo
    GEMELO_CACHE     the folder of gemelo's own files (~/.cache/gemelo)
    HF_TOKEN         your token of the Hugging Face hub, for models whose licence you accepted
    HF_HUB_OFFLINE   1: the network is not used; only what was fetched runs
    """
    if version:
        _print_version(verbose)
        raise typer.Exit
    _check_current_folder()
    if ctx.invoked_subcommand is None:
        terminal.page(ctx.get_help())
        raise typer.Exit(_WRONG)


def _check_current_folder() -> None:
    """In a folder that was removed, libraries that are loaded later end the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the current folder was removed; change to another with `cd`") from None


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; every error is one line on stderr."""
    try:
        code = app(args=own_words(words), prog_name="gemelo", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else _FAILED
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except Exception as error:
        return _report_error(error, words)


def _report_error(error: Exception, words: Sequence[str]) -> int:
    """Print an error as one line on stderr; its exit code."""
    match error:
        case GemeloError():
            terminal.note(f"error: {error}")
            return error.exit_code
        case typer.TyperException():
            message = bad_value(error) or " ".join(error.format_message().split())
            terminal.note(
                f"error: {message} (`{' '.join(['gemelo', *_command_in(words)])} --help` helps)"
            )
            return error.exit_code
        case BrokenPipeError():
            _discard_stdout()  # whoever read it has had enough
            return _FAILED
        case OSError():
            _discard_stdout()
            prefix = f"{error.filename}: " if error.filename else ""
            terminal.note(f"error: {prefix}{error.strerror or error}")
            return _WRONG if error.errno == errno.ENAMETOOLONG else _FAILED
        case MemoryError():
            terminal.note("error: out of memory; try --format native, or a smaller --context")
            return _FAILED
    if {"-v", "--verbose"} & set(words):
        terminal.page("".join(traceback.format_exception(error)).rstrip())
        return _FAILED
    first = next(iter(str(error).splitlines()), "")
    terminal.note(
        f"error: {type(error).__name__}: {first} (a bug of gemelo; "
        f"`gemelo --verbose {' '.join(words[:1])} ...` shows where)"
    )
    return _FAILED


def _command_in(words: Sequence[str]) -> list[str]:
    names = {command.name for command in app.registered_commands} | {"show"}
    return [word for word in words[:1] if word in names]


def _discard_stdout() -> None:
    """Send nowhere what is still buffered, or Python would complain of it on its way out."""
    with suppress(AttributeError, OSError):  # no stdout, or one that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
