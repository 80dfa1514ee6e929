"""Vision towers beside each other: Gemma 3's SigLIP at 896 pixels, Gemma 3n's MobileNet-V5 at 768.

    python benchmarks/vision.py --threads 2 --repeat 5 --json > benchmarks/results/vision.json
    python benchmarks/vision.py --dtype f32 --repeat 5    # minutes: SigLIP takes 30 s a turn

Random weights in the published shapes. Each tower also runs as transformers and timm have it, on
the very same tensors, and MobileNet-V5 with the matrices of its 1 x 1 convolutions in 8 bits. All
take turns in one process, so that a slow moment of the machine hits everybody; ratios are medians
of the ratios within each turn. Needs the test extra, timm among it, and 8 GB.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from outline import lines
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the declarations that timm needs
import tests.torchvision_shim  # noqa: E402, F401, I001

import timm  # noqa: E402
from transformers import SiglipVisionConfig, SiglipVisionModel  # noqa: E402

from gemelo.config import VisionConfig  # noqa: E402
from gemelo.config.gemma3n_vision import Vision3nConfig  # noqa: E402
from gemelo.engine.memory.process import peak_rss_bytes  # noqa: E402
from gemelo.evals.machine import cpu_name  # noqa: E402
from gemelo.models.mobilenet import MobileNetTower  # noqa: E402
from gemelo.models.mobilenet_blocks import Pointwise  # noqa: E402
from gemelo.models.siglip import Siglip  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
SIDES = {"siglip": 896, "mobilenet": 768}
PAIRS = (  # (slow, fast, what their ratio says)
    ("siglip", "mobilenet", "SigLIP 896 / MobileNet-V5 768"),
    ("siglip", "mobilenet_int8", "SigLIP 896 / MobileNet-V5 768 in 8 bits"),
    ("transformers_siglip", "mobilenet", "transformers' SigLIP 896 / MobileNet-V5 768"),
    ("transformers_siglip", "siglip", "transformers' SigLIP / ours"),
    ("timm_mobilenet", "mobilenet", "timm's MobileNet-V5 / ours"),
    ("timm_channels_last", "mobilenet", "timm's MobileNet-V5, channels last / ours"),
)


class Int8Pointwise(nn.Module):
    """A 1 x 1 convolution in 8 bits: weights a scale per row, inputs one scale a call.

    oneDNN multiplies integers at twice the pace and writes bfloat16, but making integers of the
    inputs takes PyTorch three passes, which cost more than the products save. So it is only here.
    """

    def __init__(self, weight: Tensor, num_pixels: int) -> None:
        """weight (out, in, 1, 1)."""
        super().__init__()
        matrix = weight.flatten(1).float()
        self.scale = matrix.abs().amax(1) / 127
        rounded = (matrix / self.scale[:, None]).round().to(torch.int8)
        self.zeros = torch.zeros(len(matrix), dtype=torch.int32)
        self.packed = torch.ops.onednn.qlinear_prepack(rounded, [num_pixels, matrix.shape[1]])

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, in) -> (N, H, W, out)."""
        least, most = torch.aminmax(x)
        scale = max(float(most), -float(least), 1e-12) / 127
        q = torch.quantize_per_tensor(x.float(), scale, 0, torch.qint8).int_repr()
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            q.flatten(0, 2), scale, 0, self.packed, self.scale, self.zeros,
            None, 1.0, 0, torch.bfloat16, "none", [], "",
        )  # fmt: skip
        return y.view(*x.shape[:-1], -1)


def random_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Values that keep a signal's size from layer to layer; matrices repeat one random stretch."""
    module = module.to(dtype).to_empty(device="cpu").eval()
    stretch = torch.rand(1 << 22) - 0.5
    for parameter in module.parameters():
        if parameter.dim() == 1:
            parameter.uniform_(0.5, 1.5)
            continue
        spread = (24 / parameter[0].numel()) ** 0.5  # of variance 2 / inputs
        for part in parameter.view(-1).split(len(stretch)):
            part.copy_(stretch[: len(part)] * spread)
    return module


def tower(name: str, dtype: torch.dtype) -> nn.Module:
    """Ours, filled."""
    with torch.device("meta"):
        module = shell(name)
    return random_weights(module, dtype)


def shell(name: str) -> nn.Module:
    """Ours, as its config says."""
    return Siglip(VisionConfig()) if name == "siglip" else MobileNetTower(Vision3nConfig())


