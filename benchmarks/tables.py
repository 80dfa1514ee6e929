"""Every table of measured figures in the pages, written from the JSON that the benchmarks left.

`benchmarks/README.md`, three pages of `docs/` and the README of the project say with markers where
a table goes (`markdown_tables.py`). No figure is copied by hand, so none can be older than its
file. Nothing is measured here.

    python benchmarks/tables.py                # writes the tables into the pages
    python benchmarks/tables.py --check        # exit code 1 where a page is not what the JSON says
    python benchmarks/tables.py --print readme # one table, to look at
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # imported by a test, too

import batch_tables
import peer_tables
from markdown_tables import filled, significant, table
from start import phases_table

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "performance.md",
    ROOT / "docs" / "elastic.md",
    ROOT / "docs" / "kernels.md",
    ROOT / "README.md",
)


def results(name: str) -> dict[str, Any]:
    """What a benchmark left in `benchmarks/results`."""
    found: dict[str, Any] = json.loads((peer_tables.RESULTS / name).read_text(encoding="utf-8"))
    return found


def formats() -> str:
    """`gemelo bench` of the 270M with its weights widened."""
    body = []
    for name in ("bf16", "f32"):
        found = results(f"270m-{name}.json")
        times = found["timings"]
        rate = f"{found['achieved_bytes_per_s'] / 1e9:.1f} of "
        rate += f"{found['memory_bandwidth_bytes_per_s'] / 1e9:.1f}"
        speeds = (times["load_to_first_token_s"], times["prefill_tokens_per_s"])
        figures = [*speeds, times["decode_tokens_per_s"]]
        peak = significant(found["peak_rss_bytes"] / 1e6)
        body.append([name, *(significant(value) for value in figures), rate, peak])
    heads = ["load to first token, s", "prompt of 512, tokens/s", "decode, tokens/s"]
    return table(["--format", *heads, "weights read, GB/s", "peak memory, MB"], body)


def float_weights() -> str:
    """Directories in 16 and 32 bits: the native program beside modules."""
    body = []
    for name, found in results("float_weights.json")["formats"].items():
        for measure, aim in (("decode", "3x" if name == "bf16" else ""), ("prefill", "")):
            speeds = [significant(found[who][measure]) for who in ("native", "modules")]
            ratio = f"{found['native / modules'][measure]:.2f}x"
            body.append([name, measure, *speeds, ratio, aim])
    heads = ["tokens/s of", "native", "modules", "native / modules", "target"]
    return table(["weights", *heads], body)


def start() -> str:
    """From a process's start to its first token, and its peak memory."""
    found = results("start.json")
    fields = {
        "first token after, s": ("first_token_s", 1.0, "first token, llama.cpp / gemelo", "0.8"),
        "peak memory, MB": ("peak_rss_bytes", 1e-6, "peak memory, gemelo / llama.cpp", "1.05"),
    }
    body = []
    for what, (field, scale, ratio, aim) in fields.items():
        medians = (found["medians"][name][field] * scale for name in ("gemelo", "llama.cpp"))
        reached = f"{found['ratios'][ratio]:.2f}"
        body.append([what, *map(significant, medians), ratio.partition(", ")[2], reached, aim])
    return table(["", "gemelo", "llama.cpp", "ratio", "reached", "target"], body)


def start_phases() -> str:
    """Where the time of `gemelo generate` goes until its first token."""
    return phases_table(results("start.json")["phases"])


def elastic() -> str:
    """What each idea of Gemma 3n is worth in bfloat16, beside its target."""
    found = results("elastic.json")
    switch, verify = found["switch"], found["verify / one token"]
    ratios = {
        "E2B against E4B, decode": ("decode E2B / E4B", "1.8"),
        "prompt of 2,048, upper layers left out": ("half-depth / full prefill", "1.6"),
        "sparse against dense feed-forward, one token": ("sparse / dense feed-forward", "2"),
        "prompt of 512, E4B against Gemma 3 4B": ("prefill E4B / Gemma 3 4B", "2"),
    }
    body = [[what, f"{found[key]:.2f}x", f"{aim}x"] for what, (key, aim) in ratios.items()]
    micro = f"{switch['median_s'] * 1e6:.1f} µs, the first {switch['first_s'] * 1e6:.0f} µs"
    body.append(["change of size between tokens", micro, "under 1 ms"])
    body.append(["memory that a change of size takes", f"{switch['rss_growth_bytes']} bytes", "0"])
    for key, ratio in verify.items():
        body.append([f"scoring {key.partition('_')[2]} tokens at once, against one",
                     f"{ratio:.2f}x the time", ""])  # fmt: skip
    return table(["what", "measured", "target"], body)


