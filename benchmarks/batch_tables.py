"""Tables of many callers at once, from `results/batch.json`: gemelo beside llama.cpp's server.

A value is by model, then by measure, as `batch.py` writes it and prints it; what an engine has not
measured is a dash.

    print(together(results()))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from markdown_tables import MISSING, significant, table
from peer_tables import NAMES, RESULTS

ENGINES = ("gemelo", "llama.cpp")
# New tokens a second against the peer's, by the number of sessions; 64 is stated alone.
AIMS = {
    "avx512": {"270m": {"1": 2, "8": 3, "32": 3}, "1b-q4_0": {"1": 1.5, "8": 2, "32": 2.2}},
    "amx": {"270m": {"1": 1.5, "8": 2, "32": 2.5}, "1b-q4_0": {"1": 1.2, "8": 1.7, "32": 2}},
}
LONGEST_GAP, LATER_PROMPT = 4, 10  # times the median gap at most; times as fast at least

Results = dict[str, dict[str, Any]]


def results() -> Results:
    """What the benchmark left; nothing where it has not run yet."""
    file = RESULTS / "batch.json"
    found: Results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def together(of: Results) -> str:
    """New tokens a second by model and number of sessions, and the ratio beside its target."""
    body = []
    for model, run, found in measured(of, "together"):
        aims = AIMS.get(run["isa"], {}).get(model, {})
        for sessions, one in found.items():
            speeds = [figure(one.get(name, {}).get("tokens_per_s")) for name in ENGINES]
            ratio = f"{one['ratio']:.2f}x" if "ratio" in one else MISSING
            aim = f"{aims[sessions]:g}x" if sessions in aims else ""
            body.append([NAMES[model], sessions, *speeds, ratio, aim])
    heads = ["gemelo, tokens/s", "llama.cpp, tokens/s", "ratio", "target"]
    return table(["file", "sessions", *heads], body)


def late(of: Results) -> str:
    """Gaps of sessions that decode while a long prompt is read, and its wait, by the budget."""
    body = []
    for model, _, found in measured(of, "late"):
        for engine, one in found.items():
            gaps = [figure(1e3 * one[key]) for key in ("median_gap_s", "longest_gap_s")]
            times = [figure(one[key]) for key in ("alone_s", "first_token_s")]
            longest = f"{one['longest / median']:.1f}x"
            waited = [f"{one['steps']:.0f}", f"{one['first token / allowed']:.2f}"]
            body.append([NAMES[model], engine, *gaps, longest, *times, *waited])
    heads = ["median gap, ms", "longest, ms", f"ratio (at most {LONGEST_GAP}x)"]
    heads += ["first token alone, s", "beside others, s", "steps meanwhile"]
    return table(["file", "engine, tokens a step", *heads, "share of what is allowed"], body)


def shared(of: Results) -> str:
    """Time to the first token of prompts that begin as an earlier one did."""
    return _again(of, "shared")


def regenerate(of: Results) -> str:
    """Time to the first token of a chat whose answer is asked for again."""
    return _again(of, "regenerate")


def _again(of: Results, measure: str) -> str:
    body = [
        [NAMES[model], engine, figure(one["first_s"]), f"{one['later_s']:.3f}",
         f"{one['first / later']:.1f}x", f"{LATER_PROMPT}x" if engine == ENGINES[0] else ""]
        for model, _, found in measured(of, measure)
        for engine, one in found.items()
    ]  # fmt: skip
    return table(["file", "engine", "first, s", "later, s", "ratio", "target"], body)


def measured(of: Results, measure: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The models that have a measure, in the order of NAMES: each with its run and its figures."""
    found = [(name, of[name][measure]) for name in NAMES if measure in of.get(name, {})]
    return [(name, one["run"], one["found"]) for name, one in found]


def figure(value: float | None) -> str:
    return MISSING if value is None else significant(value)


TABLES: dict[str, Callable[[Results], str]] = {
    "together": together,
    "late": late,
    "shared": shared,
    "regenerate": regenerate,
}


def written() -> dict[str, Callable[[], str]]:
    """Every table, of what the benchmark left."""
    return {name: lambda make=make: make(results()) for name, make in TABLES.items()}
