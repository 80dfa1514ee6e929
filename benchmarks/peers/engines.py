"""The engines that are compared: which driver each has, which interpreter, and how to get one.

Peers live in environments of their own, so that none of their dependencies meets gemelo's. An
environment variable or an option names the interpreter of each; `build` makes one.

    ENGINES["llama.cpp"].command(interpreters)
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from peers.process import EngineFailure

HERE = Path(__file__).parent
GEMELO, LLAMA = "gemelo", "llama.cpp"
OPENVINO_INT8, OPENVINO_INT4, TRANSFORMERS = "openvino int8", "openvino int4", "transformers"


@dataclass(frozen=True)
class Engine:
    """One column of the table. home names the environment; folder the form of model it takes."""

    home: str
    driver: str
    folder: str = ""  # "" is the GGUF file itself
    arguments: tuple[str, ...] = ()

    def command(self, interpreters: dict[str, str]) -> list[str]:
        """How to start it; `EngineFailure` where nobody said which interpreter has it."""
        python = interpreters.get(self.home, "")
        if not python:
            raise EngineFailure(f"not run: set {variable(self.home)}, or --build-{self.home} DIR")
        return [python, str(HERE / self.driver), *self.arguments]


ENGINES: dict[str, Engine] = {
    GEMELO: Engine("gemelo", "driver_gemelo.py"),
    LLAMA: Engine("llama", "driver_llama.py"),
    OPENVINO_INT8: Engine("openvino", "driver_openvino.py", "openvino-int8"),
    f"{OPENVINO_INT8} f32": Engine("openvino", "driver_openvino.py", "openvino-int8", ("f32",)),
    OPENVINO_INT4: Engine("openvino", "driver_openvino.py", "openvino-int4"),
    f"{OPENVINO_INT4} f32": Engine("openvino", "driver_openvino.py", "openvino-int4", ("f32",)),
    TRANSFORMERS: Engine("transformers", "driver_transformers.py", "hf"),
}

PACKAGES = {
    "llama": [
        "--no-cache-dir",
        "--no-binary",
        "llama-cpp-python",
        "llama-cpp-python==0.3.36",
        "numpy",
    ],
    "openvino": [
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1",
        "optimum-intel==2.2.0",
        "transformers==4.57.3",
        "torch==2.13.0",
        "nncf==3.4.0",
    ],
    "transformers": ["transformers==5.23.0", "torch==2.13.0", "accelerate==1.15.0"],
}
UNWANTED = {"openvino": "torchvision"}  # comes along, and stops transformers from loading

# Some releases of GCC (12.2 among them) declare that loading the tile configuration reads 8 of its
# 64 bytes, and drop the stores of the others, so llama.cpp's AMX path ends with a segmentation
# fault. Declared rightly, that path runs, and is twice as fast as a build without it.
TILE_HEADER = """\
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \\
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char (*)[64])(config)))
#endif
"""


def variable(home: str) -> str:
    """The environment variable that names an interpreter."""
    return f"GEMELO_BENCH_{home.upper()}_PYTHON"


def interpreters(given: dict[str, str | None]) -> dict[str, str]:
    """The interpreter of every environment: an option, else a variable; ours for what we have."""
    found = {home: python or os.environ.get(variable(home), "") for home, python in given.items()}
    found["transformers"] = found.get("transformers") or sys.executable
    return found | {"gemelo": sys.executable}


def build(home: str, folder: Path) -> str:
    """Make an environment with a peer in it, and return its interpreter.

    Minutes: llama.cpp is compiled for this very processor. Raises `EngineFailure`.
    """
    python = folder / "bin" / "python"
    steps = [[sys.executable, "-m", "venv", str(folder)]]
    steps += [[str(python), "-m", "pip", "install", *PACKAGES[home]]]
    if home in UNWANTED:
        steps += [[str(python), "-m", "pip", "uninstall", "--yes", UNWANTED[home]]]
    settings = dict(os.environ)
    if home == "llama":
        settings["CMAKE_ARGS"] = f'-DCMAKE_CXX_FLAGS="{tile_flags(folder)}"'
    for step in steps:
        if subprocess.run(step, env=settings, stdout=sys.stderr).returncode:
            raise EngineFailure(f"{shlex.join(step)} failed")
    return str(python)


def tile_flags(folder: Path) -> str:
    """What a compiler is told to declare the tile configuration rightly; writes that header."""
    header = folder.resolve() / "tile_configuration.h"
    folder.mkdir(parents=True, exist_ok=True)
    header.write_text(TILE_HEADER)
    return f"-include {shlex.quote(str(header))}"


def export(python: str, source: Path, weights: str, target: Path) -> None:
    """Write an OpenVINO model with weights "int8" or "int4" from a directory of safetensors."""
    tool = Path(python).parent / "optimum-cli"
    task = ["--task", "text-generation-with-past", "--weight-format", weights]
    command = [str(tool), "export", "openvino", "-m", str(source), *task, str(target)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise EngineFailure(f"failed: {tool}: {error.strerror}") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise EngineFailure(f"failed: export exited with {done.returncode}; {last[0]}")
