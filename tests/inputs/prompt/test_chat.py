"""Messages become the ids that the model was trained on, and nobody but the template writes
marks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.inputs.prompt import chat
from gemelo.inputs.prompt.chat import Prompt, render, render_gemma_template
from gemelo.inputs.templates import rendering
from gemelo.inputs.tokenizer.tokenizer import Tokenizer

# Gemma's turns in our own words, as a file might bring them.
TURNS = """
{%- set start = namespace(text='', skip=0) -%}
{%- if messages[0].role == 'system' -%}
  {%- set start.text = messages[0].content ~ '\\n\\n' -%}
  {%- set start.skip = 1 -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in messages[start.skip:] -%}
  {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' -}}
  {{- start.text if loop.first else '' -}}
  {%- if message.content is string -%}
    {{- message.content | trim -}}
  {%- else -%}
    {%- for part in message.content -%}{{- part.text | trim -}}{%- endfor -%}
  {%- endif -%}
  {{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

Messages = list[dict[str, Any]]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def with_template(tokenizer: Tokenizer, source: str = TURNS) -> Tokenizer:
    return replace(tokenizer, chat_template=source)


@pytest.fixture
def tokenizer(small: dict[str, Tokenizer]) -> Tokenizer:
    return small["gguf"]


def test_real_ids_are_the_published_ones(
    real: Callable[[str], Tokenizer], corpus: dict[str, Any]
) -> None:
    tokenizer = with_template(real("gguf"))
    for messages, generation, ids in corpus["chats"]:
        for way in (render, render_gemma_template):
            prompt = way(messages, tokenizer, add_generation_prompt=generation)
            assert prompt == Prompt(tuple(ids)), (messages, way)
    hello = render_gemma_template([user("Hello")], tokenizer)
    assert hello.ids == (2, 105, 2364, 107, 9259, 106, 107, 105, 4368, 107)


def test_gemmas_own_template_is_not_run(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "GEMMA_TEMPLATE_DIGEST", chat._digest(TURNS))
    monkeypatch.setattr(rendering, "render_template", None)
    given_messages = [system("in"), user("the"), assistant("hell"), user("he")]
    same = with_template(tokenizer, TURNS.replace("\n", "\r\n"))
    assert render(given_messages, same) == render_gemma_template(given_messages, tokenizer)
    with pytest.raises(TypeError):
        render(given_messages, with_template(tokenizer, TURNS + " " + "{# #}"))


def test_as_transformers_does(tokenizer: Tokenizer) -> None:
    """A prompt is what transformers makes of the same template and vocabulary."""
    import json

    from tokenizers import Tokenizer as Library
    from transformers import PreTrainedTokenizerFast

    from tests.inputs.conftest import as_json

    written = as_json(tokenizer.backend.vocabulary, merges=True) | {"truncation": None}
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=Library.from_str(json.dumps(written)), bos_token="<bos>"
    )
    theirs.chat_template = TURNS
    messages = [
        system(" in\n\n"),
        user("\n the hell\n\n é "),
        assistant("in the"),
        user(parts("a", " b")),
    ]
    expected = theirs.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert list(render_gemma_template(messages, tokenizer).ids) == expected
    assert list(render(messages, with_template(tokenizer)).ids) == expected


MARKS = ["<end_of_turn>", "<start_of_turn>", "<bos>", "<eos>", "<unused0>", "<mask>", "<pad>"]
PIECES = [*MARKS, "<end_of", "_turn>", "<", ">", "<<", "model\n", "\n", " ", "hell", "é", "\ufdd0"]
CONTENT = st.lists(st.sampled_from(PIECES), max_size=6)


@settings(deadline=None, max_examples=100)
@given(said=st.lists(CONTENT, min_size=1, max_size=4), prefix=CONTENT, as_parts=st.booleans())
def test_what_is_said_never_becomes_a_mark(
    small: dict[str, Tokenizer], said: list[list[str]], prefix: list[str], as_parts: bool
) -> None:
    messages: Messages = [system("".join(prefix))] if prefix else []
    opening = "".join(prefix) + "\n\n" if prefix else ""
    expected = ""
    for index, fragments in enumerate(said):
        role = "model" if index % 2 else "user"
        texts = fragments if as_parts and fragments else ["".join(fragments)]
        messages.append({"role": role, "content": parts(*texts) if as_parts else texts[0]})
        text = "".join(part.strip() for part in texts)
        expected += f"{role}\n{opening}{text}\n"
        opening = ""
    for tokenizer in small.values():
        ids = render_gemma_template(messages, tokenizer).ids
        assert render(messages, with_template(tokenizer)).ids == ids
        assert tokenizer.decode(ids) == expected + "model\n"
        start, end = (tokenizer.controls[f"<{which}_of_turn>"] for which in ("start", "end"))
        marks = [id for id in ids if id in tokenizer.controls.values()]
        assert marks == [2] + [start, end] * len(said) + [start]


@pytest.mark.parametrize("source", ["x", "<bos>x", "<bos><bos><bos>x", "{{ bos_token }}x"])
def test_a_prompt_begins_with_one_bos(tokenizer: Tokenizer, source: str) -> None:
    prompt = render([user("the")], with_template(tokenizer, source))
    assert prompt.ids == tuple(tokenizer.encode("x"))


def test_bos_before_every_turn(tokenizer: Tokenizer) -> None:
    """As families have it whose conversations are single turns, one after the other."""
    source = "{% for m in messages[::2] %}{{ bos_token + m.content }}{% endfor %}"
    told = [user("the"), assistant("in"), user("hell")]
    prompt = render(told, with_template(tokenizer, source))
    first, second = (tokenizer.encode(said) for said in ("the", "hell"))
    assert prompt.ids == (*first, *second)


def test_a_base_model_has_no_chat(tokenizer: Tokenizer) -> None:
    assert not tokenizer.has_chat
    with pytest.raises(UnsupportedError, match="base model.*use plain completion"):
        render([user("the")], tokenizer)


def test_turns_need_turn_marks(tokenizer: Tokenizer) -> None:
    other = replace(tokenizer, controls={"<bos>": 2})
    with pytest.raises(UnsupportedError, match="no <start_of_turn>"):
        render_gemma_template([user("the")], other)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ("hello", "no messages"),
        (None, "no messages"),
        (["hello"], "message 0 is not an object"),
        ([{"role": "user"}], "message 0 is not an object"),
        ([{"role": "tool", "content": "x"}], "message 0 has role 'tool': use system"),
        ([{"role": ["user"], "content": "x"}], "message 0 has role"),
        ([assistant("x")], "message 0 has role 'assistant', expected 'user'"),
        ([user("x"), user("y")], "message 1 has role 'user', expected 'assistant'"),
        ([system("s"), assistant("x")], "message 1 has role 'assistant', expected 'user'"),
        ([user("x"), system("s")], "message 1 has role 'system', expected 'assistant'"),
        ([system("s"), system("t"), user("x")], "message 1 has role 'system'"),
        ([system("s")], "add a user message"),
        ([user(None)], "message 0: content is None"),
        ([user(7)], "message 0: content is 7"),
        ([user([])], "message 0: content is"),
        ([user({"type": "text"})], "message 0: content is"),
        ([user(["x"])], "message 0: part 0 is 'x'"),
        ([user([{"type": "text"}])], "message 0: part 0 of type text has no"),
        ([user([{"type": "file", "text": "x"}])], "message 0: part 0 has type 'file'"),
        ([user("x"), assistant("\ud800")], r"message 1: character 0 of the text is U\+D800"),
    ],
)
def test_messages_that_break_the_rules(tokenizer: Tokenizer, messages: Any, reason: str) -> None:
    for way in (render, render_gemma_template):
        with pytest.raises(InputError, match=reason):
            way(messages, with_template(tokenizer))


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image", "image": "cat.png"}, "the picture"),
        ({"type": "image_url", "image_url": {"url": "cat.png"}}, "the picture"),
        ({"type": "input_audio", "input_audio": {"data": "UklGRg=="}}, "the recording"),
    ],
)
def test_media_are_refused_not_dropped(tokenizer: Tokenizer, part: Any, what: str) -> None:
    with pytest.raises(UnsupportedError, match=f"reads text only and cannot take {what}:"):
        render_gemma_template([user([{"type": "text", "text": "x"}, part])], tokenizer)
    with pytest.raises(InputError, match="message 0: a system message takes text alone"):
        render_gemma_template([system([part]), user("x")], tokenizer)
    with pytest.raises(UnsupportedError, match="message 0: part 0 is at http"):
        remote = {"type": "image", "url": "http://x/cat.png"}
        render_gemma_template([user([remote])], tokenizer)


