"""Rendering an untrusted Jinja chat template, run where it can do no harm.

Such a template is a program in the Jinja language by whoever made the file. Jinja reads it; an
interpreter of our own runs it, which counts every step and every byte before they are spent,
reaches no file, no network and nothing of Python's insides, and knows of each character it writes
whether the template wrote it or somebody who talks.

    text = render_template(source, messages, {"bos_token": "<bos>"}, add_generation_prompt=True)
    list(spans(text))       # [("<bos><start_of_turn>user\\n", True), ("Hello", False), ...]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemelo.errors import FileFormatError, InputError
from gemelo.inputs.templates.budget import Budget, Fault
from gemelo.inputs.templates.globals import Refusal, global_names
from gemelo.inputs.templates.scope import Scope
from gemelo.inputs.templates.statements import Statements
from gemelo.inputs.templates.syntax import parse
from gemelo.inputs.templates.text import own
from gemelo.inputs.templates.values import received

MAX_REASON = 2000  # characters of what a template says, before it is made one line


def render_template(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """What `source` makes of `messages`, with whose each character is.

    tokens: the template's own words, such as bos_token; variables: what else people give, such as
    tools. A `Text` in messages keeps its marks; any other str is people's. Raises FileFormatError
    for a template that is broken or takes too much, InputError for messages that the template
    itself refuses.
    """
    given = {"messages": list(messages), "tools": None, "documents": None, **(variables or {})}
    people, num_values, num_chars = received(given)
    budget = Budget(num_values, num_chars)
    tree = parse(source)
    words = {name: own(token) for name, token in tokens.items()}
    names = {**global_names(budget), **people, **words}
    names["add_generation_prompt"] = add_generation_prompt
    statements = Statements(budget)
    try:
        text = statements.write(tree.body, Scope(names))
        budget.written(len(text))
        return text
    except Refusal as error:
        reason = " ".join(str(error)[:MAX_REASON].split())
        raise InputError(f"the chat template refuses the messages: {reason}") from None
    except Fault as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deeply"
    except Exception as error:  # whatever the operators and methods in a template run into
        reason = f"{type(error).__name__}: {error}"
    raise FileFormatError(f"the chat template failed at line {statements.line}: {reason}")
