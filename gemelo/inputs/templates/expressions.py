"""Jinja's expressions, evaluated.

Statements(budget).value(node, scope)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from jinja2 import nodes

from gemelo.inputs.templates import operators
from gemelo.inputs.templates.access import attribute, item, slice_of
from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.conditions import call_test
from gemelo.inputs.templates.filters import call_filter
from gemelo.inputs.templates.loop import Loop
from gemelo.inputs.templates.methods import call_method
from gemelo.inputs.templates.order import compare
from gemelo.inputs.templates.scope import Scope
from gemelo.inputs.templates.text import own
from gemelo.inputs.templates.values import (
    Function,
    Macro,
    Method,
    Undefined,
    check_key,
    listed,
    type_name,
)
from gemelo.inputs.templates.written import concatenated, text_of

Evaluate = Callable[[Any, Scope], Any]


class Expressions(ABC):
    """Evaluates the nodes of one template, each at the cost of a step.

    line: of the node last looked at, for errors.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.line = 0
        self._literals: dict[int, str] = {}
        self._evaluators = self._all_evaluators()

    def value(self, node: nodes.Node, scope: Scope) -> Any:
        self.budget.step()
        self.line = node.lineno
        evaluate = self._evaluators.get(type(node))
        if evaluate is None:
            raise Fault(f"{type(node).__name__} is not supported in chat templates")
        return evaluate(node, scope)

    @abstractmethod
    def invoke(self, macro: Macro, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """What calling a macro writes: statements know."""

    def filtered(self, node: nodes.Filter, scope: Scope, body: str | None = None) -> Any:
        """A filter's result; body: what stands where a filter block has no expression."""
        self.budget.step()
        if isinstance(node.node, nodes.Filter):
            value = self.filtered(node.node, scope, body)
        else:
            value = body if node.node is None else self.value(node.node, scope)
        arguments, named = self._arguments(node, scope)
        self.line = node.lineno
        return call_filter(self.budget, node.name, value, arguments, named)

    def literal(self, node: nodes.Const | nodes.TemplateData, chars: str) -> str:
        """A text of the template's own, made once."""
        known = self._literals.get(id(node))
        if known is None:
            self.budget.text(len(chars))
            known = self._literals[id(node)] = own(chars)
        return known

    def _all_evaluators(self) -> dict[type[nodes.Node], Evaluate]:
        return {
            nodes.Name: lambda node, scope: scope.find(node.name),
            nodes.Const: self._const,
            nodes.TemplateData: lambda node, scope: self.literal(node, node.data),
            nodes.Tuple: lambda node, scope: tuple(self._items(node.items, scope)),
            nodes.List: lambda node, scope: self._items(node.items, scope),
            nodes.Dict: self._dict,
            nodes.CondExpr: self._conditional,
            nodes.Filter: self.filtered,
            nodes.Test: self._test,
            nodes.Call: self._call,
            nodes.Getattr: self._getattr,
            nodes.Getitem: self._getitem,
            nodes.Concat: self._concat,
            nodes.Compare: self._compare,
            nodes.And: lambda node, scope: (
                self.value(node.left, scope) and self.value(node.right, scope)
            ),
            nodes.Or: lambda node, scope: (
                self.value(node.left, scope) or self.value(node.right, scope)
            ),
            nodes.Not: lambda node, scope: not self.value(node.node, scope),
            nodes.Neg: lambda node, scope: operators.negative(self.value(node.node, scope)),
            nodes.Pos: lambda node, scope: operators.positive(self.value(node.node, scope)),
            nodes.Add: self._binary(operators.add),
            nodes.Mul: self._binary(operators.multiply),
            nodes.Mod: self._binary(operators.modulo),
            nodes.Sub: self._arithmetic("-"),
            nodes.Div: self._arithmetic("/"),
            nodes.FloorDiv: self._arithmetic("//"),
            nodes.Pow: self._arithmetic("**"),
        }

    def _binary(self, operate: Callable[[Budget, Any, Any], Any]) -> Evaluate:
        def evaluate(node: Any, scope: Scope) -> Any:
            left, right = self.value(node.left, scope), self.value(node.right, scope)
            return operate(self.budget, left, right)

        return evaluate

    def _arithmetic(self, operator: str) -> Evaluate:
        def evaluate(node: Any, scope: Scope) -> Any:
            left, right = self.value(node.left, scope), self.value(node.right, scope)
            return operators.arithmetic(self.budget, operator, left, right)

        return evaluate

    def _const(self, node: nodes.Const, scope: Scope) -> Any:
        if isinstance(node.value, str):
            return self.literal(node, node.value)
        if isinstance(node.value, int):
            self.budget.bits(node.value.bit_length())
        return node.value

    def _items(self, items: list[nodes.Expr], scope: Scope) -> list[Any]:
        self.budget.items(len(items))
        return [self.value(each, scope) for each in items]

    def _dict(self, node: nodes.Dict, scope: Scope) -> dict[Any, Any]:
        self.budget.entries(len(node.items))
        members = {}
        for pair in node.items:
            key = check_key(self.budget, self.value(pair.key, scope))
            members[key] = self.value(pair.value, scope)
        return members

    def _conditional(self, node: nodes.CondExpr, scope: Scope) -> Any:
        if self.value(node.test, scope):
            return self.value(node.expr1, scope)
        if node.expr2 is None:
            return Undefined(
                "the inline if-expression evaluated to false and no else section was defined."
            )
        return self.value(node.expr2, scope)

    def _test(self, node: nodes.Test, scope: Scope) -> bool:
        value = self.value(node.node, scope)
        arguments, named = self._arguments(node, scope)
        return call_test(self.budget, node.name, value, (*arguments, *named.values()))

    def _getattr(self, node: nodes.Getattr, scope: Scope) -> Any:
        return attribute(self.budget, self.value(node.node, scope), node.attr)

    def _getitem(self, node: nodes.Getitem, scope: Scope) -> Any:
        owner = self.value(node.node, scope)
        if not isinstance(node.arg, nodes.Slice):
            return item(self.budget, owner, self.value(node.arg, scope))
        arg = node.arg
        bounds = [
            None if bound is None else self.value(bound, scope)
            for bound in (arg.start, arg.stop, arg.step)
        ]
        return slice_of(self.budget, owner, *bounds)

    def _concat(self, node: nodes.Concat, scope: Scope) -> str:
        parts = [text_of(self.budget, self.value(each, scope)) for each in node.nodes]
        return concatenated(self.budget, parts)

    def _compare(self, node: nodes.Compare, scope: Scope) -> bool:
        left = self.value(node.expr, scope)
        for operand in node.ops:
            right = self.value(operand.expr, scope)
            if not compare(self.budget, operand.op, left, right):
                return False
            left = right
        return True

    def _call(self, node: nodes.Call, scope: Scope) -> Any:
        called = self.value(node.node, scope)
        arguments, named = self._arguments(node, scope)
        self.line = node.lineno
        return self.call(called, arguments, named)

    def call(self, called: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """called(*arguments, **named)"""
        if isinstance(called, Macro):
            return self.invoke(called, arguments, named)
        if isinstance(called, Method):
            return call_method(self.budget, called, arguments, named)
        if isinstance(called, Function):
            return called.call(*arguments, **named)
        if isinstance(called, Loop) and called.recurse is not None and len(arguments) == 1:
            return called.recurse(arguments[0], called.depth + 1)
        if isinstance(called, Undefined):
            called.fail()
        raise Fault(f"{type_name(called)!r} object is not callable")

    def _arguments(
        self, node: nodes.Call | nodes.Filter | nodes.Test, scope: Scope
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        arguments = [self.value(each, scope) for each in node.args]
        named: dict[str, Any] = {}
        for pair in node.kwargs:
            named[own(str(pair.key))] = self.value(pair.value, scope)
        if node.dyn_args is not None:
            arguments += listed(self.budget, self.value(node.dyn_args, scope))
        if node.dyn_kwargs is not None:
            more = self.value(node.dyn_kwargs, scope)
            if not isinstance(more, dict) or not all(isinstance(key, str) for key in more):
                raise Fault("arguments by name are a dict with texts as keys")
            self.budget.entries(len(more))
            named |= more
        self.budget.items(len(arguments))
        return tuple(arguments), named