def grown(start: str, step: str) -> str:
    """A template that grows a value at every turn of a loop."""
    loop = "{% for i in range(99) %}{% set n.x = " + step + " %}{% endfor %}"
    return "{% set n = namespace(x=" + start + ") %}" + loop


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "broken at line 1"),
        ("{{ raise_exception('not\n today') }}", "refuses the messages: not today"),
        ("{{ messages[5].content.x }}", "failed"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/hosts' %}", "failed"),
        ("{{ 'x' * 999999999 }}", "limit is"),
        ("{{ [1] * 999999999 }}", "limit is"),
        ("{{ 2 ** 999999999 }}", "limit is"),
        ("{{ '%0999999999d' % 1 }}", "places wide"),
        ("{{ '%0999999999f' % 1.0 }}", "places wide"),
        ("{{ '{:>999999999}'.format(1) }}", "places wide"),
        ("{{ 'x'.ljust(999999999) }}", "limit is"),
        ("{{ 'x' | center(999999999) }}", "limit is"),
        ("{{ [1] | tojson(indent=999999999) }}", "limit is"),
        (grown("'xx'", "n.x ~ n.x"), "limit is"),
        (grown("'xx'", "n.x + n.x"), "limit is"),
        (grown("9", "n.x * n.x"), "limit is"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "limit is"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 10[0-9],[0-9]* steps",
        ),
        ("{" * 2_000_000, "limit is"),
    ],
)
def test_templates_behind_the_fence(tokenizer: Tokenizer, source: str, reason: str) -> None:
    with pytest.raises(GemeloError, match=reason) as caught:
        render([user("x")], with_template(tokenizer, source))
    assert isinstance(caught.value, InputError if "refuses" in reason else FileFormatError)


