"""Chat templates from a grammar: what a template can say, joined at random and far too often.

text = made(random.Random("template:17"))
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fuzzing.mutations import TEXTS, mutated_bytes
from fuzzing.seeds import TEMPLATE

_NAMES = ("messages", "bos_token", "m", "x", "ns.a", "ns", "loop.index", "loop", "nothing", "tools")
_FILTERS = (
    "trim",
    "length",
    "tojson",
    "tojson(indent=2)",
    "upper",
    "string",
    "list",
    "join('')",
    "join(x)",
    "replace('a', 'bb')",
    "replace('', x)",
    "first",
    "last",
    "reverse",
    "sort",
    "unique",
    "map('string')",
    "map(attribute='content')",
    "selectattr('role', 'equalto', 'user')",
    "select('string')",
    "batch(3, 'x')",
    "batch(1000000000)",
    "slice(3)",
    "slice(1000000000)",
    "center(1000000)",
    "indent(100000)",
    "sum",
    "sum(start=[])",
    "default('d')",
    "items",
    "dictsort",
    "groupby('role')",
    "pprint",
    "wordwrap(1)",
    "truncate(3)",
    "format(x)",
    "int",
    "float",
    "round(3)",
    "abs",
    "escape",
    "urlencode",
    "xmlattr",
    "count",
    "min",
    "max",
    "random",
    "filesizeformat",
    "attr('__class__')",
)
_METHODS = (
    "split()",
    "split('a')",
    "strip()",
    "replace('a', 'b' * 1000)",
    "join(messages)",
    "upper()",
    "items()",
    "get('role')",
    "keys()",
    "startswith('a')",
    "format(x, x)",
    "rjust(100000000)",
    "zfill(100000000)",
    "encode()",
    "translate({97: x})",
    "splitlines()",
    "append(x)",
    "__class__",
    "mro()",
    "expandtabs(100000000)",
    "title()",
    "count('a')",
    "find('a')",
)
_OPERATORS = ("+", "-", "*", "**", "//", "/", "%", "~", "==", "!=", "<", "in", "and", "or", "is")
_TESTS = ("defined", "string", "mapping", "none", "iterable", "number", "divisibleby(2)", "in [1]")


def made(rng: Random) -> str:
    """A template: grown from the grammar, the honest one mutated, or both, one after the other."""
    choice = rng.random()
    if choice < 0.25:
        return mutated_bytes(rng, TEMPLATE.encode()).decode("utf-8", "replace")
    grown = _statements(rng, rng.randint(1, 4))
    return grown if choice < 0.8 else grown + TEMPLATE


def _statements(rng: Random, depth: int) -> str:
    if depth <= 0:
        return f"{{{{ {_expression(rng, 2)} }}}}"
    return "".join(rng.choice(_KINDS)(rng, depth - 1) for _ in range(rng.randint(1, 3)))


def _output(rng: Random, depth: int) -> str:
    return f"{{{{ {_expression(rng, 3)} }}}}"


def _for(rng: Random, depth: int) -> str:
    name = rng.choice(("m", "x", "i, j"))
    over = rng.choice((_expression(rng, 2), "range(100000)", "range(10**12)", "messages", "x"))
    test = f" if {_expression(rng, 2)}" if rng.random() < 0.3 else ""
    kind = " recursive" if rng.random() < 0.1 else ""
    inside = rng.choice(("", "{{ loop(x) }}")) if kind else ""
    return (
        f"{{% for {name} in {over}{test}{kind} %}}{_statements(rng, depth)}{inside}{{% endfor %}}"
    )


def _set(rng: Random, depth: int) -> str:
    target = rng.choice(("x", "ns.a", "m"))
    start = "{% set ns = namespace(a=[]) %}" if rng.random() < 0.5 else ""
    twice = rng.choice((f"[{target}, {target}]", f"{target} ~ {target}", _expression(rng, 2)))
    return f"{start}{{% set {target} = {twice} %}}"


def _block_set(rng: Random, depth: int) -> str:
    return f"{{% set x %}}{{{{ x }}}}{{{{ x }}}}{_statements(rng, depth)}{{% endset %}}"


def _if(rng: Random, depth: int) -> str:
    other = f"{{% else %}}{_statements(rng, depth)}" if rng.random() < 0.5 else ""
    return f"{{% if {_expression(rng, 2)} %}}{_statements(rng, depth)}{other}{{% endif %}}"


def _macro(rng: Random, depth: int) -> str:
    inner = rng.choice(("", "{{ f(x ~ x) }}", "{{ f(x) }}{{ f(x) }}"))
    call = "{{ f('a') }}" if rng.random() < 0.8 else "{% call f(x) %}y{% endcall %}"
    return f"{{% macro f(x) %}}{_statements(rng, depth)}{inner}{{% endmacro %}}{call}"


def _filter_block(rng: Random, depth: int) -> str:
    return f"{{% filter {rng.choice(_FILTERS)} %}}{_statements(rng, depth)}{{% endfilter %}}"


def _generation(rng: Random, depth: int) -> str:
    return f"{{% generation %}}{_statements(rng, depth)}{{% endgeneration %}}"


def _many(rng: Random, depth: int) -> str:
    return _statements(rng, 0) * rng.choice((2, 40, 2000))


_KINDS: tuple[Callable[[Random, int], str], ...] = (
    _output,
    _for,
    _set,
    _set,
    _block_set,
    _if,
    _macro,
    _filter_block,
    _generation,
    _many,
)


def _expression(rng: Random, depth: int) -> str:
    if depth <= 0:
        return rng.choice((*_NAMES, "1", "-1", "10**9", "'a'", "[]", "{}", repr(rng.choice(TEXTS))))
    inner, other = _expression(rng, depth - 1), _expression(rng, depth - 1)
    return rng.choice(
        (
            f"({inner} | {rng.choice(_FILTERS)})",
            f"({inner}).{rng.choice(_METHODS)}",
            f"({inner} {rng.choice(_OPERATORS[:-1])} {other})",
            f"({inner} is {rng.choice(_TESTS)})",
            f"[{inner}, {other}]",
            f"{{'a': {inner}, 'b': {other}}}",
            f"{inner}[{rng.choice(('0', '-1', '::-1', '1:', ':10**9', other))}]",
            f"({inner} if {other} else {inner})",
            f"({inner}, {other})",
            f"range({inner})",
            f"raise_exception({inner})",
            f"strftime_now({inner})",
            f"namespace(a={inner})",
            f"lipsum({inner}, false, 100000, 100001)",
        )
    )
