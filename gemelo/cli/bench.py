"""`gemelo bench`: benchmark of load, prefill and decode, beside this machine's memory bandwidth.

gemelo bench --prompt-tokens 512 --new-tokens 128 --json
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gemelo.cli import options
from gemelo.cli.terminal import Bar, print_json, print_table, show, size

if TYPE_CHECKING:
    from rich.table import Table

    from gemelo.evals.bench import BenchResult

_TIMES = {
    "load_s": "load",
    "load_to_first_token_s": "load to first token",
    "time_to_first_token_s": "first token, loaded",
    "decode_s": "decode",
}
_RATES = {"prefill_tokens_per_s": "prefill", "decode_tokens_per_s": "decode"}


def bench(
    model: options.Model = None,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to read.")] = 512,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens to write.")] = 128,
    repeat: Annotated[int, typer.Option(metavar="N", help="Measurements of each.")] = 5,
    format: options.Format = "native",
    threads: options.Threads = None,
    kv_format: options.KVCacheFormat = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how fast a model is on this machine.

    Loading, first token, prefill and decode: medians, with the least and the greatest.

    \b
    gemelo bench
    gemelo bench -m gemma-3-1b-it-q8_0.gguf --threads 2 --json

    Decoding reads every weight once a token: the table shows how many bytes a second that makes,
    beside what this machine's memory gave in the same run.
    """
    from gemelo.evals.bench import bench as measure

    with Bar("measuring", shown=not quiet) as bar:
        result = measure(
            model,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            repeat=repeat,
            progress=bar,
            format=format,
            threads=threads,
            kv_format=kv_format,
            device=device,
        )
    if json:
        print_json(result.to_json())
    else:
        show(
            f"{result.model} ({result.format}) on {result.cpu}, {result.threads} threads\n"
            f"{result.prompt_tokens} tokens read, {result.new_tokens} written, "
            f"{result.repeat} times\n"
        )
        print_table(table(result))


def table(result: BenchResult) -> Table:
    """The result for people."""
    from rich.table import Table

    rows = Table()
    for heading in ("", "median", "least", "greatest"):
        rows.add_column(heading, justify="left" if not heading else "right")
    for names, unit in ((_TIMES, "s"), (_RATES, "tokens/s")):
        for name, label in names.items():
            spread = result.timings[name]
            numbers = (spread.median, spread.least, spread.greatest)
            rows.add_row(f"{label}, {unit}", *(_significant(number) for number in numbers))
    share = result.achieved_bytes_per_s / result.memory_bandwidth_bytes_per_s
    rows.add_section()
    rows.add_row("weights read for a token", size(result.weights_bytes_per_token))
    rows.add_row("weights read while decoding", f"{_gigabytes(result.achieved_bytes_per_s)}")
    rows.add_row("memory bandwidth", f"{_gigabytes(result.memory_bandwidth_bytes_per_s)}")
    rows.add_row("share of it", f"{share:.0%}")
    rows.add_row("peak memory, one load", size(result.peak_rss_bytes))
    return rows


def _significant(number: float) -> str:
    """Three digits that say something: 0.0123, 1.23, 12.3, 1230."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def _gigabytes(rate: float) -> str:
    return f"{rate / 1e9:.1f} GB/s"
