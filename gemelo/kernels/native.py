"""The compiled kernels as a Python extension: whether they are there, and on which instruction set.

The extension holds every instruction set that its processor family has, and takes the best that
this machine runs. It is absent where nothing could be compiled, and then everything goes through
`reference`, slowly and exactly; the environment may ask for that, or for a lesser set.

    GEMELO_ISA=generic gemelo generate ...       # or avx2, avx2_vnni, avx512, amx, neon, reference
    native.isa(), native.set_threads(4)

Whether anything is computed natively is one name, `module`: read it where it is needed, as
`native.module`, and never import it from here. `extension` is there also where the environment
leaves the products to the reference, for what is no product (weights.mapped asks it to watch maps).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from gemelo.config.options import MAX_THREADS as MAX_THREADS
from gemelo.errors import InputError, one_line

REFERENCE = "reference"
_NAME = "gemelo.kernels._native"
_REASON_CHARS = 160  # of what an import raised


def _extension() -> ModuleType | None:
    try:
        return import_module(_NAME)
    except ImportError:
        return None


def _absence() -> tuple[str, str]:
    """Why the extension is not there, and the cure."""
    folders = map(Path, sys.modules["gemelo.kernels"].__path__)
    files = [file for folder in folders for file in sorted(folder.glob("_native.*"))]
    built = [file.name for file in files if file.suffix in (".so", ".pyd")]
    if not built:
        return "were not built", "install a C++ compiler and install gemelo again"
    if not any(f"_native{suffix}" in built for suffix in EXTENSION_SUFFIXES):
        this = f"Python {sys.version_info.major}.{sys.version_info.minor} on {sys.platform}"
        return f"are for another Python ({built[0]})", f"install gemelo again with this one, {this}"
    try:
        import_module(_NAME)
    except ImportError as error:
        reason = one_line(str(error), _REASON_CHARS)
    else:
        reason = "they could be, just now"
    return f"cannot be loaded ({reason})", "install gemelo again"


def _chosen(built: ModuleType | None) -> ModuleType | None:
    """The compiled module, set to the instruction set that the environment asks for."""
    asked = os.environ.get("GEMELO_ISA", "")
    if not asked:
        return built
    if asked == REFERENCE:
        return None
    if built is None:
        reason, cure = _absence()
        raise InputError(f"GEMELO_ISA={asked}, but the native kernels {reason}: {cure}")
    if asked not in built.names():
        raise InputError(
            f"GEMELO_ISA={asked}; this machine has {', '.join(built.names())}, {REFERENCE}"
        )
    built.use(asked)
    return built


if TYPE_CHECKING:
    from gemelo.kernels import _native

    extension = _native
else:
    extension = _extension()  # None where it was not built
module = _chosen(extension)  # None where nothing is to be computed by it, either


def isa() -> str:
    """The instruction set in use, or "reference"."""
    return REFERENCE if module is None else str(module.name())


def instruction_sets() -> list[str]:
    """Those that this machine runs, the fastest first."""
    return [] if module is None else list(module.names())


def use(name: str) -> None:
    """Compute with one of `instruction_sets()`; InputError for another."""
    if module is None or name not in module.names():
        raise InputError(f"{name!r} is not one of {', '.join(instruction_sets()) or REFERENCE}")
    module.use(name)


def num_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Threads of the native products, the caller's included, in this process."""
    if not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads = {count}; expected 1 to {MAX_THREADS}")
    if module is not None:
        module.set_threads(count)


def num_threads() -> int:
    """Threads of the native products; 1 where there are none."""
    return 1 if module is None else int(module.threads())


def missing_kernels_notice() -> str | None:
    """A sentence for people whose installation has no native kernels; None if it has, or if the
    environment asked for the reference."""
    if module is not None or os.environ.get("GEMELO_ISA") == REFERENCE:
        return None
    reason, cure = _absence()
    return f"the native kernels {reason}, so that NumPy computes, a hundred times slower; {cure}"
