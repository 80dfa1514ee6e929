"""Jinja's `loop` variable.

loop = Loop(budget, iter([1, 2]), None, 0)
for item in loop: loop.attribute("last")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.order import equal
from gemelo.inputs.templates.values import Method, Undefined

NOTHING = object()


class Loop:
    """Where a loop stands. Items ahead are only looked at when a template asks for what needs them.

    recurse: what calling the loop does, None for a loop that is not recursive; depth: from 0.
    """

    ATTRIBUTES = frozenset(
        ["index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0"]
        + ["previtem", "nextitem", "cycle", "changed"]
    )

    def __init__(
        self,
        budget: Budget,
        items: Iterator[Any],
        recurse: Callable[[Any, int], Any] | None,
        depth: int,
    ) -> None:
        self.recurse, self.depth = recurse, depth
        self.index0 = -1
        self._budget, self._items = budget, items
        self._changed: Any = NOTHING
        self._before: Any = NOTHING
        self._now: Any = NOTHING
        self._ahead: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        while self._look():
            self._before, self._now = self._now, self._ahead.popleft()
            self.index0 += 1
            yield self._now

    def attribute(self, name: str) -> Any:
        if name in ("index", "index0", "depth", "depth0"):
            counted = self.index0 if name.startswith("index") else self.depth
            return counted if name.endswith("0") else counted + 1
        if name == "first":
            return self.index0 == 0
        if name == "last":
            return not self._look()
        if name == "previtem":
            return Undefined("there is no previous item") if self.index0 == 0 else self._before
        if name == "nextitem":
            return self._ahead[0] if self._look() else Undefined("there is no next item")
        if name in ("length", "revindex", "revindex0"):
            return self._length() - {"length": 0, "revindex": self.index0}.get(
                name, self.index0 + 1
            )
        return Method(self, name)

    def cycle(self, *choices: Any) -> Any:
        if not choices:
            raise Fault("loop.cycle has no items to cycle through")
        return choices[self.index0 % len(choices)]

    def _length(self) -> int:
        while self._pull():
            pass
        return self.index0 + 1 + len(self._ahead)

    def changed(self, *value: Any) -> bool:
        """Whether this is another value than at the last call."""
        if self._changed is not NOTHING and equal(self._budget, self._changed, value):
            return False
        self._changed = value
        return True

    def _look(self) -> bool:
        return bool(self._ahead) or self._pull()

    def _pull(self) -> bool:
        """Take one more item ahead, if there is one."""
        item = next(self._items, NOTHING)
        if item is NOTHING:
            return False
        self._budget.texts(1, 0)
        self._ahead.append(item)
        return True
