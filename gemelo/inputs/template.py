"""A chat template that came in a model's file, run where it can do no harm.

Such a template is a program in the Jinja language by whoever made the file. It runs in Jinja's
immutable sandbox, which keeps it from Python's insides, and behind fences of ours: every turn of a
loop looks at the clock, operators build strings, lists and numbers only up to a size, and so does
the whole. It sees messages and tokens, no files and no network.

    render_template(source, messages, {"bos_token": "<bos>"}, add_generation_prompt=True)
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from gemelo.errors import FileFormatError, InputError

MAX_SOURCE_CHARS = 1 << 20
MAX_OUTPUT_CHARS = 1 << 24
MAX_NUMBER_BITS = 4096
MAX_RENDER_S = 10.0


def render_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
) -> str:
    """What `source` makes of `messages`; `tokens` are further variables, such as bos_token.

    Raises FileFormatError for a template that is broken or breaks a fence, InputError for messages
    that the template itself refuses.
    """
    if len(source) > MAX_SOURCE_CHARS:
        raise FileFormatError(
            f"the chat template has {len(source)} characters: the limit is {MAX_SOURCE_CHARS}"
        )
    fence = _Fence(time.monotonic() + MAX_RENDER_S)
    try:
        template = fence.from_string(_Fencing().visit(fence.parse(source)))
        return _collect(
            template.generate(
                messages=messages, add_generation_prompt=add_generation_prompt, **tokens
            )
        )
    except _RefusedError as error:
        raise InputError(f"the chat template refuses the messages: {_line(error)}") from None
    except TemplateSyntaxError as error:
        reason = _line(error.message)
        raise FileFormatError(
            f"the chat template is broken at line {error.lineno}: {reason}"
        ) from None
    except TemplateError as error:
        raise FileFormatError(f"the chat template failed: {_line(error.message)}") from None
    except Exception as error:  # whatever the operators and methods in a template run into
        reason = _line(f"{type(error).__name__}: {error}")
        raise FileFormatError(f"the chat template failed: {reason}") from None


class _RefusedError(TemplateError):
    """What a template raises by its own decision."""


class _Fence(ImmutableSandboxedEnvironment):
    """The sandbox, a clock, and operators that look at sizes."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, deadline_s: float) -> None:
        """deadline_s: on the monotonic clock."""
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._deadline_s = deadline_s
        self.globals["raise_exception"] = _refuse
        self.filters["tojson"] = _to_json
        # Each of these makes a text as long as a number says.
        for name in ("center", "format", "indent", "wordwrap"):
            del self.filters[name]

    def tick(self) -> str:
        """Called at each turn of a loop and each call of a macro."""
        if time.monotonic() > self._deadline_s:
            raise SecurityError(f"it ran longer than {MAX_RENDER_S:g} seconds")
        return ""

    def concatenate(self, *parts: Any) -> str:
        """The ~ operator."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(operator, left, right)
        elif not isinstance(left, int | float) or not isinstance(right, int | float):
            _check_length(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> None:
        """Off: `format` is not among the methods that may be called."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        long = {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill"}
        return attr not in long and super().is_safe_attribute(obj, attr, value)


class _Fencing(NodeTransformer):
    """Puts the fence's calls into a parsed template, where none of its names can hide them."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("concatenate", node.nodes, node.lineno)

    def _ticking(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_call("tick", [], node.lineno)], lineno=node.lineno))
        return node


def _line(reason: object) -> str:
    return " ".join(str(reason).split())


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, arguments, [], None, None, lineno=line)


def _collect(parts: Any) -> str:
    texts: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        if size > MAX_OUTPUT_CHARS:
            raise SecurityError(f"it wrote more than {MAX_OUTPUT_CHARS} characters")
        texts.append(part)
    return "".join(texts)


def _check_bits(operator: str, left: int, right: int) -> None:
    """Keep whole numbers to a size that costs nothing."""
    bits = left.bit_length()
    bits = bits * max(right, 0) if operator == "**" else bits + right.bit_length()
    if bits > MAX_NUMBER_BITS:
        raise SecurityError(f"it builds a number of {bits} bits: the limit is {MAX_NUMBER_BITS}")


def _check_length(operator: str, left: Any, right: Any) -> None:
    """Keep texts and lists to a size that fits; refuse % on text, which pads to any length."""
    if operator in ("%", "**"):
        raise SecurityError(f"it uses {operator} on other things than numbers")
    sizes = _size(left), _size(right)
    _check_size(sizes[0] * sizes[1] if operator == "*" else sum(sizes))


def _size(value: Any) -> int:
    """The length of a text or a list; a number counts for how often it repeats one."""
    if isinstance(value, int):
        return max(0, value)
    return len(value) if isinstance(value, str | list | tuple) else 1


def _check_size(size: int) -> None:
    if size > MAX_OUTPUT_CHARS:
        raise SecurityError(f"it builds {size} characters: the limit is {MAX_OUTPUT_CHARS}")


def _refuse(reason: Any) -> NoReturn:
    raise _RefusedError(str(reason))


def _to_json(value: Any, indent: int | None = None) -> str:
    """As templates expect it: unlike Jinja's own, nothing is escaped for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError(f"it indents JSON by {indent}: the limit is 16")
    return json.dumps(value, ensure_ascii=False, indent=indent)
