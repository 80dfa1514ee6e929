"""Variable scopes: the names that a template can see at one place.

inner = Scope({"loop": loop}, outer)
inner.find("messages")
"""

from __future__ import annotations

from typing import Any

from gemelo.inputs.templates.budget import Fault
from gemelo.inputs.templates.values import Undefined

MAX_DEPTH = 40


class Scope:
    """Names of its own, and those around it; what is set here stays here."""

    __slots__ = ("names", "outer", "depth")

    def __init__(self, names: dict[str, Any], outer: Scope | None = None) -> None:
        self.names, self.outer = names, outer
        self.depth: int = 0 if outer is None else outer.depth + 1
        if self.depth > MAX_DEPTH:
            raise Fault(f"its blocks are nested deeper than {MAX_DEPTH} levels")

    def find(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return Undefined(f"{name[:80]!r} is undefined")

    def root(self) -> Scope:
        scope = self
        while scope.outer is not None:
            scope = scope.outer
        return scope
