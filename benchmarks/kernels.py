"""The products alone: how near to memory's speed few tokens come, and to the arithmetic's, many.

    python benchmarks/kernels.py --threads 2 --json benchmarks/results/kernels.json

For every instruction set of this machine and every format: gigabytes of weights a second for 1 and
8 tokens, over a matrix as large as the buffer of the read bandwidth, which is measured in the same
run (from large pages, where panels lie; rows lie in small ones, like a mapped file's); and
billions of operations a second for 512 tokens, beside torch's bfloat16 matmul. Medians of runs, the
sets in turn, so that a slow moment of the machine hits all. A slow set multiplies fewer rows, as
many as take a tenth of a second. Weights are random blocks; speed does not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gemelo.evals.machine import cpu_name, memory_bandwidth
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Floats, Format, Packed, pack
from gemelo.kernels.repacked import Panels, can_interleave

COLUMNS = 2560  # the width of Gemma 3 4B
FEW, SEVERAL, MANY = 1, 8, 512  # tokens
MOST_ROWS, LEAST_ROWS = 4096, 128
RUN_S = 0.1  # one run of many tokens takes about this long at most


@dataclasses.dataclass
class Speed:
    """One format on one instruction set."""

    isa: str
    format: str
    lies: str  # in rows or in panels
    one_gb_s: float
    eight_gb_s: float
    many_gflops: float


def random_weight(format: Format, size_bytes: int) -> Packed:
    """A matrix of about `size_bytes`: some random rows with usual scales, again and again."""
    generator = np.random.default_rng(0)
    if format.block == 1:
        blocks = pack(generator.standard_normal((64, COLUMNS)) * 0.02, format).blocks
    else:
        blocks = generator.integers(0, 256, (64, format.row_bytes(COLUMNS)), np.uint8)
        each = blocks.reshape(64, -1, format.block_bytes)
        for at in {"q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}.get(format.name, [0]):
            each[:, :, at : at + 2] = 0x00, 0x14  # 2^-10
    return Packed(np.tile(blocks, (max(1, size_bytes // blocks.size), 1)), format)


def seconds(action: Callable[[], object]) -> float:
    """One run of `action`."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def medians(actions: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Median seconds of every action: one warm-up each, then all in turn, `repeat` times."""
    for action in actions.values():
        action()
    runs: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeat):
        for name, action in actions.items():
            runs[name].append(seconds(action))
    return {name: statistics.median(times) for name, times in runs.items()}


def product(isa: str, x: Floats, weight: Packed, panels: Panels | None) -> None:
    """x times weight on that instruction set, where it lies or from panels."""
    native.use(isa)
    if panels is None:
        cpu.linear(x, weight)
        return
    out = np.empty((len(x), weight.rows), np.float32)
    native.extension.product(
        cpu.address_of(x), COLUMNS, False, len(x), panels.matrix("weight", rows=weight.rows),
        cpu.address_of(out), weight.rows, False,
    )  # fmt: skip


def in_time(isa: str, x: Floats, weight: Packed, panels: Panels | None, most_rows: int) -> Packed:
    """As many rows as that set multiplies with x in about RUN_S."""
    part = weight.prefix(rows=LEAST_ROWS)
    product(isa, x, part, panels)
    rows = int(LEAST_ROWS * RUN_S / seconds(lambda: product(isa, x, part, panels)))
    return weight.prefix(rows=min(max(LEAST_ROWS, rows // LEAST_ROWS * LEAST_ROWS), most_rows))


def measure(weight: Packed, panels: Panels | None, sets: list[str], repeat: int) -> list[Speed]:
    """One matrix on every set."""
    format = weight.format
    rates: dict[int, dict[str, float]] = {}  # rows a second
    for tokens in (FEW, SEVERAL, MANY):
        x = np.random.default_rng(1).standard_normal((tokens, COLUMNS), np.float32)
        most_rows = MOST_ROWS if tokens == MANY else weight.rows
        parts = {isa: in_time(isa, x, weight, panels, most_rows) for isa in sets}
        runs = medians({isa: partial(product, isa, x, parts[isa], panels) for isa in sets}, repeat)
        rates[tokens] = {isa: parts[isa].rows / runs[isa] for isa in sets}
    row_gb = format.row_bytes(COLUMNS) / 1e9
    return [
        Speed(
            isa,
            format.name,
            "rows" if panels is None else "panels",
            rates[FEW][isa] * row_gb,
            rates[SEVERAL][isa] * row_gb,
            rates[MANY][isa] * 2e-9 * MANY * COLUMNS,
        )
        for isa in sets
    ]


def torch_gflops(threads: int, repeat: int) -> float:
    """torch's own bfloat16 product of the same shape."""
    import torch

    torch.set_num_threads(threads)
    x = torch.randn(MANY, COLUMNS).bfloat16()
    w = torch.randn(MOST_ROWS, COLUMNS).bfloat16()
    run = {"torch": partial(torch.nn.functional.linear, x, w)}
    return 2e-9 * MANY * COLUMNS * MOST_ROWS / medians(run, repeat)["torch"]


def table(speeds: list[Speed], read_gb_s: float, matmul_gflops: float) -> Table:
    """What was measured, for people."""
    shown = Table(
        title=f"memory is read at {read_gb_s:.1f} GB/s; torch's bfloat16 matmul makes "
        f"{matmul_gflops:.0f} GFLOPS",
        title_justify="left",
    )
    for heading in ("format", "in", "instructions"):
        shown.add_column(heading, no_wrap=True)
    for heading in (f"GB/s, {FEW} token", "of memory", f"GB/s, {SEVERAL} tokens",
                    f"GFLOPS, {MANY} tokens", "of torch"):  # fmt: skip
        shown.add_column(heading, justify="right")
    for speed in speeds:
        shown.add_row(
            speed.format, speed.lies, speed.isa,
            f"{speed.one_gb_s:.1f}", f"{speed.one_gb_s / read_gb_s:.0%}",
            f"{speed.eight_gb_s:.1f}",
            f"{speed.many_gflops:.0f}", f"{speed.many_gflops / matmul_gflops:.0%}",
        )  # fmt: skip
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="The native products alone.")
    parser.add_argument("--threads", type=int, default=native.num_cores())
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1024, help="of weights, for few tokens")
    parser.add_argument("--isa", nargs="+", default=native.instruction_sets(), help="default: all")
    parser.add_argument("--formats", nargs="+", default=sorted(cpu.FORMATS))
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    asked = parser.parse_args()
    if not asked.isa:
        sys.exit("the native kernels were not built here")
    native.set_threads(asked.threads)
    read_gb_s = memory_bandwidth() / 1e9
    matmul_gflops = torch_gflops(asked.threads, asked.repeat)
    speeds: list[Speed] = []
    for name in asked.formats:
        weight = random_weight(FORMATS[name], asked.megabytes << 20)
        speeds += measure(weight, None, asked.isa, asked.repeat)
        if can_interleave(weight):
            speeds += measure(weight, Panels({"weight": weight}), asked.isa, asked.repeat)
    Console().print(table(speeds, read_gb_s, matmul_gflops))
    if asked.json:
        results = {
            "cpu": cpu_name(),
            "threads": asked.threads,
            "repeat": asked.repeat,
            "weights_megabytes": asked.megabytes,
            "read_gb_s": read_gb_s,
            "torch_bf16_gflops": matmul_gflops,
            "speeds": [dataclasses.asdict(speed) for speed in speeds],
        }
        asked.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