def elastic_kernels() -> str:
    """The same comparisons in 4 bits, by the native kernels."""
    found = results("elastic_kernels.json")
    aims = {
        "decode, E4B / E2B": ("E2B against E4B, decode", "1.73", "1.8"),
        "prefill 512, Gemma 3 4B / E4B": ("E4B against Gemma 3 4B, prompt of 512", "1.4", "2"),
        "decode, Gemma 3 4B / E4B": ("E4B against Gemma 3 4B, decode", "", ""),
    }
    body = [
        [what, f"{found[key]['ratio']:.2f}x", f"{most}x" if most else "", f"{aim}x" if aim else ""]
        for key, (what, most, aim) in aims.items()
    ]
    return table(["what", "measured", "arithmetic allows", "target"], body)


def resident() -> str:
    """Memory of an E4B in 4 bits whose per-layer embeddings stay in the file."""
    found = results("resident.json")
    torch = "python_and_torch_bytes" in found  # of a run that imported PyTorch
    python = "Python and PyTorch" if torch else "Python"
    megabytes = {
        "the file": found["file_bytes"],
        "of it, the per-layer embeddings": found["table_and_header_bytes"],
        "all other weights": found["core_head_norms_bytes"],
        "KV cache of 2,048 tokens": found["kv_bytes"],
        python: found["python_and_torch_bytes" if torch else "python_bytes"],
        f"held, {python} left out": found["held_bytes"],
    }
    body = [[what, f"{size / 1e6:,.0f}"] for what, size in megabytes.items()]
    body.append(
        ["held, against those and the KV cache", f"{found['held / sum']:.2f} (target 1.10)"]
    )
    return table(["what", "MB"], body)


def vision() -> str:
    """Seconds a picture, and how much the vision towers weigh."""
    found = results("vision.json")["bf16"]
    names = {
        "mobilenet": "MobileNet-V5-300M at 768, gemelo",
        "timm_mobilenet": "the same in timm",
        "timm_channels_last": "the same in timm, channels last",
        "mobilenet_int8": "the same in gemelo, 8-bit products",
        "siglip": "SigLIP So400m at 896, gemelo",
        "transformers_siglip": "the same in transformers",
    }
    ours = found["mobilenet"]["median_s"]
    body = []
    for key, name in names.items():
        one = found[key]
        spread = f"{one['least_s']:.2f} to {one['most_s']:.2f}"
        seconds = significant(one["median_s"])
        body.append([name, seconds, spread, f"{one['median_s'] / ours:.2f}"])
    return table(["vision tower", "s a picture", "least to most", "times MobileNet's"], body)


def vision_sizes() -> str:
    """Parameters and bytes of the two vision towers in bfloat16."""
    names = {
        "siglip": "SigLIP So400m, of Gemma 3",
        "mobilenet": "MobileNet-V5-300M, of Gemma 3n",
    }
    body = []
    for key, one in results("vision.json")["sizes"].items():
        sizes = [one[part] / 1e6 for part in ("parameters", "bytes", "peak_bytes")]
        body.append([names[key], *map(significant, sizes)])
    return table(["vision tower", "million parameters", "weights, MB", "peak, MB"], body)