def test_a_template_may_use_what_templates_use(tokenizer: Tokenizer) -> None:
    source = (
        "{% macro say(x) %}{{ x | trim }}{% endmacro %}"
        "{% for m in messages %}{% if loop.index0 % 2 == 1 %}{% continue %}{% endif %}"
        "{{ say(m.content) ~ (loop.index + 1) }}{{ {'a': '<é>'} | tojson }}{% endfor %}"
        "{{ eos_token }}{{ 'x' * 3 }}{{ 2 ** 3 }}{{ 'ab'.split('b')[0] }}"
    )
    prompt = render([user(" the "), assistant("no"), user("in")], with_template(tokenizer, source))
    expected = tokenizer.encode('the2{"a": "<é>"}in4{"a": "<é>"}', special=False)
    assert prompt.ids == (*expected, 1, *tokenizer.encode("xxx8a", bos=False))


TOOLS = [{"type": "function", "function": {"name": "find", "description": "<end_of_turn>"}}]
CALL = {"id": "1", "type": "function", "function": {"name": "find", "arguments": {"q": "<eos>"}}}
CALLING: list[dict[str, Any]] = [
    user("in the"),
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "name": "find", "content": "hell<end_of_turn>"},
    {"role": "tool", "name": "find", "content": [{"type": "text", "text": "he"}]},
    assistant("the"),
    assistant("in"),
]
WITH_TOOLS = """{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}
{%- for m in messages %}<start_of_turn>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% elif m.content %}{{ m.content[0].text }}{% endif %}
{%- for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<end_of_turn>
{% endfor %}"""


def test_tools_and_what_they_say(tokenizer: Tokenizer) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    ids = render(CALLING, with_template(tokenizer, WITH_TOOLS), tools=TOOLS).ids
    (written,), _ = render_jinja_template(
        [CALLING], tools=TOOLS, chat_template=WITH_TOOLS, bos_token="<bos>"
    )
    assert tokenizer.decode(ids, special=True) == written
    start, end = (tokenizer.controls[f"<{which}_of_turn>"] for which in ("start", "end"))
    marks = [id for id in ids if id in tokenizer.controls.values()]
    assert marks == [2] + [start, end] * len(CALLING)


def test_tools_without_a_place_for_them(tokenizer: Tokenizer) -> None:
    plain, able = with_template(tokenizer), with_template(tokenizer, WITH_TOOLS)
    with pytest.raises(UnsupportedError, match="no place for tools: describe them"):
        render([user("x")], plain, tools=TOOLS)
    for number, has in ((2, "message 1 has tool_calls"), (4, "message 1 has tool_calls")):
        with pytest.raises(InputError, match=f"{has}: use system"):
            render(CALLING[:number], plain)
    assert render([user("x")], plain, tools=[]) == render([user("x")], plain)
    assert render(CALLING, able).ids
    for wrong in ("find", [print], {"name": "find"}, 7):
        with pytest.raises(InputError, match="tools are a list of objects"):
            render([user("x")], able, tools=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="template's input has a set"):
        render([user("x")], able, tools=[{"a": {"b"}}])
    with pytest.raises(InputError, match="not an object with role and content"):
        render([{"role": "assistant", "tool_calls": []}], able)
