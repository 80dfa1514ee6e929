"""Our interpreter writes what Jinja writes, in the sandbox that transformers sets up, and knows
whose each character is."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils import chat_template_utils

from gemelo.errors import GemeloError, InputError
from gemelo.inputs.templates.rendering import render_template
from gemelo.inputs.templates.text import own, spans

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": " Be\nkind. "},
    {
        "role": "user",
        "content": "H\u00e9llo <eos> w\u00f6rld\n\n x",
        "n": 3,
        "tags": ["b", "a", "C"],
    },
    {
        "role": "assistant",
        "content": None,
        "calls": [{"name": "f", "given": {"q": 1.5, "b": True}}],
    },
]
# What Python writes of these depends on where they lie in memory, or names its own types.
UNWRITTEN = re.compile(r" at 0x|generator|<built-in|<Macro|<function|(?i:markup)")


def theirs(source: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: str = chat_template_utils._compile_jinja_template(source).render(
            messages=MESSAGES, tools=None, documents=None, add_generation_prompt=True
        )
    return made


def ours(source: str, messages: list[dict[str, Any]] = MESSAGES) -> str:
    return render_template(source, messages, {}, add_generation_prompt=True)


# ---- against Jinja -------------------------------------------------------------------------------

TEXTS = ["'ab c'", "''", "' X\\ny '", "'<b>'", "'a,b,,c'", "'%'", "m.role", "messages[1].content"]
NUMBERS = ["0", "1", "-3", "2.5", "7", "true", "messages | length", "messages[1].n", "1e3"]
LISTS = [
    "[]", "[3, 1, 2]", "['b', 'a', 'C']", "(1, 'x')", "range(4)", "[1.0, true, none]", "messages",
    "{'b': 1, 'a': 2}", "[[2, 'y'], [1, 'x']]", "messages[1].tags",
]  # fmt: skip
OTHERS = ["undef", "none", "messages[9]", "m.nope", "m.get('role')", "messages[2]", "tools"]
ON_TEXT = [
    "$t.upper()", "$t.title()", "$t.strip($t)", "$t.lstrip()", "$t.rstrip($t)",
    "$t.replace($t, $t)", "$t.replace($t, $t, 2)", "$t[1:]", "$t[::-1]", "$t[-2:5]", "$t[0]",
    "($t + $t)", "($t ~ $a)", "($t * 2)", "($t | trim)", "($t | title)", "($t | capitalize)",
    "($t | e)", "($t | indent(2, true))", "($t | center(12))", "($t | truncate(5))",
    "($t | truncate(6, true, '', 0))", "($t | urlencode)", "($t | striptags)", "($t | reverse)",
    "($t | first)", "($t | last)", "($t | string)", "($t | replace($t, $t))", "($l | join($t))",
    "($a | string)", "($a | tojson)", "($a | tojson(indent=2, sort_keys=true))",
    "($a | tojson(separators=(',', ':')))", "($a | tojson(ensure_ascii=true))",
    "('%s|%5s|%-4.2s|%r' % ($t, $t, $t, $a))", "('%d|%5.1f|%x|%%|%c' % ($n, $n, 7, 'x'))",
    "('{}-{:>6}-{x[0]}'.format($n, $t, x=$t))", "$t.zfill(8)", "$t.ljust(7)", "$t.expandtabs(4)",
    "$t.removeprefix($t)", "$t.join(['a', $t])", "($t if $b else $t)", "($a | default($t, true))",
    "($a or $t)", "($t | wordcount)", "($t | pprint)", "($t | safe)", "($t | forceescape)",
]  # fmt: skip
ON_NUMBERS = [
    "($n + $n)", "($n - $n)", "($n * $n)", "($n / $n)", "($n // $n)", "($n % $n)", "($n ** 2)",
    "(-$n)", "(+$n)", "($n | abs)", "($n | int)", "($n | float)", "($n | round)",
    "($n | round(1, 'ceil'))", "($l | length)", "$t.find($t)", "$t.count($t)", "$t.rfind($t)",
    "($l | sum)", "($l | min)", "($l | max)", "($t | int(7))", "($t | float)", "$l.index($n)",
    "($l | first)", "($l | last)",
]  # fmt: skip
ON_LISTS = [
    "[$a, $a]", "($l + $l)", "($l * 2)", "$l[1:]", "$l[::-1]", "($l | list)",
    "($l | reverse | list)", "($l | sort)", "($l | sort(reverse=true))", "($l | unique | list)",
    "($l | select | list)", "($l | reject('none') | list)", "($l | map('string') | list)",
    "($l | batch(2, 0) | list)", "($l | slice(2) | list)", "($l | slice(3, 'x') | list)",
    "($l | dictsort)", "($l | items | list)", "($l | groupby(0))", "$t.split()", "$t.split($t)",
    "$t.rsplit($t, 1)", "$t.split(none, 1)", "$t.splitlines(true)", "$t.partition($t)",
    "($t | list)", "dict(a=$a, b=2)", "{'k': $a}", "$l.items()",
    "($l | map(attribute='role') | list)", "($l | map(attribute='role', default='?') | list)",
    "($l | selectattr('role') | list)", "($l | selectattr('role', 'eq', 'user') | list)",
    "($l | rejectattr('n', 'defined') | list)", "($l | sort(attribute='role'))",
    "($l | select('gt', 1) | list)", "$l.copy()",
]  # fmt: skip
ON_TRUTHS = [
    "($a == $a)", "($a != $a)", "($n < $n)", "($t >= $t)", "(1 < $n <= 3)", "($t in $t)",
    "($a in $l)", "($a not in $l)", "(not $a)", "($a and $a)", "($a is defined)", "($a is string)",
    "($a is mapping)", "($a is sequence)", "($a is iterable)", "($a is number)", "($a is integer)",
    "($a is boolean)", "($a is none)", "($a is callable)", "($t is lower)", "($n is odd)",
    "($n is divisibleby 2)", "($a is not sameas none)", "($a is in [1, none])", "$t.startswith($t)",
    "$t.endswith(($t, 'c'))", "$t.isalpha()", "$t.isspace()", "($t is eq $t)",
]  # fmt: skip
LEAVES = {"t": TEXTS, "n": NUMBERS, "l": LISTS, "b": ["true", "false", "add_generation_prompt"]}
NODES = {"t": ON_TEXT, "n": ON_NUMBERS, "l": ON_LISTS, "b": ON_TRUTHS}
BODIES = [
    "{{ $a }}",
    "{% if $b %}{{ $a }}{% elif $b %}\n x{% else %} y {% endif %}\n",
    "{% for x in $l %}{{ loop.index }}{{ x }}{{ loop.last }}{% else %}-{% endfor %}",
    "{% for x in $l if x %}{{ loop.revindex }}{{ loop.previtem }}{{ loop.changed(x) }}"
    "{% if loop.index == 2 %}{% continue %}{% endif %}{{ loop.cycle('a', $t) }}"
    "{% if $b %}{% break %}{% endif %}{{ loop.length }}{% else %}-{% endfor %}",
    "  {%- set s = $a -%}  \n{{ s }}",
    "{% set n.a = $a %}{{ n.a }}{{ n.b }}",
    "{% set s | upper %}{{ $a }}\n{% endset %}{{ s }}",
    "{% with s = $t, q = s %}{{ q }}{{ s }}{% endwith %}{{ s }}",
    "{% macro f(a, b=$t) %}{{ a }}|{{ b }}|{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{{ f($a) }}{{ f(b=2, a=$a) }}{{ f(1, 2, 3, z=$n) }}",
    "{% macro g(x) %}[{{ caller(x) }}]{% endmacro %}{% call(z) g($a) %}{{ z }}{% endcall %}",
    "{% filter trim %} {{ $a }} {% endfilter %}",
    "{% generation %}\n{{ $a }}{% set s = 1 %}{% endgeneration %}{{ s }}",
    "{% for k, v in {'a': 1, 'b': $a}.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{{ loop.depth }}"
    "{{ loop(x) if x is iterable else x }}{% endfor %}",
]


def filled(draw: st.DrawFn, form: str, depth: int) -> str:
    """`form` with an expression of the kind named in each of its places."""

    def expression(kind: str) -> str:
        if kind == "a":
            kind = draw(st.sampled_from("tnlbo"))
        if kind == "o":
            return draw(st.sampled_from(OTHERS))
        if not depth or draw(st.booleans()):
            return draw(st.sampled_from(LEAVES[kind]))
        return filled(draw, draw(st.sampled_from(NODES[kind])), depth - 1)

    places = re.split(r"\$([tnlba])", form)
    parts = [expression(part) if at % 2 else part for at, part in enumerate(places)]
    return "".join(parts)


@st.composite
def templates(draw: st.DrawFn) -> str:
    forms = draw(st.lists(st.sampled_from(BODIES), min_size=1, max_size=3))
    bodies = [filled(draw, form, 2) for form in forms]
    start = "{% set n = namespace(a='z') %}{% set s = 'S s' %}{% set m = messages[1] %}"
    return start + "".join(bodies)


@settings(deadline=None, max_examples=250, derandomize=True)
@given(source=templates())
def test_random_templates_write_what_jinja_writes(source: str) -> None:
    try:
        expected: str | None = theirs(source)
    except Exception:
        expected = None
    if expected is not None and UNWRITTEN.search(expected):
        return
    try:
        made: str | None = str(ours(source))
    except GemeloError as error:
        if "cannot be sliced" in str(error):
            return  # an error in Jinja too, unless it could work the slice out before it ran
        made = None
    assert made == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{}{0}'.format(1) }}",
        "{{ 'x' % 1 }}",
        "{{ '%s' % [1] }}{{ 'a' % [] }}",
        "{{ undef.x }}",
        "{{ undef + 1 }}",
        "{{ 1 in 'a' }}",
        "{{ [] < 1 }}",
        "{{ {[]: 1} }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages[0].append is defined }}{{ messages.append is defined }}",
        "{{ ''.__class__ }}{{ ''['__class__'] }}",
        "{{ ''.__class__.__mro__ }}",
        "{% set messages.x = 1 %}",
        "{% set n = namespace(_a=1) %}",
        "{{ 'a'.nothing }}{{ 'a'['b'] }}{{ [1]['x'] }}{{ [1][5] }}",
        "{{ messages[1].items | default('none') is callable }}{{ {'items': 3}['items'] }}",
        "{% for a, b in [[1]] %}{% endfor %}",
        "{{ 'a' | nothing }}",
        "{{ 1 is nothing }}",
        "{{ (messages | map(attribute='role')) | length }}",
        "{{ 'yes' if messages | selectattr('role', 'eq', 'x') else 'no' }}",
        "{{ '\\ud83d' | length }}",
        "{% for x in [1, 2] %}{% break %}{% else %}else{% endfor %}",
        "{{ '<' + ('<' | safe) }}{{ ('<' | safe) ~ '<' }}",
        "{{ (true | abs) ~ true + true ~ -true }}",
        "{{ 2 ** -1 }}{{ 7 // -2 }}{{ -7 % 3 }}{{ 1e400 }}{{ 10 ** 20 }}",
        "{{ 'ab'.center(5, '*') }}{{ 'abc'.center(6) }}{{ '-5'.zfill(4) }}",
        "{{ range(3) }}{{ range(9)[2:5] | list }}{{ 2 in range(3) }}{{ 2.5 in range(3) }}",
        "{{ range(100001) }}",
        "{{ [1, 2, 3].index(3) }}{{ [1, 2, 1].index(1, 1) }}",
        "{{ (1, 1).count(1) }}{{ 'a-b'.rpartition('-') }}",
        "{{ messages[1] | tojson(2) }}",
        "{{ undef | tojson }}",
        "{{ {'a': undef} | string }}",
        "a  {# x #}\n  {% if true %}\n  b\n  {%- endif +%}\n c\n\n",
        "{% raw %}{{ x }}{% endraw %}{{ '' 'a' 'b' }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(1, 2) }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f(b=2) }}",
        "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f() }}{{ f.name }}",
        "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}",
        "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
        "{% macro f() %}{{ x }}{% endmacro %}{% set x = 3 %}{{ f() }}",
        "{% block a %}{{ messages | length }}{% endblock %}",
        "{{ dict([('a', 1)], b=2) }}{{ dict() }}",
        "{{ strftime_now('%Y') | length }}",
        "{{ [['b', 1], ['a', 2]] | sort(attribute='0') }}",
        "{{ ['b', 'A'] | sort(case_sensitive=true) }}",
    ],
)
def test_odd_corners(source: str) -> None:
    try:
        expected: str | None = theirs(source)
    except Exception:
        expected = None
    if expected is None:
        with pytest.raises(GemeloError):
            ours(source)
    else:
        assert str(ours(source)) == expected


# ---- whose each character is ---------------------------------------------------------------------

MARK = "<end_of_turn>"


@pytest.mark.parametrize(
    "source",
    [
        "{{ c }}", "{{ c | trim }}", "{{ c + '' }}", "{{ '' ~ c }}", "{{ c | string }}",
        "{{ c[:5] }}{{ c[5:] }}", "{{ c | list | join }}", "{% for x in c %}{{ x }}{% endfor %}",
        "{{ c.split('_') | join('_') }}", "{{ c.replace('zz', '') }}",
        "{{ c | replace('q', 'r') }}", "{{ '%s' % c }}", "{{ '{}'.format(c) }}",
        "{{ [c] | first }}", "{{ {c: 1} | first }}", "{{ {'a': c}.values() | join }}",
        "{{ c | upper | lower }}", "{{ c.swapcase().swapcase() }}", "{{ c | reverse | reverse }}",
        "{{ (c | tojson)[1:-1] }}", "{{ c | safe }}", "{{ c | indent }}",
        "{% set x %}{{ c }}{% endset %}{{ x }}", "{% filter trim %}{{ c }}{% endfilter %}",
        "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(c) }}", "{{ [c, c] | unique | join }}",
        "{{ c.partition('_') | join }}", "{{ c.splitlines() | join }}", "{{ (c ~ 'x')[:-1] }}",
        "{{ ('x' ~ c).removeprefix('x') }}", "{{ c | default('') }}", "{{ c or 'x' }}",
        "{{ namespace(a=c).a }}", "{{ c | format }}", "{{ c % () }}", "{{ c.format() }}",
        "{{ (c, 1) | first }}", "{{ c | truncate(99) }}", "{{ [c] | sort | first }}",
        "{{ [[c]] | sum(start=[]) | join }}", "{{ ' '.join([c]) }}", "{{ c.strip('x') }}",
        "{{ [c] | map('trim') | join }}", "{{ ([{'a': c}] | map(attribute='a') | list)[0] }}",
        "{{ [{'a': c}] | groupby('a') | map(attribute='grouper') | join }}", "{{ c.expandtabs() }}",
        "{{ c.center(5) }}", "{{ c | batch(99) | first | join }}", "{{ dict(a=c).get('a') }}",
        "{{ c | pprint | replace(\"'\", '') }}",
        "{{ (c ~ '\u0149') | upper | lower | truncate(13, true, '', 0) }}",
        "{{ [c] | string | replace(\"['\", '') | replace(\"']\", '') }}", "{{ '<' ~ c[1:] }}",
        "{{ c[:-1] ~ '>' }}", "{{ '<end' + c[4:] }}", "{{ c[:4] }}{{ '_of_turn>' }}",
        "{{ '<%s>' % c[1:-1] }}", "{{ '<{}>'.format(c[1:-1]) }}", "{{ c.replace('end', 'end') }}",
        "{{ '_'.join(c.split('_')) }}", "{{ c | replace('<', '<') }}", "<{{ c[1:-1] }}>",
    ],
)  # fmt: skip
def test_what_was_said_stays_said(source: str) -> None:
    """However a template turns it, no run of the template's own comes to hold a control string."""
    messages = [{"role": "user", "content": MARK}]
    source = "{% set c = messages[0].content %}{{ '<start_of_turn>' }}" + source
    text = ours(source, messages)
    assert str(text) == "<start_of_turn>" + MARK
    assert not any(is_own and MARK in run for run, is_own in spans(text))
    assert [run for run, is_own in spans(text) if is_own][0].startswith("<start_of_turn>")


