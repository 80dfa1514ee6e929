"""An engine in a process of its own, asked one piece of work at a time.

A peer may crash, hang or refuse a file; each becomes an `EngineFailure` with one line that says
what happened, and the benchmark goes on with the others. Closing is killing: a driver holds nothing
that would be lost.

    with Process("llama.cpp", [python, "driver_llama.py"], threads=2) as peer:
        peer.load("model.gguf", context=4096)["seconds"]
        peer.turn(prompt=512, new=128, rows=1, seed=3)["decode_s"]
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from typing import IO, Any, Self

PATIENCE_S = 900.0  # for one answer


class EngineFailure(Exception):
    """An engine crashed, hung or refused; the text is one line for the table."""


class Process:
    """A running driver."""

    def __init__(self, command: list[str], threads: int, keep_path: bool) -> None:
        """keep_path hands PYTHONPATH on, which an environment of a peer's own must not see."""
        self.threads = threads
        self.started = time.perf_counter()
        settings = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        settings.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled
        if not keep_path:
            settings.pop("PYTHONPATH", None)
        self._complaints = tempfile.TemporaryFile()
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=settings,
            )
        except OSError as error:
            self._complaints.close()
            raise EngineFailure(f"failed: {command[0]}: {error.strerror}") from None

    def load(self, file: str, context: int) -> dict[str, Any]:
        """Load a model; `seconds` is what that took."""
        return self._ask({"do": "load", "file": file, "threads": self.threads, "context": context})

    def turn(self, prompt: int, new: int, rows: int, seed: int) -> dict[str, Any]:
        """Read `rows` prompts and add `new` tokens to each; see `protocol`."""
        request = {"do": "turn", "prompt": prompt, "new": new, "rows": rows, "seed": seed}
        return self._ask(request)

    def read(self) -> float:
        """Bytes a second that the engine's own weights can be read with, where they lie."""
        return float(self._ask({"do": "read"})["bytes_per_s"])

    def score(self, ids: list[int], at_once: int, file: str) -> None:
        """Write the scores of all next tokens to `file`, (T, V) in NumPy's format."""
        self._ask({"do": "score", "ids": ids, "at_once": at_once, "file": file})

    def _ask(self, request: dict[str, object]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(line)
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        ready, _, _ = select.select([self._child.stdout], [], [], PATIENCE_S)
        if not ready:
            raise EngineFailure(f"failed: no answer in {PATIENCE_S:.0f} s")
        answer = self._child.stdout.readline()
        if not answer:
            raise self._ended()
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise EngineFailure(f"failed: {found['error']}")
        return found

    def _ended(self) -> EngineFailure:
        """What to say of a process that is gone."""
        code = self._child.wait()
        if code < 0:
            return EngineFailure(f"failed: signal {-code} ({signal.Signals(-code).name})")
        return EngineFailure(f"failed: exit {code}; {last_complaint(self._complaints)}")

    def close(self) -> None:
        """End the process at once."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout, self._complaints):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:  # what a crashed process never read
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def last_complaint(complaints: IO[bytes]) -> str:
    """The last line that a process wrote to its standard error, kept in a file."""
    complaints.seek(0)
    lines = complaints.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
