"""Jinja's statements, executed: what they write and set.

writer = Statements(Budget(0, 0))
writer.write(parse("Hello {{ name }}").body, Scope({"name": "Ann"}))     # "Hello Ann"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jinja2 import nodes

from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.expressions import Expressions
from gemelo.inputs.templates.loop import Loop
from gemelo.inputs.templates.scope import Scope
from gemelo.inputs.templates.values import (
    Macro,
    Namespace,
    Undefined,
    iterate,
    listed,
    type_name,
)
from gemelo.inputs.templates.written import concatenated, text_of

MAX_CALLS = 50
Execute = Callable[[Any, Scope, list[str]], None]


class _Break(Exception):
    """{% break %}"""


class _Continue(Exception):
    """{% continue %}"""


class Statements(Expressions):
    """Runs a template's statements, each at the cost of a step."""

    def __init__(self, budget: Budget) -> None:
        super().__init__(budget)
        self._calls = 0
        self._reads: dict[int, frozenset[str]] = {}
        self._executors: dict[type[nodes.Node], Execute] = {
            nodes.Output: self._output,
            nodes.If: self._if,
            nodes.For: self._for,
            nodes.Assign: self._assign,
            nodes.AssignBlock: self._assign_block,
            nodes.With: self._with,
            nodes.Macro: self._macro,
            nodes.CallBlock: self._call_block,
            nodes.FilterBlock: self._filter_block,
            nodes.Scope: self._scope,
            nodes.Block: self._block,
            nodes.Break: self._break,
            nodes.Continue: self._continue,
        }

    def write(self, body: list[nodes.Node], scope: Scope) -> str:
        """What `body` writes, in one text."""
        written: list[str] = []
        self._run(body, scope, written)
        return concatenated(self.budget, written)

    def invoke(self, macro: Macro, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
        """What a macro writes when it is called."""
        scope = self._bound(macro, arguments, named)
        with _Depth(self):
            return self.write(macro.node.body, scope)

    def enter(self) -> None:
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise Fault(f"RecursionError: it calls itself more than {MAX_CALLS} levels deep")

    def leave(self) -> None:
        self._calls -= 1

    def _run(self, body: list[nodes.Node], scope: Scope, written: list[str]) -> None:
        for node in body:
            self.budget.step()
            self.line = node.lineno
            execute = self._executors.get(type(node))
            if execute is None:
                name = type(node).__name__.lower()
                raise Fault(f"{{% {name} %}} is not supported in chat templates")
            execute(node, scope, written)

    def _output(self, node: nodes.Output, scope: Scope, written: list[str]) -> None:
        for part in node.nodes:
            text = text_of(self.budget, self.value(part, scope))
            self.budget.items(1)
            written.append(text)

    def _if(self, node: nodes.If, scope: Scope, written: list[str]) -> None:
        for branch in (node, *node.elif_):
            if self.value(branch.test, scope):
                self._run(branch.body, scope, written)
                return
        self._run(node.else_, scope, written)

    # ---- loops -----------------------------------------------------------------------------------

    def _for(self, node: nodes.For, scope: Scope, written: list[str]) -> None:
        self._loop(node, self.value(node.iter, scope), scope, written, 0)

    def _loop(
        self, node: nodes.For, items: Any, scope: Scope, written: list[str], depth: int
    ) -> None:
        def recurse(inner: Any, inner_depth: int) -> str:
            texts: list[str] = []
            with _Depth(self):
                self._loop(node, inner, scope, texts, inner_depth)
            return concatenated(self.budget, texts)

        chosen = self._chosen(node, iterate(self.budget, items), scope)
        loop = Loop(self.budget, chosen, recurse if node.recursive else None, depth)
        went_through = False
        for each in loop:
            inner = Scope({"loop": loop}, scope)
            self._set(node.target, each, inner)
            try:
                self._run(node.body, inner, written)
            except _Continue:
                continue
            except _Break:
                break
            went_through = True
        if not went_through:  # as in Jinja: a break or continue in the first turn counts as none
            self._run(node.else_, Scope({}, scope), written)

    def _chosen(self, node: nodes.For, items: Iterator[Any], scope: Scope) -> Iterator[Any]:
        """The items that a loop's `if` lets through."""
        for each in items:
            self.budget.step()
            if node.test is not None:
                inner = Scope({}, scope)
                self._set(node.target, each, inner)
                if not self.value(node.test, inner):
                    continue
            yield each

    def _break(self, node: nodes.Break, scope: Scope, written: list[str]) -> None:
        raise _Break

    def _continue(self, node: nodes.Continue, scope: Scope, written: list[str]) -> None:
        raise _Continue

    # ---- names -----------------------------------------------------------------------------------

    def _assign(self, node: nodes.Assign, scope: Scope, written: list[str]) -> None:
        self._set(node.target, self.value(node.node, scope), scope)

    def _assign_block(self, node: nodes.AssignBlock, scope: Scope, written: list[str]) -> None:
        body = self.write(node.body, Scope({}, scope))
        value = body if node.filter is None else self.filtered(node.filter, scope, body)
        self._set(node.target, value, scope)

    def _with(self, node: nodes.With, scope: Scope, written: list[str]) -> None:
        inner = Scope({}, scope)
        for target, value in zip(node.targets, node.values, strict=True):
            self._set(target, self.value(value, scope), inner)
        self._run(node.body, inner, written)

    def _scope(self, node: nodes.Scope, scope: Scope, written: list[str]) -> None:
        self._run(node.body, Scope({}, scope), written)

    def _block(self, node: nodes.Block, scope: Scope, written: list[str]) -> None:
        self._run(node.body, Scope({}, scope if node.scoped else scope.root()), written)

    def _set(self, target: nodes.Node, value: Any, scope: Scope) -> None:
        if isinstance(target, nodes.Name):
            scope.names[target.name] = value
        elif isinstance(target, nodes.NSRef):
            space = scope.find(target.name)
            if not isinstance(space, Namespace):
                raise Fault("cannot assign attribute on non-namespace object")
            space.assign(target.attr, value)
        elif isinstance(target, nodes.Tuple):
            values = listed(self.budget, value)
            if len(values) != len(target.items):
                raise Fault(f"{len(target.items)} names for {len(values)} values")
            for name, each in zip(target.items, values, strict=True):
                self._set(name, each, scope)
        else:
            raise Fault(f"it assigns to {type_name(target)}")

    # ---- macros ----------------------------------------------------------------------------------

    def _macro(self, node: nodes.Macro, scope: Scope, written: list[str]) -> None:
        scope.names[node.name] = self._macro_of(node.name, node, scope)

    def _macro_of(self, name: str, node: nodes.Macro | nodes.CallBlock, scope: Scope) -> Macro:
        if id(node) not in self._reads:
            self._reads[id(node)] = self._read_in(node)
        return Macro(name, node, scope, self._reads[id(node)])

    def _read_in(self, node: nodes.Macro | nodes.CallBlock) -> frozenset[str]:
        """Which of the names that a call may bring are read in a macro's body."""
        used = set()
        for part in node.body:
            for name in _names(part):
                self.budget.step()
                used.add(name.name)
        return frozenset(used & {"caller", "varargs", "kwargs"})

    def _call_block(self, node: nodes.CallBlock, scope: Scope, written: list[str]) -> None:
        called = self.value(node.call.node, scope)
        arguments, named = self._arguments(node.call, scope)
        caller = self._macro_of("caller", node, scope)
        result = self.call(called, arguments, named | {"caller": caller})
        written.append(text_of(self.budget, result))

    def _filter_block(self, node: nodes.FilterBlock, scope: Scope, written: list[str]) -> None:
        body = self.write(node.body, Scope({}, scope))
        written.append(text_of(self.budget, self.filtered(node.filter, scope, body)))

    def _bound(self, macro: Macro, arguments: tuple[Any, ...], named: dict[str, Any]) -> Scope:
        """The scope of a call: the macro's names with what they are given."""
        node, left = macro.node, dict(named)
        names = [target.name for target in node.args]
        scope = Scope(dict(zip(names, arguments, strict=False)), macro.scope)
        first_default = len(names) - len(node.defaults)
        for index, name in enumerate(names):
            if name in left and index >= len(arguments):
                scope.names[name] = left.pop(name)
            elif index >= len(arguments) and index >= first_default:
                scope.names[name] = self.value(node.defaults[index - first_default], scope)
            elif index >= len(arguments):
                scope.names[name] = Undefined(f"parameter {name[:80]!r} was not provided")
        missing = Undefined("No caller defined")
        for kept, value in (
            ("caller", left.pop("caller", missing)),
            ("varargs", arguments[len(names) :]),
            ("kwargs", left),
        ):
            if kept in macro.reads and kept not in names:
                scope.names[kept] = value
            elif kept != "caller" and value:
                raise Fault(f"macro {macro.name[:80]!r} takes {len(names)} arguments, not more")
        return scope


class _Depth:
    """One call deeper, until the end of a with block."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements

    def __enter__(self) -> None:
        self._statements.enter()

    def __exit__(self, *error: object) -> None:
        self._statements.leave()


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)