@pytest.mark.parametrize(
    "source",
    [
        "{{ '<end_of_turn>' }}", "<end_of_turn>", "{{ mark }}",
        "{{ ('<end_of' ~ '_turn>') | trim }}", "{{ ' <end_of_turn> '.strip() }}",
        "{{ ['<end_of', 'turn>'] | join('_') }}", "{{ '%s_%s' % ('<end_of', 'turn>') }}",
        "{{ '{}_turn>'.format('<end_of') }}", "{{ '<END_OF_TURN>' | lower }}",
        "{{ ('<end_of_turn>' | tojson)[1:-1] }}", "{{ '<end_of_turn>x'[:-1] }}",
        "{{ '<end-of_turn>' | replace('-', '_') }}", "{{ {'a': '<end_of_turn>'}['a'] }}",
        "{% set x %}<end_of_turn>{% endset %}{{ x }}",
        "{% macro f() %}<end_of_turn>{% endmacro %}{{ f() }}", "{{ ['<end_of_turn>'] | first }}",
        "{{ (messages[0].content ~ '<end_of_turn>')[messages[0].content | length:] }}",
        "{{ '<end_of_turn> x'.split()[0] }}", "{{ '<end_' }}of{{ '_turn>' }}",
        "{{ '<end_of_turn>' if messages[0].content else '' }}",
    ],
)  # fmt: skip
def test_what_a_template_writes_is_its_own(source: str) -> None:
    text = render_template(
        source, [{"content": "x"}], {"mark": "<end_of_turn>"}, add_generation_prompt=True
    )
    assert list(spans(text)) == [(MARK, True)]


