"""Command-line options: typer annotations, each written once, and the sections of --help.

Importing this loads typer, the lists of `config/options` and nothing else. What belongs together
is a group (`groups`), which has the defaults. typer draws sections only through rich;
`SectionedCommand` does it in plain text.

    def tokenize(text: str, model: options.Model = None, json: options.Json = False) -> None: ...
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from gemelo.config.options import KVFormat, RebuildMode, TablePlacement, WeightFormat
from gemelo.errors import InputError

_of_model, _of_media, _of_sampling, _of_output = (
    partial(typer.Option, rich_help_panel=title)
    for title in ("Model", "Pictures and sound", "Sampling", "Output")
)
WORDS = "gemelo.words"  # of the command line, in a context's meta


class SectionedCommand(TyperCommand):
    """A command whose help groups its options by `rich_help_panel`, without rich."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words too: they alone have the order in which options of several names came."""
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for every group, in the order of the signature."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_section(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _not_empty(parameter: typer.CallbackParam, value: Any) -> Any:
    """A file's name, or several; an empty one, as from an unset variable of a shell, is refused."""
    if "" in (value if isinstance(value, list | tuple) else (value,)):
        raise InputError(f"{max(parameter.opts, key=len)} is empty: name a file")
    return value


def _section(parameter: object) -> str:
    if isinstance(parameter, TyperArgument):
        return parameter.rich_help_panel or "Arguments"
    if isinstance(parameter, TyperOption):
        return parameter.rich_help_panel or "Options"
    return "Options"


# ---- files ---------------------------------------------------------------------------------------

