"""The tokenizer by transformers' names says what it says by its own, and what transformers says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gemelo.checkpoints.tokenizers import read_tokenizer
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.prompt.chat import render
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from tests.conftest import tiny_vocabulary
from tests.multimodal import TEMPLATE

MESSAGES = [
    {"role": "user", "content": "the <end_of_turn> capital"},
    {"role": "assistant", "content": "of"},
    {"role": "user", "content": "in"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizer:
    return PreTrainedTokenizer.from_gguf(tiny_vocabulary())


@pytest.fixture(scope="module")
def chatty(tokenizer: PreTrainedTokenizer) -> PreTrainedTokenizer:
    return dataclasses.replace(tokenizer, chat_template=TEMPLATE)


def test_special_ids_and_their_texts(tokenizer: PreTrainedTokenizer) -> None:
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (2, 1, 0) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<bos>",
        "<eos>",
        "<pad>",
    )
    none = dataclasses.replace(tokenizer, eos_id=None)
    assert none.eos_token_id is None and none.eos_token is None
    assert len(tokenizer) == tokenizer.vocab_size == 512


def test_calling_encodes(tokenizer: PreTrainedTokenizer) -> None:
    ids = tokenizer.encode("the capital")
    assert tokenizer("the capital") == {"input_ids": ids} and ids[0] == 2
    assert tokenizer(["the capital", "of"])["input_ids"] == [ids, tokenizer.encode("of")]
    assert tokenizer.encode("the capital", add_special_tokens=False) == ids[1:]
    assert tokenizer.encode("the capital", bos=False) == ids[1:]
    for other in (5, None, b"the", {"text": "the"}):
        with pytest.raises(InputError, match="is not text"):
            tokenizer(other)  # type: ignore[call-overload]


def test_calling_as_others_do(tokenizer: PreTrainedTokenizer) -> None:
    ids = tokenizer.encode("the capital")
    assert tokenizer("the capital", add_special_tokens=False)["input_ids"] == ids[1:]
    assert tokenizer("the capital").input_ids == ids  # type: ignore[attr-defined]
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == 512 and vocabulary["<bos>"] == 2
    assert [vocabulary[piece] for piece in tokenizer.pieces(ids)] == ids


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        ({"return_tensors": "pt"}, r"ids are plain lists, .* numpy.array\(\[ids\]\)"),
        ({"padding": True}, "nothing is padded: of several texts each has ids of its own length"),
        ({"truncation": True, "max_length": 8}, "nothing is cut off"),
    ],
)
def test_what_a_tokenizer_gives_is_plain_lists(
    chatty: PreTrainedTokenizer, setting: dict[str, Any], cure: str
) -> None:
    for ask in (chatty, chatty.encode):
        with pytest.raises(InputError, match=cure):
            ask("the capital", **setting)
    with pytest.raises(InputError, match=cure):
        chatty.apply_chat_template(MESSAGES, **setting)
    with pytest.raises(InputError, match="no setting return_dict: the ids alone are given"):
        chatty.apply_chat_template(MESSAGES, return_dict=True)  # type: ignore[call-overload]


def test_decoding(tokenizer: PreTrainedTokenizer) -> None:
    ids = tokenizer.encode("the capital")
    assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == "the capital"
    shown = tokenizer.decode(ids, skip_special_tokens=False)
    assert shown == tokenizer.decode(ids, special=True) == "<bos>the capital"
    assert tokenizer.batch_decode([ids, ids[1:]]) == ["the capital"] * 2
    assert tokenizer.batch_decode([ids], skip_special_tokens=False) == ["<bos>the capital"]


def test_pieces_there_and_back(tokenizer: PreTrainedTokenizer) -> None:
    ids = tokenizer.encode("the capital", bos=False)
    pieces = tokenizer.tokenize("the capital")
    assert tokenizer.convert_ids_to_tokens(ids) == pieces == tokenizer.pieces(ids)
    assert tokenizer.convert_ids_to_tokens(106) == "<end_of_turn>"
    assert tokenizer.convert_tokens_to_ids(pieces) == ids
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") == 106
    with pytest.raises(InputError, match="'no such' is no piece of the vocabulary"):
        tokenizer.convert_tokens_to_ids(["▁the", "no such"])


def test_a_chat_template_as_ids_and_as_text(chatty: PreTrainedTokenizer) -> None:
    ids = chatty.apply_chat_template(MESSAGES)
    assert ids == [*render(MESSAGES, chatty).ids] and ids.count(106) == 3
    told = PreTrainedTokenizerFast(
        tokenizer_object=empty_tokenizer(), chat_template=TEMPLATE, bos_token="<bos>"
    )
    for wanted in (True, False):
        text = chatty.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=wanted)
        assert text == told.apply_chat_template(
            MESSAGES, tokenize=False, add_generation_prompt=wanted
        )


def empty_tokenizer() -> object:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    return Tokenizer(BPE())


def test_what_a_chat_template_refuses(
    tokenizer: PreTrainedTokenizer, chatty: PreTrainedTokenizer
) -> None:
    with pytest.raises(UnsupportedError, match="a base model, without a chat template"):
        tokenizer.apply_chat_template(MESSAGES)
    with pytest.raises(UnsupportedError, match="no place for tools"):
        chatty.apply_chat_template(MESSAGES, tools=[{"type": "function"}])
    with pytest.raises(InputError):
        chatty.apply_chat_template({"role": "user", "content": "the"})  # type: ignore[call-overload]


def test_every_file_gives_one(tiny_checkpoint: Path, tiny_directory: Path) -> None:
    for path in (tiny_checkpoint, tiny_directory):
        assert read_tokenizer(path).eos_token_id == 1