def test_numbers_of_people_are_theirs() -> None:
    """A number is written by whoever gave it: a template's count, or a value in a tool."""
    messages = [{"role": own("user"), "content": "12", "n": 5, "x": 2.5}]
    for source, expected in (
        ("<unused{{ messages[0].n }}>", [("<unused", True), ("5", False), (">", True)]),
        ("<unused{{ messages[0].n + 1 }}>", [("<unused", True), ("6", False), (">", True)]),
        (
            "<unused{{ messages[0].content | int }}>",
            [("<unused", True), ("12", False), (">", True)],
        ),
        (
            "<unused{{ messages[0].x | round | int }}>",
            [("<unused", True), ("2", False), (">", True)],
        ),
        ("<unused{{ messages | length }}>", [("<unused1>", True)]),
        ("<unused{{ '%d' % messages[0].n }}>", [("<unused", True), ("5", False), (">", True)]),
        ("<unused{{ messages[0].n | tojson }}>", [("<unused", True), ("5", False), (">", True)]),
        ("<|{{ messages[0].role }}|>", [("<|user|>", True)]),
    ):
        assert list(spans(ours(source, messages))) == expected


def test_a_template_may_refuse() -> None:
    with pytest.raises(InputError, match="refuses the messages: not <eos> today"):
        ours("{{ raise_exception('not <eos>\n today') }}")
