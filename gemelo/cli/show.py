"""`gemelo show`: look into a model layer by layer, or at the crops of a picture.

gemelo show model -m gemma-3-1b-it-q8_0.gguf
gemelo show crops panorama.jpg --save crops
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemelo.cli import options
from gemelo.cli.answer import load_model
from gemelo.cli.groups import Crops, Loading, grouped
from gemelo.cli.media import pan_scan
from gemelo.cli.terminal import note, print_json, print_table, show, size

if TYPE_CHECKING:
    from rich.table import Table

    from gemelo.inspection.summary import Group, Layer, Summary


def show_model(
    model: options.Model = None,
    format: options.Format = "native",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show a model layer by layer.

    Type, shapes, format, parameters and bytes; then the sums, and what a context costs.

    \b
    gemelo show model
    gemelo show model -m google/gemma-3-1b-it --format q8_0 --json
    """
    from gemelo.inspection.summary import summarise

    loading = Loading(format=format, device="cpu")
    loaded = load_model(model, loading, quiet=quiet, verbose=False)
    summary = summarise(loaded.checkpoint)
    if json:
        print_json(summary.to_json())
        return
    print_table(layers_table(summary))
    for line in totals(summary):
        show(f"{line}\n")


def layers_table(summary: Summary) -> Table:
    """One row a layer; matrices of one shape throughout share a column."""
    from rich.table import Table

    columns = shape_columns(summary.layers)
    table = Table("layer", "attention", *(", ".join(map(_short, names)) for names in columns))
    table.add_column("format")
    table.add_column("parameters", justify="right")
    table.add_column("bytes", justify="right")
    for layer in summary.layers:
        shapes = (" x ".join(map(str, _shape(layer, names[0]))) for names in columns)
        table.add_row(str(layer.index), _attention(layer), *shapes, *_sums(layer))
    return table


def shape_columns(layers: Sequence[Layer]) -> list[list[str]]:
    """Names of the matrices of the layers, together where their shapes agree in every layer."""
    names = dict.fromkeys(
        name for layer in layers for name, weight in layer.weights.items() if len(weight.shape) == 2
    )
    columns: dict[tuple[tuple[int, ...], ...], list[str]] = {}
    for name in names:
        columns.setdefault(tuple(_shape(layer, name) for layer in layers), []).append(name)
    return list(columns.values())


def totals(summary: Summary) -> Iterator[str]:
    """What surrounds the layers, the sums, and what a context costs."""
    for name, group in (summary.parts | summary.towers).items():
        formats, parameters, nbytes = _sums(group)
        yield f"{name}: {parameters} parameters, {nbytes} ({formats})"
    if "lm_head" not in summary.parts:
        yield "lm_head: embed_tokens"
    yield f"decoder: {summary.parameters:,} parameters, {size(summary.bytes)}"
    costs = (f"{tokens:,} tokens {size(count)}" for tokens, count in summary.kv_bytes.items())
    yield f"KV cache: {', '.join(costs)}"
    yield f"chat template: {'yes' if summary.chat_template else 'none, a base model'}"


def _shape(layer: Layer, name: str) -> tuple[int, ...]:
    """Empty where the layer has no such matrix."""
    return layer.weights[name].shape if name in layer.weights else ()


def _short(name: str) -> str:
    return name.rpartition(".")[2].removesuffix("_proj")


def _attention(layer: Layer) -> str:
    return "full" if layer.window is None else f"sliding {layer.window}"


def _sums(group: Group) -> tuple[str, str, str]:
    return ", ".join(group.formats), f"{group.parameters:,}", size(group.bytes)


@grouped
def show_crops(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture's file.")],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every view there as a PNG.")
    ] = None,
    *,
    crops: Crops,
    force: Annotated[bool, typer.Option("--force", help="Replace files of DIR.")] = False,
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
    paths = [] if save is None else save_crops(image, save, cropping, overwrite=force)
    if json:
        print_json(shown.to_json() | {"saved": [str(path) for path in paths]})
        return
    show(f"{shown.text()}\n")
    for path in paths:
        note(f"wrote {path}")
