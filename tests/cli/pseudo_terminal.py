"""The user's side of a pseudo-terminal: types keys, and waits for what the program shows."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

GEMELO = (sys.executable, "-m", "gemelo")
READY = ">>>\x1b[3D\x1b[4C"  # an empty prompt with the cursor behind it: the editor takes keys
ANSWERING = "\x1b[?2004l\x1b[?2004h"  # the editor is done, and pastes go on being marked
COOKED = termios.ECHO | termios.ICANON | termios.ISIG
KNOWN = {"PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "OMP_NUM_THREADS": "1"}


class Terminal:
    """A terminal, and a program that has it to itself, as one that a shell has started."""

    def __init__(self, *words: str, program: Sequence[str] = GEMELO, cache: Path) -> None:
        """words: the program's; cache: where gemelo keeps its files."""
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*program, *words],
            env=os.environ | KNOWN | {"GEMELO_CACHE": str(cache)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self.master, text.encode())

    def read(self) -> bool:
        """Add to `seen` what is shown within a moment; False once nobody is there to show more."""
        if select.select([self.master], [], [], 0.1)[0]:
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:
                return False
        return True

    def expect(self, text: str, timeout_s: float = 120) -> str:
        """Everything up to and with `text`, which must come."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen and self.read():
            assert time.monotonic() < deadline, f"{text!r} did not come: {self.seen!r}"
        before, found, self.seen = self.seen.partition(text)
        assert found, f"{text!r} did not come: {before!r}"
        return before + found

    def expect_answer(self) -> None:
        """Wait until the model has said something to what was typed."""
        self.expect(ANSWERING)
        deadline = time.monotonic() + 120
        while not self.seen and self.read():
            assert time.monotonic() < deadline, "no answer came"

    def wait(self) -> int:
        """The program's exit code, once it has shown all that it had to."""
        while self.process.poll() is None and self.read():
            pass
        return self.process.wait(120)

    @property
    def is_cooked(self) -> bool:
        """Whether it echoes, gives lines, and makes signals of keys: what a shell expects."""
        local: int = termios.tcgetattr(self.master)[3]
        return local & COOKED == COOKED

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
