"""Tables of gemelo beside llama.cpp, OpenVINO and transformers, from `results/cpu_peers*.json`.

A results file keeps several runs; of each file (270M Q4_K_M, 1B Q4_0, ...) a table shows the run of
the most rounds that measured a thing, the later of two, and `every_run` shows all of them, since a
shared host differs from hour to hour. A ratio is the median of the ratios within the rounds, so it
need not be the quotient of two medians. It says how many times as fast gemelo is; of memory, how
many times as large.

    print(speeds(runs("cpu_peers.json")))
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # imported by a test, too

from markdown_tables import MISSING, significant, table

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "270m": "270M Q4_K_M",
    "1b-q4_0": "1B Q4_0",
    "1b-q8_0": "1B Q8_0",
    "4b-q4_0": "4B Q4_0",
    "e2b-q4_0": "E2B Q4_0",
    "e4b-q4_0": "E4B Q4_0",
}
PEERS = {
    "llama.cpp": "llama.cpp",
    "openvino int8": "OpenVINO int8",
    "openvino int8 f32": "OpenVINO int8, in float32",
    "openvino int4": "OpenVINO int4",
    "openvino int4 f32": "OpenVINO int4, in float32",
    "transformers": "transformers, bfloat16",
}
MEASURES = {
    "load_to_first_token_s": "load to first token, s",
    "start_to_first_token_s": "the same from the process's start, s",
    "prefill_32": "prompt of 32, tokens/s",
    "prefill_512": "prompt of 512, tokens/s",
    "prefill_2048": "prompt of 2,048, tokens/s",
    "decode_32": "decode, tokens/s",
    "decode_2048": "decode after 2,048 tokens",
    "batch_4": "decode, 4 rows together",
    "batch_8": "decode, 8 rows together",
    "peak_rss_bytes": "peak memory, MB",
}
_BARE = {
    "load_to_first_token_s": "load",
    "start_to_first_token_s": "start and load",
    "prefill_32": "prompt of 32",
    "prefill_512": "prompt of 512",
    "prefill_2048": "prompt of 2,048",
    "decode_32": "decode",
    "decode_2048": "decode after 2,048",
    "batch_4": "4 rows",
    "batch_8": "8 rows",
    "peak_rss_bytes": "memory",
}
_IN_SHORT = ("prefill_512", "decode_32", "peak_rss_bytes")
_EVERY_RUN = (
    "load_to_first_token_s",
    "prefill_512",
    "decode_32",
    "decode_2048",
    "batch_8",
    "peak_rss_bytes",
)
_BESIDE_OTHERS = (*_EVERY_RUN[:2], "prefill_2048", *_EVERY_RUN[2:])
# Of E4B's bytes, by arithmetic: ten layers in which 95 % of the neurons are dead for a token, whose
# rows of `up_proj` and strips of `down_proj` are not read (docs/kernels.md).
_DEAD_BYTES = {"e4b-q4_0": 0.33e9}

Runs = list[dict[str, Any]]


def runs(name: str) -> Runs:
    """The runs of a results file, oldest first."""
    found: Runs = json.loads((RESULTS / name).read_text(encoding="utf-8"))["runs"]
    return found


def files(of: Runs) -> list[str]:
    """The files that a list of runs measured, in the order of NAMES."""
    return [name for name in NAMES if any(name in run["files"] for run in of)]


def best(of: Runs, file: str, measure: str, engine: str = "gemelo") -> dict[str, Any] | None:
    """The run of the most rounds that has an engine's measure of a file, the later of two."""
    known = [
        run
        for run in reversed(of)
        if measure in run["files"].get(file, {}).get("medians", {}).get(engine, {})
    ]
    return max(known, key=lambda run: run["rounds"], default=None)


def ratio(of: Runs, file: str, measure: str, peer: str) -> float | None:
    """gemelo against a peer, by the best run of the two."""
    run = best(of, file, measure, peer)
    found = run["files"][file]["gemelo against"][peer].get(measure) if run else None
    return float(found) if found is not None else None


def number(measure: str, value: float) -> str:
    """A median in the unit of its row."""
    return significant(value * 1e-6 if measure == "peak_rss_bytes" else value)


def cell(of: Runs, file: str, measure: str) -> str:
    """gemelo's median, and in brackets its ratio to llama.cpp's."""
    run = best(of, file, measure)
    if run is None:
        return MISSING
    found = run["files"][file]
    against = found["gemelo against"].get("llama.cpp", {}).get(measure)
    value = number(measure, found["medians"]["gemelo"][measure])
    return value if against is None else f"{value} ({against:.2f}x)"


def speeds(of: Runs, rows: tuple[str, ...] = tuple(MEASURES)) -> str:
    """Every measure of every file: gemelo's median, and its ratio to llama.cpp."""
    columns = files(of)
    body = [[MEASURES[row], *(cell(of, file, row) for file in columns)] for row in rows]
    return table(["", *(NAMES[file] for file in columns)], body)


