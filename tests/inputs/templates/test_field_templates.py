"""Templates in the manner of the field give transformers' ids, and nobody talks a control id into
being."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from gemelo.config import Modalities
from gemelo.inputs.prompt.placeholders import fill_placeholders, tokenize
from gemelo.inputs.templates.rendering import render_template
from gemelo.inputs.templates.text import own
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from tests.inputs.conftest import as_json, small_vocabulary
from tests.inputs.templates.field_templates import CONTROLS, FIELD, Messages

ROLES = ("system", "user", "assistant", "tool")
# Ways to write a control string, each of which some template might put together.
ATTEMPTS = [
    "{}",
    " {}\n",
    "</think>{}",
    "<think>{}</think>{}",
    "{}\n{}",
    "in{}the{}",
    "{}{}",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The small vocabulary with the control strings of many families."""
    metadata = small_vocabulary()
    # Without the runs of spaces: the library of the reference would not find them in this form.
    pieces = [p if p.strip(" ") else f"<run{len(p)}>" for p in metadata["tokenizer.ggml.tokens"]]
    metadata["tokenizer.ggml.tokens"] = pieces + CONTROLS
    scores, types = metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.token_type"]
    more = len(CONTROLS)
    metadata["tokenizer.ggml.scores"] = np.append(scores, np.zeros(more, np.float32))
    metadata["tokenizer.ggml.token_type"] = np.append(types, np.full(more, 3, np.int32))
    return Tokenizer.from_gguf(metadata)


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    written = as_json(tokenizer.backend.vocabulary, merges=True) | {"truncation": None}
    return PreTrainedTokenizerFast(
        tokenizer_object=Library.from_str(json.dumps(written)), bos_token="<bos>", eos_token="<eos>"
    )


def text_of(
    source: str, messages: Messages, tools: Any, variables: Mapping[str, Any], generation: bool
) -> str:
    """Our text; the roles are the program's own words, as they are in a chat."""
    known = [{**m, "role": own(m["role"]) if m["role"] in ROLES else m["role"]} for m in messages]
    return render_template(
        source,
        known,
        {"bos_token": "<bos>", "eos_token": "<eos>"},
        add_generation_prompt=generation,
        variables={"tools": tools, **variables},
    )


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenize(
        fill_placeholders(text, [], [], Modalities(), tokenizer), Modalities(), tokenizer, bos=False
    )


def with_texts(value: Any, change: Any, key: str = "") -> Any:
    """Every text that people can choose, changed."""
    if isinstance(value, str):
        return value if key in ("role", "type") else change(value)
    if isinstance(value, list):
        return [with_texts(item, change, key) for item in value]
    if isinstance(value, dict):
        return {k: with_texts(item, change, k) for k, item in value.items()}
    return value


@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize("name", FIELD)
def test_ids_are_those_of_transformers(
    name: str, generation: bool, tokenizer: Tokenizer, theirs: PreTrainedTokenizerFast
) -> None:
    source, messages, tools, variables = FIELD[name]
    given = {"tools": tools, "add_generation_prompt": generation, **variables}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, **given)
        ids = theirs.encode(text, add_special_tokens=False)
    ours = text_of(source, messages, tools, variables, generation)
    assert str.__str__(ours) == text
    assert ids_of(ours, tokenizer) == ids
    assert len(text) > 20 and set(ids) & set(tokenizer.controls.values())


@pytest.mark.parametrize("name", FIELD)
def test_nobody_breaks_out(
    name: str, tokenizer: Tokenizer, theirs: PreTrainedTokenizerFast
) -> None:
    """What people write is there to the letter, and the control ids are the template's alone."""
    source, messages, tools, variables = FIELD[name]
    marks = ["<end_of_turn>", "<start_of_turn>", "<bos>", *CONTROLS[:3], "[/INST]", "<|user|>"]
    for index, attempt in enumerate(ATTEMPTS):
        mark = marks[index % len(marks)]
        hostile = [attempt.format(mark, "[INST]"), attempt.format(f"{mark[0]}.{mark[1:]}", "I")]
        said = [with_texts(messages, lambda text, h=h: h + text + h) for h in hostile]
        tooled = [with_texts(tools, lambda text, h=h: h if " " in text else text) for h in hostile]
        texts = [text_of(source, *pair, variables, True) for pair in zip(said, tooled, strict=True)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = theirs.apply_chat_template(
                said[0],
                chat_template=source,
                tokenize=False,
                tools=tooled[0],
                add_generation_prompt=True,
                **variables,
            )
        assert str.__str__(texts[0]) == expected
        ids, harmless = (ids_of(text, tokenizer) for text in texts)
        controls = set(tokenizer.controls.values())
        assert [id for id in ids if id in controls] == [id for id in harmless if id in controls]
        assert tokenizer.decode(ids, special=True) == expected
