"""Gemma 3n's audio encoder at its real size: a clip at once, a stream in pieces, and the reference.

    python benchmarks/audio.py --rounds 3 --dtype bf16 --json benchmarks/results/audio.json
    python benchmarks/audio.py --rounds 2 --dtype f32 --json benchmarks/results/audio.json

Random weights in the published shapes; transformers' encoder has the very same tensors. Streams go
through `AudioStream`, spectrogram and embedder included. All take turns in one process, so that a
slow moment of the machine hits everybody; ratios are medians of the ratios within each turn. A
real-time factor is seconds of work for a second of sound. A file of results keeps what it has of
the other dtype. Needs the test extra and 6 GB.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from outline import lines
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the declarations transformers needs
import tests.torchvision_shim  # noqa: E402, F401, I001

from transformers import Gemma3nAudioConfig, Gemma3nAudioEncoder  # noqa: E402

from gemelo.config import AudioConfig, Gemma3nConfig  # noqa: E402
from gemelo.engine.media.audio_stream import TOKENS_AT_ONCE, AudioStream  # noqa: E402
from gemelo.evals.machine import cpu_name, memory_bandwidth  # noqa: E402
from gemelo.inputs.media.audio import SAMPLING_RATE  # noqa: E402
from gemelo.inputs.media.mel import log_mel  # noqa: E402
from gemelo.kernels.quants import Floats  # noqa: E402
from gemelo.models.multimodal import Gemma3nTree  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
EAR = AudioConfig()
WHOLE_S = 30
STREAMED_S = 2.56  # of each size of piece, a whole number of every turn of the stream
PIECES_MS = (80, 160, 320, 640)
AT_ONCE = (1, 2, TOKENS_AT_ONCE)  # soft tokens for a run of the encoder
LAST_MS = range(640, 960, 64)  # sounds that end everywhere within a turn
MICROPHONE_MS = 80
PAIRS = (  # (slow, fast, what their ratio says)
    ("transformers' encoder, 30 s", "encoder, 30 s", "transformers' encoder / ours"),
    ("pieces of 80 ms, 1 token at once", "pieces of 80 ms", "80 ms, 1 token at once / 2"),
)


def random_tree(dtype: torch.dtype) -> Gemma3nTree:
    """A Gemma 3n whose ear is filled: values that keep a signal's size from layer to layer."""
    with torch.device("meta"):
        tree = Gemma3nTree(Gemma3nConfig(audio_config=asdict(EAR))).to(dtype)
    stretch = torch.rand(1 << 22) - 0.5
    for part in (tree.audio_tower, tree.embed_audio):
        for parameter in part.to_empty(device="cpu").parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
                continue
            spread = (12 / parameter[0].numel()) ** 0.5  # of variance 1 / inputs
            for run in parameter.view(-1).split(len(stretch)):
                run.copy_(stretch[: len(run)] * spread)
    return tree.eval()


def reference(tree: Gemma3nTree) -> Callable[[Tensor], Tensor]:
    """transformers' encoder on the weights of ours, mel (1, M, 128) -> (1, J, E)."""
    weights = tree.audio_tower.state_dict()
    with torch.device("meta"):
        model = Gemma3nAudioEncoder(Gemma3nAudioConfig()).eval()
    tiny = {"conf_num_hidden_layers": 1, "sscp_conv_channel_size": (8, 4)}
    filled = dict(Gemma3nAudioEncoder(Gemma3nAudioConfig(**tiny)).named_buffers())
    model.load_state_dict(weights, assign=True)
    for name, _ in list(model.named_buffers()):  # numbers that follow from the config
        owner, _, leaf = name.rpartition(".")
        number = filled[".".join("0" if word.isdigit() else word for word in name.split("."))]
        module: nn.Module = model.get_submodule(owner)
        module.register_buffer(leaf, number.clone(), persistent=False)
    dtype = next(iter(weights.values())).dtype
    return lambda mel: model(mel.to(dtype), torch.zeros(mel.shape[:2], dtype=torch.bool))[0]


def noise(milliseconds: float) -> Floats:
    generator = np.random.default_rng(0)
    count = round(milliseconds * SAMPLING_RATE / 1000)
    return generator.random(count, np.float32) - np.float32(0.5)


