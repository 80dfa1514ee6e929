"""`gemelo pull` and `list`: fetch models from the hub, and see which run without a network.

gemelo pull google/gemma-3-1b-it
gemelo list
"""

from __future__ import annotations

from typing import Annotated

import typer

import gemelo
from gemelo.cli import options
from gemelo.cli.terminal import note, print_json, print_table, show, size


def pull(
    name: Annotated[str, typer.Argument(metavar="ID[:FILE]", help="owner/name on the hub.")],
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Branch, tag or commit.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Fetch a model from the Hugging Face hub.

    What is here already is not fetched again; prints where the model is. FILE is a GGUF, with its
    folder if it lies in one.

    \b
    gemelo pull google/gemma-3-1b-it
    gemelo pull google/gemma-3-1b-it-qat-q4_0-gguf:gemma-3-1b-it-q4_0.gguf

    Files go to the hub's own cache. An interrupted download is resumed. HF_TOKEN opens gated
    repositories, HF_HUB_OFFLINE=1 keeps off the network.
    """
    path = gemelo.pull(name, revision)
    if json:
        print_json({"model": name, "path": str(path)})
    else:
        show(f"{path}\n")


def list_models(json: options.Json = False) -> None:
    """List the models that run without a network, by names that run.

    \b
    gemelo list
    gemelo list --json
    """
    from gemelo.checkpoints import locate

    models = list(locate.stored())
    if json:
        print_json(
            [
                {"name": m.name, "path": m.path and str(m.path), "size_bytes": m.size_bytes}
                for m in models
            ]
        )
        return
    if not models:
        note("no models yet; `gemelo pull owner/name` fetches one from the hub")
        return
    from rich.table import Table

    table = Table("model", "size", "path")
    for model in models:
        path = "joined from its package at the first use" if model.path is None else str(model.path)
        table.add_row(model.name, size(model.size_bytes), path)
    print_table(table)
