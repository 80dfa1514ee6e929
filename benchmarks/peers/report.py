"""What the figures say: medians, ratios within each round, and whether targets are met.

A ratio is gemelo's over the peer's within one round, so that a slow moment of the machine counts on
both sides; for seconds it is turned round, so that more is always better, except for memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from peers.engines import GEMELO, LLAMA, OPENVINO_INT4, OPENVINO_INT8
from peers.subjects import SUBJECTS, Work
from rich.table import Table

Rounds = list[dict[str, float]]  # measures of one engine, a dictionary a round
LIMIT_DECODE = 0.8  # of the measured read bandwidth, for the files in LIMITED
LIMITED = ("1b-q4_0", "4b-q4_0")


@dataclass(frozen=True)
class Measure:
    """A row of the table. scale turns the value as measured into the unit of the label."""

    label: str
    kind: str  # what --only calls it
    scale: float = 1.0
    less_is_better: bool = False

    def ratio(self, ours: float, theirs: float) -> float:
        """gemelo against a peer: how many times as fast, or as large."""
        return theirs / ours if self.kind == "load" else ours / theirs


MEASURES: dict[str, Measure] = {
    "load_to_first_token_s": Measure("load to first token, s", "load"),
    "start_to_first_token_s": Measure("  with the process's start, s", "load"),
    "prefill_32": Measure("prefill 32, tokens/s", "prefill"),
    "prefill_512": Measure("prefill 512, tokens/s", "prefill"),
    "prefill_2048": Measure("prefill 2048, tokens/s", "prefill"),
    "decode_32": Measure("decode after 32, tokens/s", "decode"),
    "memory_32": Measure("  memory then, GB/s", "decode", 1e-9),
    "decode_2048": Measure("decode after 2048, tokens/s", "decode"),
    "memory_2048": Measure("  memory then, GB/s", "decode", 1e-9),
    "own_read_bytes_per_s": Measure("  its weights, only read, GB/s", "decode", 1e-9),
    "batch_4": Measure("decode, 4 rows, tokens/s", "batch"),
    "batch_8": Measure("decode, 8 rows, tokens/s", "batch"),
    "peak_rss_bytes": Measure("peak memory, MB", "memory", 1e-6, less_is_better=True),
}
KINDS = tuple(dict.fromkeys(measure.kind for measure in MEASURES.values()))

MEMORY_AFTER = {"decode_32": "memory_32", "decode_2048": "memory_2048"}
_DECODE = tuple(MEMORY_AFTER)
# (subject, measure, peer) -> the ratio we hold ourselves to
TARGETS: dict[tuple[str, str, str], float] = {
    **{("270m", name, LLAMA): 1.5 for name in _DECODE},
    **{(file, name, LLAMA): 1.6 for file in ("1b-q4_0", "4b-q4_0") for name in _DECODE},
    **{(file, "prefill_512", LLAMA): 2.5 for file in ("1b-q4_0", "4b-q4_0")},
    ("270m", "decode_32", OPENVINO_INT8): 1.4,
    ("270m", "prefill_512", OPENVINO_INT8): 1.1,
    **{("1b-q8_0", name, OPENVINO_INT8): 1.0 for name in ("decode_32", "prefill_512")},
    **{("1b-q4_0", name, OPENVINO_INT4): 1.0 for name in ("decode_32", "prefill_512")},
    ("e2b-q4_0", "prefill_512", LLAMA): 3.5,
    ("e4b-q4_0", "prefill_512", LLAMA): 4.0,
    **{("e4b-q4_0", name, LLAMA): 1.8 for name in _DECODE},
    ("1b-q4_0", "batch_8", LLAMA): 1.5,
    ("270m", "load_to_first_token_s", LLAMA): 2.0,
    **{(file, "peak_rss_bytes", LLAMA): 1.05 for file in SUBJECTS},
}


@dataclass(frozen=True)
class Found:
    """What was measured of one file: rounds by engine, or one line why there are none."""

    subject: str
    rounds: dict[str, Rounds]
    failures: dict[str, str]
    versions: dict[str, str]
    work: dict[str, Work]

    def values(self, engine: str, measure: str) -> list[float]:
        """One measure's values, a round each."""
        return [r[measure] for r in self.rounds.get(engine, []) if measure in r]

    def ratio(self, measure: str, peer: str) -> float | None:
        """The median of the rounds' ratios, gemelo against a peer."""
        pairs = zip(self.rounds.get(GEMELO, []), self.rounds.get(peer, []), strict=False)
        found = [
            MEASURES[measure].ratio(ours[measure], theirs[measure])
            for ours, theirs in pairs
            if measure in ours and measure in theirs
        ]
        return median(found) if found else None

    def met(self, measure: str, peer: str) -> bool | None:
        """Whether a target is met; None where there is none, or no figure."""
        target, ratio = TARGETS.get((self.subject, measure, peer)), self.ratio(measure, peer)
        if target is None or ratio is None:
            return None
        return ratio <= target if MEASURES[measure].less_is_better else ratio >= target

    def to_json(self) -> dict[str, object]:
        """Medians, spreads and ratios, with everything they come from."""
        peers = [engine for engine in self.rounds if engine != GEMELO]
        return {
            "medians": {
                e: {m: median(v) for m in MEASURES if (v := self.values(e, m))} for e in self.rounds
            },
            "gemelo against": {
                peer: {m: r for m in MEASURES if (r := self.ratio(m, peer)) is not None}
                for peer in peers
            },
            "targets": [
                {
                    "measure": m,
                    "peer": p,
                    "target": t,
                    "ratio": self.ratio(m, p),
                    "met": self.met(m, p),
                }
                for (subject, m, p), t in TARGETS.items()
                if subject == self.subject and self.met(m, p) is not None
            ],
            "failures": self.failures,
            "versions": self.versions,
            "bytes_per_token": {e: w.bytes_per_token for e, w in self.work.items()},
            "rounds": self.rounds,
        }


