"""Device and threads of a run: a torch device by its name, and how many threads compute.

"auto" is CUDA where there is one, which is said once, since no release was tested there; else the
CPU. Threads are the process's, of torch and of the native kernels alike.

    device = place("auto");  notices = set_threads(4)
"""

from __future__ import annotations

import torch

from gemelo.errors import InputError
from gemelo.kernels import native

# Said once in a process: whoever loads several models knows it after the first.
_UNTESTED = ["chose a CUDA device, on which this release was not tested; --device cpu is"]


def gpu_notices(device: str) -> list[str]:
    """What is to be said of a GPU that nobody asked for by name, the first time it is chosen."""
    if device != "auto" or place(device).type != "cuda" or not _UNTESTED:
        return []
    return [f"device auto {_UNTESTED.pop()}"]


def set_threads(threads: int) -> list[str]:
    """Threads of the process, of torch and of the native kernels; what is to be said of them.

    More than there are cores wait for each other at every step, so no more are taken.
    """
    if not isinstance(threads, int) or not 1 <= threads <= native.MAX_THREADS:
        raise InputError(f"threads = {threads!r:.80}; expected 1 to {native.MAX_THREADS}")
    taken = min(threads, native.num_cores())
    torch.set_num_threads(taken)
    native.set_threads(taken)
    if taken == threads:
        return []
    return [f"threads = {threads}: this process has {taken} cores, so {taken} are used"]


def place(device: str) -> torch.device:
    """A torch device from its name; "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):  # a name, or a value, that is none
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this torch finds no CUDA device; use --device cpu")
    return chosen
