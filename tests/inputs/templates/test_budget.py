"""No template takes more than a little time and memory, whatever it is made of.

Each attack runs in a process of its own, forked from one that has everything loaded, and is
measured from outside against a plain template.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemelo.errors import FileFormatError, GemeloError
from gemelo.inputs.templates.rendering import render_template

MAX_CPU_S = 2.0
MAX_BYTES = 64 << 20

DRIVER = """
import json, os, resource, sys
from gemelo.errors import GemeloError
from gemelo.inputs.templates.rendering import render_template

messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a b"}]

def render(source):
    try:
        return f"wrote {len(render_template(source, messages, {}, add_generation_prompt=True))}"
    except GemeloError as error:
        return str(error)

def measured(source):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        os.write(writing, render(source).encode(errors="replace")[:2000])
        os._exit(0)
    os.close(writing)
    said = os.fdopen(reading).read()
    _, status, usage = os.wait4(child, 0)
    seconds, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
    return {"status": status, "said": said, "seconds": seconds, "peak": peak}

render("{{ messages[0] | tojson }}")
sources = json.load(sys.stdin)
json.dump({name: measured(source) for name, source in sources.items()}, sys.stdout)
"""


def grown(step: str, start: str = "['a']", turns: int = 40) -> str:
    """x grows at each turn; y has grown in the same way."""
    loops = "".join(
        f"{{% for i in range({turns}) %}}{{% set n.{name} = {step.replace('x', 'n.' + name)} %}}"
        "{% endfor %}"
        for name in ("y", "x")
    )
    return f"{{% set n = namespace(x={start}, y={start}) %}}{loops}{{% set x = n.x %}}"


def often(body: str) -> str:
    """Again and again, over a long text and a long list."""
    return (
        "{% set t = 'a' * 400000 %}{% set u = t ~ 'b' %}{% set l = [1] * 40000 %}"
        "{% for i in range(99999) %}{% for j in range(99999) %}" + body + "{% endfor %}{% endfor %}"
    )


DOUBLED = grown("[x, x]")
# A list that holds itself twice, 40 deep, met in every way that goes through all of it.
THROUGH = [
    "x | string", "x ~ ''", "x", "x | tojson", "x | tojson(indent=2)", "x | pprint", "x == n.y",
    "x != n.y", "x < n.y", "[n.y].index(x)", "[n.y].count(x)", "x in [n.y]", "[x, n.y] | sort",
    "[x, n.y] | max", "raise_exception(x)", "'%s' % (x,)", "'%r' | format(x)", "'{}'.format(x)",
    "'{!r}'.format(x)", "[x] | join", "x | upper", "x | trim", "x | e", "x | replace('a', 'b')",
    "x | length ~ (x | urlencode)", "[x] | map('string') | list", "x is eq(n.y)", "x is lower",
    "[[x], [n.y]] | groupby(0)", "strftime_now(x)", "x | indent", "x | striptags", "x | center(9)",
]  # fmt: skip
TUPLES = [
    "{x: 1}", "{}.get(x)", "{}[x]", "x in {}", "[x] | unique | list", "x is filter",
    "[1] | map(x) | list", "[1] | select(x) | list", "dict([(x, 1)])", "'a'.startswith(x)",
]  # fmt: skip
LARGE = [
    "('a' * 400000).replace('a', 'b' * 1000)", "('a' * 400000) | replace('a', 'b' * 1000)",
    "range(99999) | join('a' * 99999)", "('x' * 99999).join('a' * 99999)", "[1] | slice(3 * 10**9)",
    "[1] | batch(3 * 10**9, 'x')", "[1] | slice(99999) | list", "'a' * 10**10", "10**10 * [1]",
    "9 ** 9 ** 9", "(2 ** 4000) ** 99", "5 | round(-10**9)", "'1'.zfill(10**10)",
    "'1'.ljust(10**10)", "'1'.center(10**10)", "'1' | center(10**10)", "'%9999999999d' % 1",
    "'%*d' % (10**10, 1)", "'%.999999999f' % 1.5", "'{:999999999}'.format(1)",
    "'{:{}}'.format('a', 10**12)", "('\t' * 99999).expandtabs(60000)", "'a' | indent(10**12, true)",
    "('a\n' * 99999) | indent(99999)", "[[[1]]] | tojson(indent=10**12)",
    "range(99999) | list | tojson(separators=('x' * 9999, 'a'))", "('<' * 999999) | e",
    "('\u0149' * 999999) | upper", "('\u00e9' * 999999) | urlencode",
    "([1] * 1000,) * 1000 | sum(start=[])", "('9' * 999999) | int", "('f' * 999999) | int(base=16)",
    "range(0, 10**400, 10**395) | list", "([('a' * 999999)] * 99999) | sort",
    "([('a' * 999999)] * 99999) | max", "range(0, 99999 * (2**61 - 1), 2**61 - 1) | unique | list",
    "('a' * 999999).rfind('ab' + 'a' * 499999)", "('a' * 999999).rsplit('ab' + 'a' * 499999)",
    "('abc' * 499999).strip('xyzabc' * 9999)", "('a ' * 999999).split()", "('a' * 1999999) | list",
    "range(99999) | select('in', range(99999) | list) | list", "('<a>' * 299999) | striptags",
    "('\U0001f600' * 999999) | tojson(ensure_ascii=true)", "['\x01' * 999999] | string",
    "strftime_now('%999999999Y')", "strftime_now('%c' * 99999)", "raise_exception('x' * 10**7)",
    "('%' ~ '0' * 999999) % 1", "('{0' ~ '[' * 999999 ~ '}').format(1)", "('{' * 999999).format(1)",
    "range(999) | sort(attribute=',' * 99999)", "[1] | map(attribute='a.' * 99999) | list",
    "('%s' * 199999) % ((1,) * 199999)", "lipsum(1, false, 10**9, 10**9 + 1)",
    "raise_exception('ab ' * 1290000)", "'a' * 1900000", "'<' * 1900000",
    "range(99999) | join(' ')", "[" + "9_9" * 333 + ("," + "9" * 999) * 250 + "]",
]  # fmt: skip
REPEATED = [
    "", "{% if 'q' in t %}{% endif %}", "{{ t.rfind('ba') }}", "{% if t == u %}{% endif %}",
    "{{ t.count('b') }}", "{{ (t | upper)[:0] }}", "{{ t.split('b')[1] }}", "{{ {t: 1} | length }}",
    "{% if t is lower %}{% endif %}", "{{ 2 in l }}", "{{ (l + l)[0] }}", "{{ l | sum }}",
    "{% if t < u %}{% endif %}", "{{ strftime_now('%c') }}", "{% set x = [i, j] %}",
    "{% macro f() %}" + "{{ a }}" * 5000 + "{% endmacro %}", "{{ " + "a" * 150000 + " }}",
    "{{ loop.changed(l) }}{{ loop.length }}", "{% for c in t %}{% endfor %}",
    "{{ loop.cycle(*l) }}", "{{ '%999d' % i }}", "{{ (t | wordcount) }}",
    "{% filter upper %}abc{% endfilter %}",
]  # fmt: skip
# Texts that Python's searches are slow at: almost the same at every place.
ALIKE = {
    "short": "{% set s = 'a' * 600 ~ 'b' ~ 'a' * 600 %}{% set t = 'a' * 2499 %}",
    "between": "{% set s = 'a' * 49 ~ 'b' ~ 'a' * 49 %}{% set t = 'a' * 29999 %}",
    "long": "{% set s = 'a' * 200000 ~ 'b' ~ 'a' * 199999 %}{% set t = 'a' * 402000 %}",
}
SEARCHED = [
    "s in t", "t.count(s)", "t.find(s)", "t.split(s) | length", "t.replace(s, '') | length",
    "t.partition(s) | length", "t | replace(s, '') | length", "t.rfind(s)",
]  # fmt: skip
PARSED = [
    "{{ a }}", "{{a+", "{{[0,", "{{a.", "{%if a%}{%endif%}", "{##}", "{{-", "{{not ", "{{(", "{{[",
    "{", "{{a<", "{%if a%}", "{%for a in b%}", "{%raw%}{%endraw%}", "{{f(", "{{9", "{{0x1", "{{1_",
    "{{'\\", "\n {%set a=1%}", "{{a~", "{%generation%}", "{%macro f()%}{%endmacro%}",
    "{{a if b else ",
]  # fmt: skip
WHOLE = {
    "a loop whose if is never true": "{% for a in range(99999) if (range(99999) | sum) < 0 %}"
    "{% endfor %}",
    "a block that doubles": "{% set x = 'aaaa' %}"
    + "{% set b %}{{ x }}{{ x }}{% endset %}{% set x = b %}" * 40,
    "a macro that doubles": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% else %}aaaa"
    "{% endif %}{% endmacro %}{{ f(40) }}",
    "a loop that doubles": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 45 }}"
    "{% endfor %}",
    "blocks in blocks": "{% with a = 1 %}" * 39 + often("{{ z }}" * 9) + "{% endwith %}" * 39,
    "a namespace that holds itself": "{% set n = namespace() %}{% set n.x = [n, n] %}{{ n }}",
    "a list 20,000 deep": grown("[x]", "[]", 20000) + "{{ x == n.y }}",
    "joined again and again": grown("[x, x] | join", turns=60),
    "replaced again and again": grown("x | replace('a', 'aa')", "'a'", 60),
    "a number that grows": grown("x * x", "7", 9999),
    "a list that grows": grown("x + [1]", "[1]", 99999),
    "macros in macros": "{% for i in range(999) %}"
    + "".join(f"{{% macro f{n}() %}}" for n in range(36))
    + "{{ a }}" * 7000
    + "".join(f"{{% endmacro %}}{{{{ f{n}() }}}}" for n in reversed(range(36)))
    + "{% endfor %}",
    "a dict copied": "{% set d = dict(range(11000) | list | batch(2)) %}"
    + grown("[x, d.copy()]", "[]", 400),
    "a dict as names": "{% set d = dict('abcdefghijklmnopqrstuvwxyz' | list | batch(2)) %}"
    + grown("[x, namespace(**d)]", "[]", 9999),
    "a dict of dicts": grown("{'a': x, 'b': x}", "{}") + "{{ x | tojson(sort_keys=true) }}",
}


def meeting_pairs(count: int) -> str:
    """A dict whose items, as tuples, have one hash: Python's of tuples can be turned round."""
    whole, most = (1 << 64) - 1, 1 << 60
    first, second, start = 11400714785074694791, 14029467366897019727, 2870177450012600261
    back = pow(second, -1, 1 << 64)
    pairs: list[tuple[int, int]] = []
    key = wanted = 0
    while len(pairs) < count:
        key += 1
        mixed = (start + key * second) & whole
        mixed = ((mixed << 31 | mixed >> 33) * first) & whole
        wanted = wanted or mixed + 12345 * second
        value = (wanted - mixed) * back & whole
        if 0 < value < most:
            pairs.append((key, value))
    assert len(set(map(hash, pairs))) == 1
    return "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"


