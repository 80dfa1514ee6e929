"""`gemelo convert` and `slice`: write a model in another format, or a sub-model as a model.

gemelo convert google/gemma-3-1b-it gemma-3-1b-it-q8_0.gguf --format q8_0
gemelo slice google/gemma-3n-E4B-it my-E2B --submodel E2B
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gemelo
from gemelo.cli import options
from gemelo.cli.terminal import Bar, interactive, note, print_json, size
from gemelo.config.options import TARGET_FORMATS, checked_target

if TYPE_CHECKING:
    from gemelo.checkpoints.convert import Converted

Target = Annotated[Path, typer.Argument(metavar="TARGET", help="NAME.gguf, or a directory.")]
Written = Annotated[
    str,
    typer.Option(
        "--format",
        metavar=f"[{'|'.join(TARGET_FORMATS)}]",
        help="How the matrices are stored. native keeps them as SOURCE has them; in a directory, "
        "quantised ones become f32.",
    ),
]


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="File, directory or hub id.")],
    target: Target,
    format: Written = "native",
    text_only: options.TextOnly = False,
    mmproj: options.WriteMmproj = False,
    mixed_widths: options.MixedWidths = False,
    overwrite: options.Force = False,
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
    Directories hold bf16, f16 and f32: of a quantised file, native is float32, and --format bf16
    half of that. K-quants (Q4_K_M ...) are read and not written.
    """
    with Bar("writing", shown=not quiet) as bar:
        written = gemelo.convert(
            source,
            target,
            checked_target(format, "--format"),
            text_only=text_only,
            mmproj=mmproj,
            mixed_widths=mixed_widths,
            overwrite=overwrite,
            progress=bar,
            on_notice=_noter(quiet),
        )
    report_written(written, json, quiet)
    if not (json or quiet or mmproj):
        note_next(written.path)


def slice_model(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A Gemma 3n: file, directory, id.")
    ],
    target: Target,
    submodel: options.Part = "E2B",
    format: Written = "native",
    text_only: options.TextOnly = False,
    mixed_widths: options.MixedWidths = False,
    overwrite: options.Force = False,
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
            checked_target(format, "--format"),
            text_only=text_only,
            mixed_widths=mixed_widths,
            overwrite=overwrite,
            progress=bar,
            on_notice=_noter(quiet),
        )
    report_written(written, json, quiet)
    if not (json or quiet):
        note_next(written.path)


def _noter(quiet: bool) -> Callable[[str], None]:
    """Says what was left out or put right, before anything is written."""
    return (lambda notice: None) if quiet else lambda notice: note(f"note: {notice}")


def note_next(path: Path) -> None:
    """To a person at a terminal, the command that runs what was written."""
    if interactive():
        note(f'gemelo generate -m {shlex.quote(str(path))} "Once upon a time" runs it')


def report_written(written: Converted, json: bool, quiet: bool) -> None:
    """Say what was written."""
    if json:
        print_json(
            {
                "path": str(written.path),
                "tensors": written.tensors,
                "size_bytes": written.size_bytes,
            }
        )
    elif not quiet:
        what = f"{written.tensors} tensors, {size(written.size_bytes)} of weights"
        note(f"wrote {written.path}: {what}")
