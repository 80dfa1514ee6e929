"""Device and threads of a run: where a decoder computes, and how many threads do.

"auto" is CUDA where PyTorch is installed and finds a device, which is said once, since no release
was tested there; else the CPU. PyTorch is not loaded to find that out where there is no driver of
NVIDIA's. Threads are the process's, of the native kernels and of PyTorch alike.

    device = place("auto");  notices = set_threads(4)
"""

from __future__ import annotations

import ctypes.util
import sys
from pathlib import Path

from gemelo.config import ModelConfig
from gemelo.config.options import TablePlacement
from gemelo.engine.decoder import Decoder
from gemelo.engine.memory.per_layer_table import table_of
from gemelo.engine.memory.repack import moved_or_waiting
from gemelo.engine.native_decoder import ModalityEmbeddings, NativeDecoder
from gemelo.errors import InputError
from gemelo.extras import is_found, require
from gemelo.kernels import native
from gemelo.weights.tensors import Weights

# Said once in a process: whoever loads several models knows it after the first.
_UNTESTED = ["chose a CUDA device, on which this release was not tested; --device cpu is"]


def gpu_notices(device: str) -> list[str]:
    """What is to be said of a GPU that nobody asked for by name, the first time it is chosen."""
    if device != "auto" or place(device) == "cpu" or not _UNTESTED:
        return []
    return [f"device auto {_UNTESTED.pop()}"]


def set_threads(threads: int) -> list[str]:
    """Threads of the process, of the native kernels and of PyTorch; what is to be said of them.

    More than there are cores wait for each other at every step, so no more are taken.
    """
    if not isinstance(threads, int) or not 1 <= threads <= native.MAX_THREADS:
        raise InputError(f"threads = {threads!r:.80}; expected 1 to {native.MAX_THREADS}")
    taken = min(threads, native.num_cores())
    native.set_threads(taken)
    torch = sys.modules.get("torch")  # later it asks the kernels (`checkpoints.modules`)
    if torch is not None and hasattr(torch, "set_num_threads"):  # no mere folder
        torch.set_num_threads(taken)
    if taken == threads:
        return []
    return [f"threads = {threads}: this process has {taken} cores, so {taken} are used"]


def place(device: str) -> str:
    """A device by its name: "cpu", "cuda" or "cuda:N"; "auto" is CUDA where there is one, else the
    CPU.

    Raises InputError for a name that is none and a device that is not there, MissingExtraError for
    CUDA without PyTorch.
    """
    if device == "auto":
        return "cuda" if is_found("torch") and _has_driver() and _finds_cuda() else "cpu"
    kind, colon, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    is_number = number.isascii() and number.isdigit()
    if kind not in ("cpu", "cuda") or (colon and not (is_number and kind == "cuda")):
        raise InputError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if kind == "cuda":
        require("torch", "torch", what="CUDA devices")
        if not _finds_cuda():
            raise InputError(
                f"device {device!r}: this torch finds no CUDA device; use --device cpu"
            )
    return device


def decoder_on(
    device: str,
    config: ModelConfig,
    weights: Weights,
    special: ModalityEmbeddings | None = None,
    ple: TablePlacement | None = None,
    repack: bool = True,
) -> Decoder:
    """A decoder that runs on a device, as `place` gives it.

    special has the embeddings of ids past the text vocabulary; ple is where the per-layer
    embeddings are to lie, which the weights then do; repack moves matrices into an order that the
    native kernels read faster, where memory has room.
    """
    width = config.hidden_size_per_layer_input
    if device == "cpu":
        table = table_of(weights, width, ple) if width else None
        panels = moved_or_waiting(config, weights) if repack else None
        return NativeDecoder(config, weights, panels, table, special)
    from gemelo.checkpoints.modules import decoder_module
    from gemelo.engine.modules.decoder import ModuleDecoder

    on_device = ple == "device"
    table = table_of(weights, width, ple) if width and not on_device else None
    module = decoder_module(config, weights, device, device if on_device else "cpu")
    return ModuleDecoder(module, weights, table, special)


def _has_driver() -> bool:
    """Whether NVIDIA's driver is installed."""
    if sys.platform.startswith("linux"):
        return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()  # the latter under WSL
    return sys.platform == "win32" and ctypes.util.find_library("nvcuda") is not None


def _finds_cuda() -> bool:
    """Whether PyTorch finds a CUDA device; one that cannot be imported finds none."""
    try:
        import torch

        return bool(torch.cuda.is_available())
    except (
        ImportError,
        OSError,
        AttributeError,
    ):  # half of it, or no library
        return False