TextOnly = Annotated[
    bool, typer.Option("--text-only", help="Leave the vision tower and the audio encoder out.")
]
WriteMmproj = Annotated[
    bool,
    typer.Option(
        "--mmproj",
        help="Write the vision tower and audio encoder alone, as the GGUF beside a text model's.",
    ),
]
MixedWidths = Annotated[
    bool,
    typer.Option(
        "--mixed-widths", help="Write a GGUF of several feed-forward widths, for gemelo alone."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace TARGET if it exists.")]
Part = Annotated[
    str,
    typer.Option(
        "--submodel",
        metavar="NAME|FILE",
        help="E2B, a published mix, half, or a .toml or .json file.",
    ),
]

# ---- the model -----------------------------------------------------------------------------------

Model = Annotated[
    str | None,
    _of_model(
        "--model",
        "-m",
        metavar="PATH|ID",
        help="GGUF file, model directory or hub id.",
        show_default="$GEMELO_MODEL, else the embedded Gemma 3 270M",
    ),
]
Format = Annotated[
    WeightFormat, _of_model("--format", help="How weights are held; native as in the file.")
]
Weights = Annotated[WeightFormat, _of_model("--weights", help="How weights are held.")]
Submodel = Annotated[
    str | None,
    _of_model(
        metavar="NAME|FILE",
        help="Run this sub-model of a Gemma 3n: E2B, a published mix, or a .toml or .json file.",
        show_default="the whole",
    ),
]
Speculate = Annotated[
    str | None,
    _of_model(
        metavar="NAME[:int4]",
        help="Draft with this sub-model of a Gemma 3n; the answer stays the model's own.",
    ),
]
Policy = Annotated[
    str | None,
    _of_model(
        metavar="KIND:N",
        help="Choose the sub-model as needed: latency:TOKENS_PER_S, memory:GIB, or "
        "difficulty:ENTROPY of the next token, in nats (0.69 = a coin toss).",
    ),
]
Rebuild = Annotated[
    RebuildMode,
    _of_model(
        help="Keys that another sub-model wrote: kept, computed again beside new tokens, or at "
        "once."
    ),
]
Ple = Annotated[
    TablePlacement | None,
    _of_model(help="Where Gemma 3n's per-layer embeddings lie.", show_default="disk"),
]
Mmproj = Annotated[
    str | None,
    _of_model(
        metavar="FILE",
        help="The vision tower and audio encoder of a GGUF.",
        show_default="the one beside it",
        callback=_not_empty,
    ),
]
Repack = Annotated[
    bool,
    _of_model(
        "--repack/--no-repack",
        help="Repack quantised weights for speed, or leave them mapped.",
    ),
]
Threads = Annotated[
    int | None, _of_model(metavar="N", help="CPU threads.", show_default="as many as cores")
]
Context = Annotated[
    int | None,
    _of_model(
        metavar="N",
        help="Tokens a session may hold.",
        show_default="what the model was trained for",
    ),
]
KVCacheFormat = Annotated[
    KVFormat | None,
    _of_model(
        "--kv-format",
        help="KV cache; plain is the model's own, bf16 16 bits, int8 half of that.",
        show_default="bf16 where the native kernels run, else plain",
    ),
]
Device = Annotated[
    str, _of_model(metavar="auto|cpu|cuda[:N]", help="auto is CUDA where there is one.")
]

# ---- the prompt ----------------------------------------------------------------------------------

System = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Instructions before the first turn (chat models)."),
]

# ---- pictures and sound --------------------------------------------------------------------------

Image = Annotated[
    list[str] | None,
    _of_media(metavar="FILE", help="A picture of the prompt; repeatable.", callback=_not_empty),
]
Audio = Annotated[
    list[str] | None,
    _of_media(metavar="FILE", help="A recording of the prompt; repeatable.", callback=_not_empty),
]
Video = Annotated[
    list[str] | None,
    _of_media(
        metavar="FILE", help="Frames with their times, and the sound track.", callback=_not_empty
    ),
]
Fps = Annotated[float, _of_media(metavar="N", help="Frames a second of a video.")]
ImageSize = Annotated[
    int | None,
    _of_media(
        metavar="256|512|768",
        help="Side of Gemma 3n's square picture, in pixels.",
        show_default="what the model's files say, else 768",
    ),
]
PanAndScan = Annotated[
    bool | None,
    _of_media(
        "--pan-and-scan/--no-pan-and-scan",
        help="Encode long pictures whole and in crops, or whole alone.",
        show_default="what the model's files say, else whole",
    ),
]
MinCropSize = Annotated[
    int | None,
    _of_media(
        metavar="N",
        help="Least side of a crop, in pixels.",
        show_default="what the model's files say, else 256",
    ),
]
MaxNumCrops = Annotated[
    int | None,
    _of_media(
        metavar="N",
        help="Most crops of a picture.",
        show_default="what the model's files say, else 4",
    ),
]
MinRatio = Annotated[
    float | None,
    _of_media(
        "--min-ratio-to-activate",
        metavar="X",
        help="Long side by short side from which a picture is cropped.",
        show_default="what the model's files say, else 1.2",
    ),
]

# ---- sampling ------------------------------------------------------------------------------------

MaxTokens = Annotated[int, _of_sampling(metavar="N", help="Stop after N tokens.")]
Temperature = Annotated[float, _of_sampling(metavar="T", help="0 is greedy and deterministic.")]
TopK = Annotated[int, _of_sampling(metavar="K", help="Keep the K likeliest tokens; 0 all.")]
TopP = Annotated[
    float, _of_sampling(metavar="P", help="Keep the fewest tokens that reach P; 1 all.")
]
MinP = Annotated[float, _of_sampling(metavar="P", help="Drop tokens below P times the likeliest.")]
RepetitionPenalty = Annotated[
    float, _of_sampling(metavar="X", help="Divides scores of tokens already seen.")
]
PresencePenalty = Annotated[
    float, _of_sampling(metavar="X", help="Subtracted from scores of tokens seen in the answer.")
]
FrequencyPenalty = Annotated[
    float, _of_sampling(metavar="X", help="Subtracted for every time they were seen.")
]
LogitBias = Annotated[
    list[str] | None,
    _of_sampling(metavar="ID=V", help="Add V to the score of token ID; repeatable."),
]
Seed = Annotated[
    int | None,
    _of_sampling(
        metavar="S", help="Same seed, same text.", show_default="drawn; --verbose shows it"
    ),
]
Stop = Annotated[
    list[str] | None,
    _of_sampling(
        metavar="TEXT", help="End before TEXT; repeatable. A line's end is $'\\n' in bash."
    ),
]
IgnoreEos = Annotated[bool, _of_sampling("--ignore-eos", help="Go on past the end of the answer.")]
Count = Annotated[int, _of_sampling("--n", metavar="N", help="Continuations of the prompt.")]
Logprobs = Annotated[
    int | None,
    _of_sampling(
        metavar="N", help="With --json: log-probabilities of the tokens, and of the N likeliest."
    ),
]

# ---- output --------------------------------------------------------------------------------------

Json = Annotated[bool, _of_output("--json", help="Print one JSON value on stdout.")]
Quiet = Annotated[bool, _of_output("--quiet", "-q", help="No notes and no progress bars.")]
Verbose = Annotated[bool, _of_output("--verbose", "-v", help="Timings, seed and reuse on stderr.")]
