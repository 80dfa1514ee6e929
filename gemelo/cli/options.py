"""Command-line options: typer annotations, each written once.

Importing this loads typer, the lists of `config/options` and nothing else. What belongs together
is a group (`groups`), which has the defaults. What is wrong with a value on its own, a path without
a file or an unknown sub-model, is found here, before a model is loaded.

    def tokenize(text: str, model: options.Model = None, json: options.Json = False) -> None: ...
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from gemelo.cli import value_checks
from gemelo.config.options import KVFormat, RebuildMode, TablePlacement, WeightFormat

_of_model, _of_media, _of_sampling, _of_output = (
    partial(typer.Option, rich_help_panel=title)
    for title in ("Model", "Pictures and sound", "Sampling", "Output")
)


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
        help="E2B or another published size, half, or a .toml or .json file.",
        callback=value_checks.submodel_known,
    ),
]

# ---- the model -----------------------------------------------------------------------------------

Model = Annotated[
    str | None,
    _of_model(
        "--model",
        "-m",
        metavar="PATH|ID",
        help="GGUF file, model directory or hub id; demo is the embedded Gemma 3 270M.",
        show_default="$GEMELO_MODEL, else demo",
        callback=value_checks.model_there,
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="GGUF file, model directory or hub id, in the place of --model.",
        callback=value_checks.model_there,
        show_default=False,
    ),
]
Format = Annotated[
    WeightFormat,
    _of_model("--format", help="How weights are held in memory; native is as the file has them."),
]
Weights = Annotated[
    WeightFormat,
    _of_model("--weights", help="How weights are held in memory; native is as the file has them."),
]
Submodel = Annotated[
    str | None,
    _of_model(
        metavar="NAME|FILE",
        help="Run a smaller model inside a Gemma 3n: E2B, or another published size, or a .toml "
        "or .json file.",
        show_default="the whole",
        callback=value_checks.submodel_known,
    ),
]
Speculate = Annotated[
    str | None,
    _of_model(
        metavar="NAME[:int4]",
        help="Speculative decoding: this sub-model of a Gemma 3n guesses tokens, which the whole "
        "checks; the answer stays the whole's. :int4 gives it 4-bit weights.",
        callback=value_checks.draft_known,
    ),
]
Policy = Annotated[
    str | None,
    _of_model(
        metavar="KIND:N",
        help="Choose the sub-model before every token: latency:N keeps N tokens/s, memory:N stays "
        "below N GiB, difficulty:N takes the small one while the entropy of the next token is "
        "below N nats (0.69 is a coin toss).",
        callback=value_checks.policy_known,
    ),
]
Rebuild = Annotated[
    RebuildMode,
    _of_model(
        help="After a change of sub-model, the KV cache of the tokens before: off keeps it as it "
        "is, lazy computes it again beside new tokens, now at once."
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
        callback=value_checks.file_there,
    ),
]
Repack = Annotated[
    bool,
    _of_model(
        "--repack/--no-repack",
        help="Copy quantised weights once, into the order that is fastest to read; or read them "
        "from the memory-mapped file (mmap) as they lie, which is slower and takes less memory "
        "while loading.",
    ),
]
Threads = Annotated[
    int | None,
    _of_model(
        metavar="N",
        help="CPU threads.",
        show_default="as many as cores",
        callback=value_checks.threads_possible,
    ),
]
Context = Annotated[
    int | None,
    _of_model(
        metavar="N",
        help="The most tokens of prompt and answer together.",
        show_default="what the model was trained for",
        callback=value_checks.at_least_one,
    ),
]
KVCacheFormat = Annotated[
    KVFormat | None,
    _of_model(
        "--kv-format",
        help="KV cache: plain is in float32 (on CUDA as the model), bf16 in 16 bits, int8 in 8.",
        show_default="bf16, beside float32 weights plain",
    ),
]
Device = Annotated[
    str,
    _of_model(
        metavar="auto|cpu|cuda[:N]",
        help="auto is CUDA where there is one.",
        callback=value_checks.device_known,
    ),
]

# ---- the prompt ----------------------------------------------------------------------------------

System = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Instructions before the first turn (chat models)."),
]

# ---- pictures and sound --------------------------------------------------------------------------

Image = Annotated[
    list[str] | None,
    _of_media(
        metavar="FILE",
        help="A picture of the prompt; repeatable.",
        callback=value_checks.files_there,
    ),
]
Audio = Annotated[
    list[str] | None,
    _of_media(
        metavar="FILE",
        help="A recording of the prompt; repeatable.",
        callback=value_checks.files_there,
    ),
]
Video = Annotated[
    list[str] | None,
    _of_media(
        metavar="FILE",
        help="Frames with their times, and the sound track.",
        callback=value_checks.files_there,
    ),
]
Fps = Annotated[
    float,
    _of_media(metavar="N", help="Frames a second of a video.", callback=value_checks.above_zero),
]
ImageSize = Annotated[
    int | None,
    _of_media(
        metavar="256|512|768",
        help="Side of Gemma 3n's square picture, in pixels.",
        show_default="as the model's preprocessor_config.json says, else 768",
    ),
]
PanAndScan = Annotated[
    bool | None,
    _of_media(
        "--pan-and-scan/--no-pan-and-scan",
        help="Encode long pictures whole and in crops, or whole alone.",
        show_default="as the model's preprocessor_config.json says, else whole",
    ),
]
MinCropSize = Annotated[
    int | None,
    _of_media(
        metavar="N",
        help="Least side of a crop, in pixels.",
        show_default="as the model's preprocessor_config.json says, else 256",
    ),
]
MaxNumCrops = Annotated[
    int | None,
    _of_media(
        metavar="N",
        help="Most crops of a picture.",
        show_default="as the model's preprocessor_config.json says, else 4",
    ),
]
MinRatio = Annotated[
    float | None,
    _of_media(
        "--min-ratio-to-activate",
        metavar="X",
        help="Long side by short side from which a picture is cropped.",
        show_default="as the model's preprocessor_config.json says, else 1.2",
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