def reference_siglip(ours: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """transformers' tower on the weights of ours."""
    config = SiglipVisionConfig(**asdict(VisionConfig()), vision_use_head=False)
    with torch.device("meta"):
        model = SiglipVisionModel._from_config(config, attn_implementation="sdpa").to(dtype).eval()
    prefix = next(iter(model.state_dict())).partition("embeddings.")[0]
    state = {f"{prefix}{name}": weight for name, weight in ours.state_dict().items()}
    model.load_state_dict(state, assign=True)
    embeddings = model.get_submodule(f"{prefix}embeddings")
    embeddings.position_ids = torch.arange(VisionConfig().num_patches)[None]  # not a weight
    return lambda pixels: model(pixels).last_hidden_state


def reference_mobilenet(ours: nn.Module, dtype: torch.dtype) -> nn.Module:
    """timm's tower on the weights of ours."""
    with torch.device("meta"):
        model: nn.Module = timm.create_model("mobilenetv5_300m_enc").to(dtype).eval()
    state = ours.get_submodule("timm_model").state_dict()
    model.load_state_dict(state, assign=True)
    return model


def in_8_bits(ours: nn.Module) -> nn.Module:
    """A copy whose 1 x 1 convolutions are integer products."""
    reduced = copy.deepcopy(ours)
    for name, module in list(reduced.named_modules()):
        if isinstance(module, Pointwise):
            owner, _, leaf = name.rpartition(".")
            reduced.get_submodule(owner).register_module(leaf, Int8Pointwise(module.weight, 2304))
    return reduced


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def turns(actions: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Seconds of every action, in turn, `repeat` times after one warm-up of each."""
    for action in actions.values():
        action()
    found: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeat):
        for name, action in actions.items():
            found[name].append(seconds(action))
    return found


def speeds(dtype: torch.dtype, only: list[str], repeat: int) -> dict[str, object]:
    """Every tower's seconds a picture, the ratios of `PAIRS`, and how far 8 bits are off."""
    chosen = towers(dtype, only)
    inputs = {name: torch.rand(1, 3, side, side).to(dtype) for name, side in SIDES.items()}

    def action(name: str) -> Callable[[], Tensor]:
        pixels = inputs["siglip" if "siglip" in name else "mobilenet"]
        return lambda: chosen[name](pixels)

    times = turns({name: action(name) for name in chosen}, repeat)
    found: dict[str, object] = {
        name: {"median_s": statistics.median(t), "least_s": min(t), "most_s": max(t)}
        for name, t in times.items()
    }
    found["ratios"] = {
        text: statistics.median(a / b for a, b in zip(times[slow], times[fast], strict=True))
        for slow, fast, text in PAIRS
        if slow in times and fast in times
    }
    if {"mobilenet", "mobilenet_int8"} <= chosen.keys():
        exact, rounded = action("mobilenet")().float(), action("mobilenet_int8")().float()
        found["8 bits off by"] = float((rounded - exact).norm() / exact.norm())
    return found


def towers(dtype: torch.dtype, only: list[str]) -> dict[str, Callable[[Tensor], Tensor]]:
    """Those named, or all."""
    ours = {name: tower(name, dtype) for name in SIDES if wanted(name, only)}
    found: dict[str, Callable[[Tensor], Tensor]] = dict(ours)
    if "siglip" in ours:
        found["transformers_siglip"] = reference_siglip(ours["siglip"], dtype)
    if "mobilenet" in ours:
        found["timm_mobilenet"] = timms = reference_mobilenet(ours["mobilenet"], dtype)
        found["timm_channels_last"] = lambda x: timms(
            x.contiguous(memory_format=torch.channels_last)
        )
        if dtype == torch.bfloat16 and (not only or "mobilenet_int8" in only):
            found["mobilenet_int8"] = in_8_bits(ours["mobilenet"])
    return {name: tower for name, tower in found.items() if not only or name in only}


def wanted(name: str, only: list[str]) -> bool:
    """Whether any of those named shares the weights of this tower."""
    family = {"siglip": ("siglip",), "mobilenet": ("mobilenet", "timm")}[name]
    return not only or any(word in chosen for chosen in only for word in family)


def sizes(threads: int) -> dict[str, object]:
    """Parameters of both, bytes in bfloat16, and what a picture takes at most."""
    found: dict[str, object] = {}
    for name in SIDES:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in shell(name).parameters())
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peak = pool.apply(peak_bytes, (name, threads))
        found[name] = {"parameters": count, "bytes": 2 * count, "peak_bytes": peak}
    return found


def peak_bytes(name: str, threads: int) -> int:
    """What a process of its own holds at most for one picture, Python and torch apart."""
    torch.set_num_threads(threads)
    before = peak_rss_bytes()
    with torch.inference_mode():
        tower(name, torch.bfloat16)(torch.rand(1, 3, SIDES[name], SIDES[name]).bfloat16())
    return peak_rss_bytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: bf16")
    parser.add_argument(
        "--only", action="append", default=[], help="a tower, without sizes; repeatable"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found: dict[str, object] = {
        "cpu": cpu_name(),
        "threads": args.threads,
        "torch": torch.__version__,
    }
    if not args.only:
        found["sizes"] = sizes(args.threads)
    with torch.inference_mode():
        for name in args.dtype or ["bf16"]:
            found[name] = speeds(DTYPES[name], args.only, args.repeat)
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines(found)))


if __name__ == "__main__":
    main()
