"""`gemelo pull`, `list`, `convert`, `slice` and `show model`: fetch, write and inspect checkpoints.

gemelo pull google/gemma-3-1b-it
gemelo convert google/gemma-3-1b-it gemma-3-1b-it-q8_0.gguf --format q8_0
gemelo show model -m gemma-3-1b-it-q8_0.gguf
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gemelo
from gemelo.cli import options
from gemelo.cli.answer import load_model
from gemelo.cli.groups import Loading
from gemelo.cli.terminal import Bar, note, print_json, print_table, show, size
from gemelo.config.options import TargetFormat

if TYPE_CHECKING:
    from rich.table import Table

    from gemelo.checkpoints.convert import Converted
    from gemelo.inspection.summary import Group, Layer, Summary


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


Target = Annotated[Path, typer.Argument(metavar="TARGET", help="NAME.gguf, or a directory.")]
Written = Annotated[
    TargetFormat,
    typer.Option("--format", help="Of the matrices; native is exact."),
]


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="File, directory or hub id.")],
    target: Target,
    format: Written = "native",
    text_only: options.TextOnly = False,
    mmproj: options.WriteMmproj = False,
    mixed_widths: options.MixedWidths = False,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a model as a GGUF file or a directory of safetensors.

    \b
    gemelo convert google/gemma-3-1b-it gemma-3-1b-it-q8_0.gguf --format q8_0
    gemelo convert gemma-3-1b-it-q8_0.gguf gemma-3-1b-it --format bf16
    gemelo convert google/gemma-3-4b-it mmproj-4b.gguf --mmproj --format f16
    gemelo convert google/gemma-3n-E2B-it mmproj-e2b.gguf --mmproj --format f16

    TARGET is a GGUF file if it ends in .gguf. One that exists is left alone, without --force; a
    directory is replaced only if it holds a model and nothing else, and not the source.
    Directories hold bf16, f16 and f32.
    """
    with Bar("writing", shown=not quiet) as bar:
        written = gemelo.convert(
            source,
            target,
            format,
            text_only=text_only,
            mmproj=mmproj,
            mixed_widths=mixed_widths,
            overwrite=force,
            progress=bar,
        )
    report_written(written, json, quiet)


def slice_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Gemma 3n: file, directory, id.")
    ],
    target: Target,
    submodel: options.Part = "E2B",
    format: Written = "native",
    text_only: options.TextOnly = False,
    mixed_widths: options.MixedWidths = False,
    force: options.Force = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Cut a sub-model out of a Gemma 3n, as a model of its own.

    \b
    gemelo slice google/gemma-3n-E4B-it my-E2B --submodel E2B
    gemelo slice gemma-3n-E4B-it mine.gguf --submodel mine.toml --format q4_0 --text-only

    A directory loads in transformers, with its tokenizer and processor files; a GGUF in llama.cpp,
    if its feed-forwards have one width. A .toml or .json file names ffn_widths and skipped_layers.
    """
    with Bar("writing", shown=not quiet) as bar:
        written = gemelo.slice(
            source,
            target,
            submodel,
            format,
            text_only=text_only,
            mixed_widths=mixed_widths,
            overwrite=force,
            progress=bar,
        )
    report_written(written, json, quiet)


def report_written(written: Converted, json: bool, quiet: bool) -> None:
    """Say what was written, and what was left out or put right."""
    for notice in () if quiet else written.notices:
        note(f"note: {notice}")
    if json:
        print_json(
            {
                "path": str(written.path),
                "tensors": written.tensors,
                "size_bytes": written.size_bytes,
            }
        )
    elif not quiet:
        note(f"wrote {written.path}: {written.tensors} tensors, {size(written.size_bytes)}")


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
