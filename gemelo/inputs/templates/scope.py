"""The names that a template can see at one place.

inner = Scope({"loop": loop}, outer)
inner.find("messages")
"""

from __future__ import annotations

from typing import Any

from gemelo.inputs.templates.values import Undefined


class Scope:
    """Names of its own, and those around it; what is set here stays here."""

    __slots__ = ("names", "outer")

    def __init__(self, names: dict[str, Any], outer: Scope | None = None) -> None:
        self.names, self.outer = names, outer

    def find(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return Undefined(f"{name!r} is undefined")

    def root(self) -> Scope:
        scope = self
        while scope.outer is not None:
            scope = scope.outer
        return scope