def table(found: Found) -> Table:
    """One file's measures: gemelo, then every peer with gemelo's ratio to it and the target."""
    drawn = Table(title=found.subject, title_justify="left", caption_justify="left")
    drawn.add_column("")
    drawn.add_column(GEMELO, justify="right")
    peers = [e for e in SUBJECTS[found.subject].engines if e in found.rounds and e != GEMELO]
    for peer in peers:
        drawn.add_column(peer, justify="right")
        drawn.add_column("gemelo /", justify="right")
        if _has_targets(found, peer):
            drawn.add_column("target", justify="right")
    for name, measure in MEASURES.items():
        values = {engine: found.values(engine, name) for engine in (GEMELO, *peers)}
        if any(values.values()):
            cells = [_value(measure, values[GEMELO])]
            for peer in peers:
                against = _against(found, name, peer)
                cells += [_value(measure, values[peer]), against[0]]
                cells += against[1:] if _has_targets(found, peer) else ()
            drawn.add_row(measure.label, *cells)
    if found.failures:
        drawn.caption = "\n".join(f"{engine}: {why}" for engine, why in found.failures.items())
    return drawn


def _has_targets(found: Found, peer: str) -> bool:
    return any(key[0] == found.subject and key[2] == peer for key in TARGETS)


def _value(measure: Measure, values: list[float]) -> str:
    return _significant(median(values) * measure.scale) if values else ""


def _against(found: Found, name: str, peer: str) -> tuple[str, str]:
    """The ratio, coloured by its target, and the target."""
    ratio, target = found.ratio(name, peer), TARGETS.get((found.subject, name, peer))
    sign = "\N{LESS-THAN OR EQUAL TO}" if MEASURES[name].less_is_better else ""
    aim = "" if target is None else f"{sign}{target:g}"
    if ratio is None:
        return "", aim
    met = found.met(name, peer)
    colour = "" if met is None else "[green]" if met else "[red]"
    return f"{colour}{ratio:.2f}", aim


def limits_table(all_found: list[Found], limits: Mapping[str, float]) -> Table:
    """Every engine's decode and prefill beside what memory and arithmetic allow."""
    bandwidth, peak = limits["read_bytes_per_s"], limits["bf16_operations_per_s"]
    drawn = Table(
        title=f"limits: {bandwidth / 1e9:.1f} GB/s read, {peak / 1e9:.0f} GFLOPS in PyTorch's "
        "bfloat16 matrix product",
        title_justify="left",
    )
    for heading in ("file", "engine", "GB read a token", "GB/s", "of read", "GOPS", "of product"):
        drawn.add_column(heading, justify="left" if heading in ("file", "engine") else "right")
    for found in all_found:
        for engine, work in found.work.items():
            reading, adding = (found.values(engine, m) for m in ("prefill_512", "decode_32"))
            rate = median(adding) * work.bytes_per_token if adding else 0.0
            speed = median(reading) * work.operations_per_token if reading else 0.0
            if not (rate or speed):
                continue
            wanted = engine == GEMELO and found.subject in LIMITED and rate > 0
            colour = (
                "" if not wanted else "[green]" if rate >= LIMIT_DECODE * bandwidth else "[red]"
            )
            drawn.add_row(
                found.subject,
                engine,
                f"{work.bytes_per_token / 1e9:.3f}",
                f"{rate / 1e9:.1f}" if rate else "",
                f"{colour}{rate / bandwidth:.0%}" if rate else "",
                f"{speed / 1e9:.0f}" if speed else "",
                f"{speed / peak:.0%}" if speed else "",
            )
    return drawn


def _significant(number: float) -> str:
    """Three digits that say something: 0.0123, 1.23, 12.3, 1230."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"