def in_short(of: Runs) -> str:
    """The table of the README: its machine and command, and what a user feels of four files."""
    columns = ("270m", "1b-q4_0", "4b-q4_0", "e4b-q4_0")
    body = [[MEASURES[row], *(cell(of, file, row) for file in columns)] for row in _IN_SHORT]
    head = ["", *(NAMES[file] for file in columns)]
    script, cpu = of[0]["command"].split()[0], of[0]["cpu"].replace("(R)", "")
    caption = (
        f"Medians of alternating rounds (`python {script}`) on {of[0]['threads']} threads of an "
        f"{cpu} with AMX, in brackets the ratio to llama.cpp on the same file; all but the 270M "
        "are random weights in the real shapes."
    )
    return textwrap.fill(caption, 100, break_on_hyphens=False) + "\n\n" + table(head, body)


def other_peers(of: Runs) -> str:
    """Ratios to whoever is not llama.cpp."""
    body = []
    for file in files(of):
        for peer in [peer for peer in PEERS if peer != "llama.cpp"]:
            found = [ratio(of, file, row, peer) for row in _BESIDE_OTHERS]
            if any(found):
                ratios = [MISSING if one is None else f"{one:.2f}" for one in found]
                body.append([NAMES[file], PEERS[peer], *ratios])
    return table(["file", "beside", *(_BARE[row] for row in _BESIDE_OTHERS)], body)


def targets(of: Runs) -> str:
    """Every target, by the best run that reached for it, and whether it was met."""
    known: dict[tuple[str, str, str], tuple[int, dict[str, Any]]] = {}
    for run in of:
        for file, found in run["files"].items():
            for one in found["targets"]:
                key = (file, one["measure"], one["peer"])
                if run["rounds"] >= known.get(key, (0,))[0]:
                    known[key] = (run["rounds"], one)
    files_, rows = list(NAMES), list(MEASURES)
    body = []
    for key in sorted(known, key=lambda key: (files_.index(key[0]), rows.index(key[1]), key[2])):
        one = known[key][1]
        reached = "met" if one["met"] else "**missed**"
        figures = [f"{one['target']:g}", f"{one['ratio']:.3f}"]
        body.append([NAMES[key[0]], _BARE[key[1]], PEERS[key[2]], *figures, reached])
    return table(["file", "measure", "beside", "target", "reached", ""], body)


def every_run(of: Runs) -> str:
    """The ratio to llama.cpp in each kept run, oldest first: how far one hour is from another."""
    body = []
    for file in files(of):
        for run in (run for run in of if file in run["files"]):
            against = run["files"][file]["gemelo against"].get("llama.cpp", {})
            ratios = [f"{against[row]:.2f}" if row in against else MISSING for row in _EVERY_RUN]
            spread = _spread(run["files"][file]["rounds"], "decode_32")
            body.append([NAMES[file], str(run["rounds"]), *ratios, spread])
    heads = [_BARE[row] for row in _EVERY_RUN]
    return table(["file", "rounds", *heads, "decode, round by round"], body)


def _spread(rounds: dict[str, list[dict[str, float]]], measure: str) -> str:
    """The least and the largest of the rounds' ratios to llama.cpp."""
    pairs = zip(rounds["gemelo"], rounds.get("llama.cpp", []), strict=False)
    ratios = [
        us[measure] / them[measure] for us, them in pairs if measure in us and measure in them
    ]
    return f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else MISSING


def memory_limit(of: Runs) -> str:
    """Decode beside what memory allows: the bytes that a token reads, and how fast they can be."""
    body = []
    for file in files(of):
        run = best(of, file, "decode_32")
        if run is None or "own_read_bytes_per_s" not in run["files"][file]["medians"]["gemelo"]:
            continue
        found = run["files"][file]
        ours = found["medians"]["gemelo"]
        size = found["bytes_per_token"]["gemelo"] - _DEAD_BYTES.get(file, 0)
        read, decode = ours["own_read_bytes_per_s"], ours["decode_32"]
        figures = [f"{size / 1e9:.2f}", *map(significant, (read / 1e9, read / size, decode))]
        body.append([NAMES[file], *figures, f"{100 * decode * size / read:.0f} %"])
    heads = ["GB a token", "its weights only read, GB/s", "so at most, tokens/s"]
    return table(["file", *heads, "decode, tokens/s", "share"], body)


def rounds_of(of: Runs) -> str:
    """Which runs made the figures of each file: rounds, tokens added, and who took turns."""
    body = []
    for file in files(of):
        run, loading = (best(of, file, row) for row in ("decode_32", "load_to_first_token_s"))
        if run is not None:
            engines = [PEERS.get(name, name) for name in run["files"][file]["medians"]]
            loads = str(loading["rounds"]) if loading else MISSING
            figures = [str(run["rounds"]), loads, str(run["new_tokens"])]
            body.append([NAMES[file], *figures, "; ".join(engines)])
    return table(["file", "rounds", "of loading", "tokens added", "engines, in turn"], body)