def audio() -> str:
    """Seconds of work for a second of sound, whole and streamed."""
    found = results("audio.json")["bf16"]
    body = [
        [name, f"{one['median']:.4f}" if one["median"] < 0.01 else f"{one['median']:.3f}"]
        for name, one in found["real-time factor"].items()
    ]
    delay = found["last sample to last token, s"]
    milliseconds = [f"{delay[key] * 1e3:.0f}" for key in ("median", "least", "most")]
    body.append(["from the last sample to the last audio token",
                 "{} ms ({} to {})".format(*milliseconds)])  # fmt: skip
    body += [[f"kept by a stream after {at}", f"{size:,} bytes"]
             for at, size in found["bytes kept"].items()]  # fmt: skip
    return table(["what", "seconds of work for a second of sound"], body)


def quality() -> str:
    """How far each engine's distributions are from the float32 reference, on both machines."""
    body = []
    for machine, name in (("Xeon, AMX", "quality.json"), ("EPYC Zen 4", "quality_zen4.json")):
        for engine, one in results(name)["engines"].items():
            same, perplexity = f"{100 * one['top_token_agreement']:.2f} %", one["perplexity"]
            mean, tail = (_short(one[key]) for key in ("kl_mean", "kl_p99"))
            body.append([machine, engine, mean, tail, same, f"{perplexity:.3f}"])
    heads = ["machine", "engine", "mean KL", "99th percentile", "same likeliest token"]
    return table([*heads, "perplexity"], body)


def _short(value: float) -> str:
    return f"{value:.2g}" if value else "0"


def kernels() -> str:
    """The products alone, of the best instruction set that the machine had."""
    found = results("kernels.json")
    best = found["speeds"][0]["isa"]
    keys = ("one_gb_s", "eight_gb_s", "many_gflops")
    body = [
        [one["format"], one["lies"], *(significant(one[key]) for key in keys)]
        for one in found["speeds"]
        if one["isa"] == best
    ]
    read, torch = significant(found["read_gb_s"]), significant(found["torch_bf16_gflops"])
    body.append(["memory, only read", "large pages", read, "", ""])
    body.append(["PyTorch, bfloat16", "", "", "", torch])
    return table(["format", "layout", "1 token, GB/s", "8 tokens, GB/s", "512, GFLOPS"], body)


_XEON, _ZEN4 = peer_tables.runs("cpu_peers.json"), peer_tables.runs("cpu_peers_zen4.json")
TABLES: dict[str, Callable[[], str]] = {
    "readme": partial(peer_tables.in_short, _XEON),
    "speeds-xeon": partial(peer_tables.speeds, _XEON),
    "speeds-zen4": partial(peer_tables.speeds, _ZEN4),
    "targets-xeon": partial(peer_tables.targets, _XEON),
    "targets-zen4": partial(peer_tables.targets, _ZEN4),
    "other-peers-xeon": partial(peer_tables.other_peers, _XEON),
    "every-run-xeon": partial(peer_tables.every_run, _XEON),
    "every-run-zen4": partial(peer_tables.every_run, _ZEN4),
    "memory-limit-xeon": partial(peer_tables.memory_limit, _XEON),
    "rounds-xeon": partial(peer_tables.rounds_of, _XEON),
    "rounds-zen4": partial(peer_tables.rounds_of, _ZEN4),
    "formats": formats,
    "float-weights": float_weights,
    "start": start,
    "start-phases": start_phases,
    **{f"batch-{name}": written for name, written in batch_tables.written().items()},
    "elastic": elastic,
    "elastic-kernels": elastic_kernels,
    "resident": resident,
    "vision": vision,
    "vision-sizes": vision_sizes,
    "audio": audio,
    "quality": quality,
    "kernels": kernels,
}


def main(words: list[str]) -> int:
    """Write the pages, or with --check say which are out of date, or print one table."""
    if words[:1] == ["--print"] and words[1:2] in ([name] for name in TABLES):
        print(TABLES[words[1]]())
        return 0
    if words and words != ["--check"]:
        print(__doc__)
        return 0 if words == ["--help"] else 2
    code = 0
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        written = filled(page, TABLES)
        if words == ["--check"] and written != page:
            print(f"{path.name} is not what the JSON says: run python benchmarks/tables.py")
            code = 1
        elif written != page:
            path.write_text(written, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