def attacks() -> dict[str, str]:
    found = {f"doubled: {e}": DOUBLED + "{{ " + e + " }}" for e in THROUGH}
    tuples = grown("(x, x)", "('a',)")
    found |= {f"tuples: {e}": tuples + "{{ " + e + " }}" for e in TUPLES}
    found |= {f"large: {e}": "{{ " + e + " }}" for e in LARGE}
    found |= {f"repeated: {body[:40]}": often(body) for body in REPEATED}
    for name, texts in ALIKE.items():
        found |= {f"{name}: {e}": texts + often("{% set x = " + e + " %}") for e in SEARCHED}
    pairs = "{% set l = " + meeting_pairs(7000) + ".items() | list %}"
    found["tuples that meet"] = pairs + "{{ (l + l + l + l) | unique | list | length }}"
    found |= {f"parsed: {unit}": unit + unit.lstrip("{") * 99999 for unit in PARSED}
    found |= {f"parsed again: {unit}": unit * ((1 << 18) // len(unit)) for unit in PARSED}
    return found | WHOLE


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """What each attack came to and took; the plain template under ""."""
    sources = {"": "{% for m in messages %}{{ m.content }}{% endfor %}"} | attacks()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert not done.returncode, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.mark.parametrize("name", attacks())
def test_attacks_end_early_and_small(name: str, outcomes: dict[str, Any]) -> None:
    outcome, plain = outcomes[name], outcomes[""]
    assert outcome["status"] == 0, outcome
    assert outcome["seconds"] < MAX_CPU_S + plain["seconds"], outcome
    assert outcome["peak"] < MAX_BYTES + plain["peak"], outcome
    assert len(outcome["said"]) <= 500


def test_a_prompt_is_no_longer_than_its_messages_warrant() -> None:
    messages = [{"role": "user", "content": "a" * 100_000}]
    for times, fits in ((15, True), (20, False)):
        source = "{% for i in range(" + str(times) + ") %}{{ messages[0].content }}{% endfor %}"
        if fits:
            assert render_template(source, messages, {}, add_generation_prompt=True)
        else:
            with pytest.raises(FileFormatError, match="writes 2,000,000 .*for these messages"):
                render_template(source, messages, {}, add_generation_prompt=True)


def test_a_long_conversation_has_room() -> None:
    """What a message costs is allowed for with each message: no length of talk is refused."""
    text = "what is said at some length, " * 40
    messages = [{"role": "user", "content": text}] * 300
    source = (
        "{% set n = namespace(t='') %}{% for m in messages %}"
        "{% set before = messages[:loop.index0] | selectattr('role', 'eq', 'user') | list %}"
        "{% if loop.last %}{{ before | length }}{% endif %}"
        "{% for c in m.content[:50] %}{{ c | upper }}{% endfor %}{{ m | tojson }}{% endfor %}"
    )
    made = render_template(source, messages, {}, add_generation_prompt=True)
    assert len(made) > len(text) * 300


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [[[[0]] * 3]] * 9}],
        [{"role": "user", "content": 1 << 60}],
        [{"role": "user", "content": float("nan")}],
    ],
)
def test_any_json_can_be_given(messages: Any) -> None:
    assert render_template("{{ messages }}", messages, {}, add_generation_prompt=True)


def test_what_is_no_json_is_said() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    for value in (deep, 1 << 99, {1: 2}, object(), {"a", "b"}):
        with pytest.raises(GemeloError, match="the chat template's input"):
            render_template("", [{"content": value}], {}, add_generation_prompt=True)


def test_errors_name_the_line() -> None:
    for source, reason in (
        ("\n\n{{ 1 / 0 }}", "at line 3: ZeroDivisionError"),
        ("\n{% if %}", "broken at line 2"),
        ("\n{% include 'x' %}", "at line 2: {% include %} is not supported"),
        ("\n\n\n{{ 'a' | urlize }}", "at line 4: No filter named 'urlize': it is not supported"),
        ("{{ lipsum(9) }}", "at line 1: 'lipsum' is not supported"),
        ("{{ nothing.at.all }}", "at line 1: 'nothing' is undefined"),
    ):
        with pytest.raises(FileFormatError, match=reason):
            render_template(source, [], {}, add_generation_prompt=True)
