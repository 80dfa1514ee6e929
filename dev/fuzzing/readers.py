"""A reader: a door through which a file or a caller's value comes in, with its mutations.

It makes case number N from the seeds, and takes it: it reads what is there and, where that worked,
uses it, so that a value which is believed too early shows. Each is named after what it is given.

    reader.take(reader.made(17), folder)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

TEXT = "the llama in a <b>naïve</b> café 🦙\n\n  runs"


@dataclass(frozen=True)
class Reader:
    """make: the case of a generator; take: read it, from a file in the folder where it is one."""

    name: str
    make: Callable[[Random], Any]
    take: Callable[[Any, Path], None]
    runs: bool = False  # loads a model and runs it: slower by far

    def case(self, number: int, folder: Path) -> None:
        self.take(self.made(number), folder)

    def made(self, number: int) -> Any:
        """The case itself: bytes of a file, or a value; the same for a number every time."""
        return self.make(Random(f"{self.name}:{number}"))
