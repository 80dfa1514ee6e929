"""Progress of a download in bytes, over all its files: what the hub library takes for a tqdm bar.

That library draws a bar of its own for every file. Whoever passes a callback gets one count of all
files instead, and draws what he likes. Where storage is by chunks (Xet) the library counts twice,
bytes that came over the network and bytes on the disk; the second are the ones that count here.

    total = Total(progress, 806_058_240);  hf_hub_download(..., tqdm_class=total.bar())
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

Progress = Callable[[int, int], None]


class Total:
    """Bytes of several downloads, told to one callback."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.progress, self.total_bytes, self.done_bytes = progress, total_bytes, 0

    def add(self, count: float) -> None:
        """Some bytes more; fewer, where the library begins a file anew."""
        self.done_bytes += int(count)
        if self.progress is not None and self.done_bytes < self.total_bytes:
            self.progress(self.done_bytes, self.total_bytes)

    def finish(self) -> None:
        """All of it is here, whether it was fetched or was there before."""
        if self.progress is not None:
            self.progress(self.total_bytes, self.total_bytes)

    def bar(self) -> type:
        """A class whose objects are bars that count for this total and draw nothing."""
        return type("Bar", (_Bar,), {"whole": self})


class _Bar:
    """As much of tqdm's interface as downloads use."""

    whole: Total

    def __init__(self, *_: Any, total: float | None = None, initial: float = 0, **__: Any) -> None:
        self.total, self.n, self.format_dict = total, initial, dict[str, Any]()
        self.whole.add(initial)

    def update(self, n: float = 1) -> None:
        self.n += n
        self.whole.add(n)

    def update_transfer(self, n: float) -> None:
        """Bytes over the network: they are counted once they are on the disk."""

    def set_postfix_str(self, *_: Any, **__: Any) -> None:
        """Speeds, which are not shown."""

    set_transfer_postfix_str = set_description = set_postfix_str

    def refresh(self, *_: Any, **__: Any) -> None:
        """There is nothing to draw."""

    close = clear = refresh

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
