"""Many short strings as one run of bytes: how a vocabulary travels from its file to its reader.

A list would make a Python object of each of 262,144 pieces, which takes longer than everything else
that is done with them; here one is made when somebody asks for it. Files and the tokenizer know
nothing of each other but this.

    strings = Strings(b"<pad>\\0<eos>\\0", np.array([5, 11]));  strings[1]     # b"<eos>"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class Strings(Sequence[bytes]):
    """text: the strings, each closed by a NUL, which may hold NULs of their own; ends: (N,) where
    the closing ones are."""

    text: bytes
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else [self._at(at) for at in places]

    def _at(self, place: int) -> bytes:
        start = int(self.ends[place - 1]) + 1 if place else 0
        return self.text[start : int(self.ends[place])]
