"""`gemelo pull`, `list` and `rm`: fetch models, see which run without a network, remove them.

gemelo pull gemma3:1b
gemelo list
gemelo rm gemma3:1b
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

import gemelo
from gemelo.cli import options
from gemelo.cli.terminal import Bar, interactive, note, print_json, show, size
from gemelo.errors import InputError, one_line

_MOST_SHOWN = 5000  # characters of a cell: all of any path

if TYPE_CHECKING:
    from gemelo.checkpoints.known import KnownModel
    from gemelo.checkpoints.stored import Stored


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="gemma3:1b, or owner/name[:QUANT|FILE].")
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a model from the Hugging Face hub.

    What is here already is not fetched again; prints where the model is. NAME is one of `gemelo
    list --known`, a hub id, or a page of the hub. Of a repository of GGUFs one is fetched, with its
    mmproj: QUANT or FILE, else Q4_K_M.

    \b
    gemelo pull gemma3:1b
    gemelo pull ggml-org/gemma-3-4b-it-GGUF:Q8_0
    gemelo pull google/gemma-3-1b-it

    Files go to the hub's own cache. An interrupted download is resumed. HF_TOKEN opens gated
    repositories; with HF_HUB_OFFLINE=1 nothing is fetched.
    """
    with Bar("fetching", shown=not (quiet or json)) as bar:
        path = gemelo.pull(name, revision, bar)
    if json:
        print_json({"model": name, "path": str(path)})
    else:
        show(f"{path}\n")


# ---- list ----------------------------------------------------------------------------------------


def list_models(
    known: Annotated[
        bool, typer.Option("--known", help="List the names of models that can be fetched.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List the models that are on this machine, by the names that --model takes.

    The embedded one, those of the hub's cache, Ollama's, those of this folder, and what convert and
    slice wrote elsewhere. --known lists what can be fetched, and what each reads.

    \b
    gemelo list
    gemelo list --known
    """
    if known:
        list_known(json)
        return
    from gemelo.checkpoints import stored

    models = list(stored.stored())
    if json:
        print_json([_fields(model) for model in models])
    elif models:
        rows = [("NAME", "SIZE", "MMPROJ", "PATH")]
        _print_rows([*rows, *map(_row, models)])
    else:
        note("no models yet; `gemelo pull gemma3:1b` fetches one, `gemelo list --known` has more")


def _fields(model: Stored) -> dict[str, object]:
    return {
        "name": model.name,
        "path": model.path and str(model.path),
        "size_bytes": model.size_bytes,
        "mmproj": model.mmproj and str(model.mmproj),
        "origin": model.origin,
    }


def _row(model: Stored) -> tuple[str, ...]:
    path = "joined from its package at the first use" if model.path is None else str(model.path)
    path = "-" if path == model.name else path
    towers = "-" if model.mmproj is None else model.mmproj.name
    return model.name, size(model.size_bytes), towers, path


def list_known(json: bool) -> None:
    """Print the table of known models."""
    from gemelo.checkpoints.known import KNOWN

    if json:
        print_json([_known_fields(model) for model in KNOWN])
        return
    rows = [("NAME", "HUB ID", "PARAMS", "DOWNLOAD", "ACCESS", "READS")]
    for model in KNOWN:
        access, reads = "gated" if model.is_gated else "open", ", ".join(model.reads)
        download = size(model.size_bytes)
        rows.append((model.name, model.repository, model.parameters, download, access, reads))
    _print_rows(rows)
    note(_ABOUT_KNOWN)


_ABOUT_KNOWN = (
    "open: without an account. gated: accept the licence on the model's page of the hub, then `hf "
    "auth login`. Google's Gemma terms hold for all. For sound take google/gemma-3n-E2B-it: GGUFs "
    "of Gemma 3n (gemma3n:e2b) read text alone. Sizes are about what is fetched."
)


def _known_fields(model: KnownModel) -> dict[str, object]:
    return {
        "name": model.name,
        "hub_id": model.repository,
        "parameters": model.parameters,
        "size_bytes": model.size_bytes,
        "gated": model.is_gated,
        "reads": list(model.reads),
    }


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns with nothing cut: where they do not fit a terminal, a model is one line a cell."""
    rows = [tuple(one_line(cell, _MOST_SHOWN) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if terminal and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        for first, *others in rows[1:]:
            show("\n  ".join([first, *(cell for cell in others if cell != "-")]) + "\n")
        return
    for row in rows:
        show("  ".join(map(str.ljust, row, widths)).rstrip() + "\n")


# ---- rm ------------------------------------------------------------------------------------------


def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="As `gemelo list` has it.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Do not ask.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove models that gemelo or the hub's library keeps.

    owner/name is a repository of the hub's cache, owner/name:QUANT one file of it; demo is the
    joined file of the embedded model; a path is a model that convert or slice wrote, if nobody has
    changed it. Other files are left alone.

    \b
    gemelo rm gemma3:1b
    gemelo rm -f ggml-org/gemma-3-4b-it-GGUF:Q8_0
    """
    from gemelo.checkpoints.removal import removal

    plans = [removal(name) for name in dict.fromkeys(names)]
    if not force and not interactive():
        raise InputError("rm asks first, and there is no terminal to ask on; give --force")
    for plan in plans:
        question = f"remove {plan.what} ({size(plan.size_bytes)})?"
        if not force and not _agreed(question):
            note("left as it is")
            continue
        plan.carry_out()
        if not quiet:
            note(f"removed {plan.what} ({size(plan.size_bytes)})")


def _agreed(question: str) -> bool:
    """A person's word on stdin; the question stands on stderr, and no answer is a no."""
    print(f"{one_line(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
