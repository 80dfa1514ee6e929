"""Draw the figures of docs/ from the measured JSON in benchmarks/results/.

pip install matplotlib && python docs/figures.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parent
RESULTS = ROOT.parent / "benchmarks" / "results"


def elastic() -> None:
    """What each idea is worth on Gemma 3n's real shapes, with its target."""
    found = json.loads((RESULTS / "elastic.json").read_text())
    bars = {
        "E2B / E4B\ndecode": ("decode E2B / E4B", 1.8),
        "lower layers / all,\nprompt": ("half-depth / full prefill", 1.6),
        "sparse / dense\nfeed-forward": ("sparse / dense feed-forward", 2.0),
        "E4B / Gemma 3 4B\nprefill": ("prefill E4B / Gemma 3 4B", 2.0),
    }
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for place, (key, target) in enumerate(bars.values()):
        axes.bar(place, found[key], color="#4878a8", width=0.55)
        axes.plot([place - 0.35, place + 0.35], [target, target], color="#c04040", lw=1.5)
        axes.text(place, found[key] / 2, f"{found[key]:.2f}x", ha="center", color="white")
    axes.axhline(1, color="black", lw=0.6)
    axes.set_xticks(range(len(bars)), list(bars), fontsize=8)
    axes.set_ylabel("speed-up")
    axes.set_title(
        f"bfloat16, {found['threads']} threads, {found['cpu']}; line: target", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(ROOT / "elastic.svg")


def seconds() -> None:
    """Seconds a token of the two sizes in every turn of the run: how steady the machine was."""
    found = json.loads((RESULTS / "elastic.json").read_text())["decode_s_per_token"]
    figure, axes = plt.subplots(figsize=(7, 2.4))
    for name, values in found.items():
        middle = statistics.median(values)
        axes.plot(range(1, len(values) + 1), values, "o-", label=f"{name}, median {middle:.3f} s")
    axes.set_xlabel("turn")
    axes.set_ylabel("s / token")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(ROOT / "elastic_decode.svg")


def peers() -> None:
    """How many times llama.cpp's speed, file by file: the last run that measured each."""
    runs = json.loads((RESULTS / "cpu_peers.json").read_text())["runs"]
    measures = {"prefill_512": "prompt of 512", "decode_32": "decode", "batch_8": "decode, 8 rows"}
    ratios: dict[str, dict[str, float]] = {}
    for run in runs:
        for file, found in run["files"].items():
            against = found["gemelo against"].get("llama.cpp", {})
            ratios.setdefault(file, {}).update({m: against[m] for m in measures if m in against})
    figure, axes = plt.subplots(figsize=(7, 3.2))
    for place, measure in enumerate(measures):
        for at, found in enumerate(ratios.values()):
            if measure in found:
                left = at + 0.27 * (place - 1)
                label = measures[measure] if at == 0 else None
                axes.bar(left, found[measure], width=0.25, color=f"C{place}", label=label)
                axes.text(left, found[measure], f"{found[measure]:.2g}", ha="center", fontsize=7)
    axes.axhline(1, color="black", lw=0.6)
    axes.set_xticks(range(len(ratios)), list(ratios))
    axes.set_ylabel("gemelo / llama.cpp")
    axes.set_title(f"{runs[0]['cpu']}, {runs[0]['threads']} threads", fontsize=9)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(ROOT / "performance.svg")


def timeline() -> None:
    """What the engine did for whom: eight answers, and a long prompt that comes among them."""
    found = json.loads((RESULTS / "timeline.json").read_text())
    colours = {"decode": "#4878a8", "prefill": "#c08030"}
    figure, axes = plt.subplots(figsize=(7, 3.0))
    for name, colour in colours.items():
        for row in {event[3] for event in found["events"]}:
            spans = [
                (1000 * begin, 1000 * (end - begin))
                for kind, begin, end, of in found["events"]
                if kind == name and of == row
            ]
            label = name if row == 8 else None
            axes.broken_barh(spans, (row - 0.4, 0.8), facecolor=colour, label=label, lw=0)
    axes.set_yticks(range(9), [*(f"answer {n}" for n in range(1, 9)), "late prompt"], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(f"{found['model']}, {found['threads']} threads, {found['cpu']}", fontsize=9)
    axes.legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(ROOT / "engine_timeline.svg")


elastic()
seconds()
peers()
timeline()
