"""`gemelo show`: look into a model layer by layer, at its sub-models, or at a picture's crops.

gemelo show model -m gemma-3-1b-it-q8_0.gguf
gemelo show sizes -m google/gemma-3n-E4B-it
gemelo show crops panorama.jpg --save crops
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gemelo.cli import options
from gemelo.cli.answer import load_model
from gemelo.cli.columns import paragraph, width_of
from gemelo.cli.groups import Crops, Loading, grouped
from gemelo.cli.media import pan_scan
from gemelo.cli.terminal import note, print_json, show


def show_model(
    model: options.Model = None,
    submodel: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Show this sub-model of a Gemma 3n instead."),
    ] = None,
    shapes: Annotated[bool, typer.Option("--shapes", help="Shapes of all matrices, too.")] = False,
    format: options.Format = "native",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a model layer by layer.

    Attention, feed-forward width, format, parameters and bytes of the layers, those that are alike
    in one row; then the sums, and what a context costs.

    \b
    gemelo show model
    gemelo show model -m google/gemma-3-1b-it --format q8_0 --json
    gemelo show model -m google/gemma-3n-E4B-it --submodel E2B
    """
    from gemelo.cli.model_tables import layer_lines, sentences, shape_lines, totals
    from gemelo.config import Submodel
    from gemelo.inspection.sizes import smaller_than
    from gemelo.inspection.summary import summarise
    from gemelo.inspection.weights import held

    loading = Loading(format=format, device="cpu")
    loaded = load_model(model, loading, quiet=quiet, verbose=False)
    whole = loaded.checkpoint
    part = None if submodel is None else Submodel.of(submodel, whole.config)
    summary = summarise(whole, part)
    if json:
        print_json(summary.to_json())
        return
    width = width_of(sys.stdout)
    smaller = None if part else smaller_than(whole.config, held(whole.weights))
    lines = [*layer_lines(summary, width), ""]
    if shapes:
        lines += [*shape_lines(summary, width), ""]
    for line in (*totals(summary), *sentences(summary, smaller)):
        lines += paragraph(line, width)
    show("\n".join([*lines, ""]))


def show_sizes(model: options.Model = None, json: options.Json = False) -> None:
    """Show the sub-models of a Gemma 3n, the smaller models nested in it (MatFormer).

    Layers, feed-forward widths, parameters, and the MiB that a token reads and that stay in memory,
    of every sub-model that --submodel, --speculate and `gemelo slice` take by its name. Loads no
    weights.

    \b
    gemelo show sizes -m google/gemma-3n-E4B-it
    gemelo show sizes -m google/gemma-3n-E4B-it --json
    """
    from gemelo.checkpoints.locate import resolve
    from gemelo.checkpoints.open import open_source
    from gemelo.checkpoints.slice import without_padding
    from gemelo.cli.model_tables import size_lines
    from gemelo.inspection.sizes import sizes
    from gemelo.inspection.weights import stored

    source = without_padding(open_source(resolve(model)))
    kind, found = source.config.model_type, sizes(source.config, stored(source))
    if json:
        rows = [one.to_json() for one in found]
        print_json({"model": str(source.path), "model_type": kind, "sizes": rows})
    elif found:
        show("\n".join([*size_lines(found, width_of(sys.stdout)), ""]))
    else:
        show(f"{kind} has no sub-models; Gemma 3n has\n")


@grouped
def show_crops(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture's file.")],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every view there as a PNG.")
    ] = None,
    *,
    crops: Crops,
    overwrite: Annotated[bool, typer.Option("--force", help="Replace files of DIR.")] = False,
    json: options.Json = False,
) -> None:
    """Show what Pan & Scan makes of a picture.

    The views that a model would be given, the whole first, and what they cost in image tokens.

    \b
    gemelo show crops panorama.jpg
    gemelo show crops panorama.jpg --save crops --max-num-crops 3
    """
    from gemelo.inspection.crops import save_crops
    from gemelo.inspection.crops import show_crops as views_of

    cropping = pan_scan(crops)
    shown = views_of(image, cropping)
    paths = [] if save is None else save_crops(image, save, cropping, overwrite=overwrite)
    if json:
        print_json(shown.to_json() | {"saved": [str(path) for path in paths]})
        return
    show(f"{shown.text()}\n")
    for path in paths:
        note(f"wrote {path}")