def pieces(samples: Floats, milliseconds: float) -> Iterator[Floats]:
    size = round(milliseconds * SAMPLING_RATE / 1000)
    return (samples[begin : begin + size] for begin in range(0, len(samples), size))


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def turns(actions: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What every action says, in turn, `rounds` times; each should warm up by itself."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            found[name].append(action())
    return found


def streaming(tree: Gemma3nTree, piece_ms: float, at_once: int) -> Callable[[], float]:
    """Real-time factor of a stream that goes on, in pieces of one size."""
    stream = AudioStream(tree, EAR, at_once)
    for piece in pieces(noise(1280), piece_ms):  # the first runs of a size prepare kernels
        stream.push(piece)
    samples = noise(1000 * STREAMED_S)

    def action() -> float:
        taken = seconds(lambda: [stream.push(piece) for piece in pieces(samples, piece_ms)])
        return taken / STREAMED_S

    return action


def delays(tree: Gemma3nTree) -> list[float]:
    """Seconds from the last piece of a microphone to the last soft token, over where it ends."""
    found = []
    for milliseconds in LAST_MS:
        stream = AudioStream(tree, EAR)
        *before, last = pieces(noise(milliseconds), MICROPHONE_MS)
        for piece in before:
            stream.push(piece)
        started = time.perf_counter()
        stream.push(last)
        stream.finish()
        found.append(time.perf_counter() - started)
    return found


def state(tree: Gemma3nTree) -> dict[str, int]:
    """What a stream keeps after ten seconds and after two minutes."""
    stream, found = AudioStream(tree, EAR), {}
    for ten_seconds in range(1, 13):
        stream.push(noise(10_000))
        found[f"{10 * ten_seconds} s"] = stream.nbytes
    return {name: found[name] for name in ("10 s", "120 s")}


def measured(dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Everything about one dtype."""
    tree = random_tree(dtype)
    theirs, samples = reference(tree), noise(1000 * WHOLE_S)
    mel = torch.from_numpy(log_mel(samples))[None]
    ours = tree.audio_tower.encode
    off_by = float((ours(mel) - theirs(mel)).float().norm() / ours(mel).float().norm())
    stream = AudioStream(tree, EAR)
    actions: dict[str, Callable[[], float]] = {
        "whole, 30 s": lambda: seconds(lambda: stream.whole(samples)) / WHOLE_S,
        "spectrogram, 30 s": lambda: seconds(lambda: log_mel(samples)) / WHOLE_S,
        "encoder, 30 s": lambda: seconds(lambda: ours(mel)) / WHOLE_S,
        "transformers' encoder, 30 s": lambda: seconds(lambda: theirs(mel)) / WHOLE_S,
    }
    for piece_ms in PIECES_MS:
        actions[f"pieces of {piece_ms} ms"] = streaming(tree, piece_ms, TOKENS_AT_ONCE)
    for at_once in AT_ONCE:
        if at_once != TOKENS_AT_ONCE:
            tokens = "1 token" if at_once == 1 else f"{at_once} tokens"
            name = f"pieces of 80 ms, {tokens} at once"
            actions[name] = streaming(tree, 80, at_once)
    times = turns(actions, rounds)
    late = [delay for _ in range(rounds) for delay in delays(tree)]
    return {
        "real-time factor": {name: spread(found) for name, found in times.items()},
        "ratios": {
            text: statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
            for slow, fast, text in PAIRS
        },
        "last sample to last token, s": spread(late),
        "bytes kept": state(tree) if dtype == torch.bfloat16 else {},
        "off transformers by": off_by,
    }


def spread(found: list[float]) -> dict[str, float]:
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: bf16")
    parser.add_argument("--json", type=Path, help="write it there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, Any] = {}
    if args.json and args.json.exists():
        found = json.loads(args.json.read_text(encoding="utf-8"))
    for name in args.dtype or ["bf16"]:
        with torch.inference_mode():
            results = measured(DTYPES[name], args.rounds)
        machine = {"cpu": cpu_name(), "threads": args.threads, "torch": torch.__version__}
        machine["memory bytes/s"] = memory_bandwidth()
        found[name] = machine | {"rounds": args.rounds} | results
        print("\n".join(lines({name: found[name]})))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
