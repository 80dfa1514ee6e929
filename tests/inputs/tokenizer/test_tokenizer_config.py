"""What the files say of how a vocabulary is used is done, or is told: none of it is passed over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemelo.errors import FileFormatError, GemeloError, UnsupportedError
from gemelo.inputs.prompt import chat
from gemelo.inputs.tokenizer.pipeline import Pipeline
from gemelo.inputs.tokenizer.sentencepiece_file import pack_model
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import USER_DEFINED, Vocabulary
from tests.inputs.conftest import as_json, small_vocabulary

HELL = small_vocabulary()["tokenizer.ggml.tokens"].index("hell")


def of_gguf(**keys: Any) -> Tokenizer:
    named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return Tokenizer.from_gguf(small_vocabulary() | named)


def in_folder(folder: Path, config: Any = None, **files: Any) -> Tokenizer:
    vocabulary = Vocabulary.from_gguf(small_vocabulary())
    (folder / "tokenizer.model").write_bytes(pack_model(vocabulary))
    for name, content in (files | {"tokenizer_config": config or {}}).items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return Tokenizer.from_file(folder)


@pytest.mark.parametrize("number", [bool, np.bool_])
def test_gguf_says_what_is_put_around_a_text(number: type) -> None:
    plain = of_gguf().encode("hell", bos=False)
    assert of_gguf(add_bos_token=number(False)).encode("hell") == plain
    assert of_gguf(add_bos_token=number(True)).encode("hell") == [2, *plain]
    both = of_gguf(add_eos_token=number(True))
    assert both.encode("hell") == [2, *plain, 1]
    assert both.encode("<bos>hell") == [2, *plain, 1]
    assert both.encode("hell", bos=False) == plain
    assert "after every text" in both.notices[0]
    assert of_gguf(bos_token_id=4).encode("hell") == [4, *plain]


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_conversation_begins_as_the_file_says(add_bos: bool) -> None:
    tokenizer = of_gguf(add_bos_token=add_bos, add_eos_token=True)
    for source, begins in (("{{ bos_token }}hell", True), ("hell", add_bos)):
        ready = replace(tokenizer, chat_template=source + "{{ messages[0].content[:0] }}")
        ids = chat.render([{"role": "user", "content": "in"}], ready).ids
        assert list(ids) == [2] * begins + [HELL]


def test_what_is_put_around_a_text_is_written_again() -> None:
    written = of_gguf(add_bos_token=False, add_eos_token=True, eom_token_id=HELL).to_gguf()
    again = Tokenizer.from_gguf(written)
    assert again.encode("in") == [*again.encode("in", bos=False), 1]
    assert again.stop_ids == (1, 7, HELL)


@pytest.mark.parametrize("key", ["eos_token_id", "eot_token_id", "eom_token_id"])
def test_a_normal_piece_can_end_an_answer(key: str) -> None:
    tokenizer = of_gguf(**{key: HELL})
    assert HELL in tokenizer.stop_ids and 7 in tokenizer.stop_ids
    assert tokenizer.decode([HELL]) == "hell"  # and is a word elsewhere


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"add_bos_token": 1}, "add_bos_token is 1: expected a boolean"),
        ({"add_eos_token": "no"}, "add_eos_token is 'no'"),
        ({"add_space_prefix": True}, "add_space_prefix is True.*set it to false"),
        ({"add_space_prefix": 3}, "add_space_prefix is 3"),
        ({"eot_token_id": np.arange(3000)}, "eot_token_id is of type ndarray: not a token id"),
        ({"bos_token_id": [1, 2]}, "bos_token_id is of type list"),
        ({"eom_token_id": 336}, "eom_token_id is 336: not one of the 336 pieces"),
    ],
)
def test_settings_of_the_wrong_kind(keys: dict[str, Any], reason: str) -> None:
    with pytest.raises(GemeloError, match=reason) as caught:
        of_gguf(**keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("add_bos", [True, False, None])
@pytest.mark.parametrize("add_eos", [True, False, None])
def test_a_config_says_what_is_put_around_a_text(
    add_bos: bool | None, add_eos: bool | None, tmp_path: Path
) -> None:
    said = {"add_bos_token": add_bos, "add_eos_token": add_eos}
    tokenizer = in_folder(tmp_path, said | {"eos_token": "<end_of_turn>"})
    expected = [2] * (add_bos is not False) + [HELL] + [7] * (add_eos is True)
    assert tokenizer.encode("hell") == expected


def test_a_config_may_end_a_text_with_a_word(tmp_path: Path) -> None:
    tokenizer = in_folder(tmp_path, {"eos_token": {"content": "hell"}, "pad_token": "nowhere"})
    assert tokenizer.eos_id == HELL and HELL in tokenizer.stop_ids
    assert tokenizer.notices == ("tokenizer_config.json names 'nowhere', which is no piece",)


@pytest.mark.parametrize(
    ("said", "stops"), [(None, (1, 7)), (9, (1, 7, 9)), ([1, 106, 9], (1, 7, 9, 106)), ([], (1, 7))]
)
def test_generation_config_lists_what_ends_an_answer(
    said: Any, stops: tuple[int, ...], tmp_path: Path
) -> None:
    assert in_folder(tmp_path, generation_config={"eos_token_id": said}).stop_ids == stops


def test_an_end_that_no_piece_is_has_a_notice(tmp_path: Path) -> None:
    read = in_folder(tmp_path, generation_config={"eos_token_id": [9, 336]})
    assert read.stop_ids == (1, 7, 9)
    assert "id 336, which is none of the 336" in read.notices[-1]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("generation_config", {"eos_token_id": "1"}, "eos_token_id is '1'"),
        ("generation_config", {"eos_token_id": [True]}, r"eos_token_id is \[True\]"),
        ("generation_config", [], "expected a JSON object"),
        ("tokenizer_config", {"add_bos_token": "yes"}, "add_bos_token is 'yes'"),
        ("tokenizer_config", {"bos_token": 2}, "bos_token is 2"),
        ("tokenizer_config", {"additional_special_tokens": 3}, "additional_special_tokens is no"),
        ("tokenizer_config", {"added_tokens_decoder": []}, "added_tokens_decoder is no object"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "y"}}}, "has id 'x'"),
        ("tokenizer_config", {"added_tokens_decoder": {"9": "y"}}, "'y' is no added token"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"99999": {"content": "y"}}},
            "id 99999 behind 336 pieces",
        ),
    ],
)
def test_files_beside_of_the_wrong_kind(
    name: str, content: Any, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(FileFormatError, match=reason):
        in_folder(tmp_path, **{"config" if name == "tokenizer_config" else name: content})


def test_what_has_no_effect_is_told(tmp_path: Path) -> None:
    config = {
        "clean_up_tokenization_spaces": True,
        "sp_model_kwargs": {"enable_sampling": True},
        "add_prefix_space": False,
        "tokenizer_class": "LlamaTokenizer",
        "model_max_length": 5,
    }
    told = in_folder(tmp_path, config).notices
    assert [notice.split()[1] for notice in told] == [
        "clean_up_tokenization_spaces",
        "sp_model_kwargs",
        "tokenizer_class",
    ]
    for name in ("GemmaTokenizer", "GemmaTokenizerFast", "PreTrainedTokenizerFast", None):
        assert in_folder(tmp_path, {"tokenizer_class": name}).notices == ()


def test_a_mark_and_line_ends_of_windows_in_files_that_people_edit(tmp_path: Path) -> None:
    folder = tmp_path
    document = as_json(Vocabulary.from_gguf(small_vocabulary()), merges=True)
    text = json.dumps(document, indent=1).replace("\n", "\r\n")
    (folder / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    config = '{"chat_template": "x",\r\n"eos_token": "<end_of_turn>"}'
    (folder / "tokenizer_config.json").write_bytes(b"\xef\xbb\xbf" + config.encode())
    tokenizer = Tokenizer.from_file(folder)
    assert (tokenizer.eos_id, tokenizer.chat_template) == (7, "x")
    (folder / "chat_template.jinja").write_bytes(b"\xef\xbb\xbf{{ bos_token }}")
    assert Tokenizer.from_file(folder).chat_template == "{{ bos_token }}"


# ---- the steps of a tokenizer.json -----------------------------------------------------------

BOS = {"SpecialToken": {"id": "<bos>", "type_id": 0}}
EOS = {"SpecialToken": {"id": "<eos>", "type_id": 0}}
WHOLE = {"Sequence": {"id": "A", "type_id": 0}}


def template(*single: Any) -> dict[str, Any]:
    special = {
        name: {"id": name, "ids": [id], "tokens": [name]}
        for name, id in {"<bos>": 2, "<eos>": 1}.items()
    }
    return {"type": "TemplateProcessing", "single": list(single), "special_tokens": special}


@pytest.mark.parametrize(
    ("single", "around"),
    [([WHOLE], ((), ())), ([BOS, WHOLE], ((2,), ())), ([BOS, BOS, WHOLE, EOS], ((2, 2), (1,)))],
)
def test_a_template_says_what_is_put_around_a_text(
    single: list[Any], around: tuple[Any, Any], tmp_path: Path
) -> None:
    document = as_json(Vocabulary.from_gguf(small_vocabulary()), merges=True)
    document["post_processor"] = template(*single)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    before, after = around
    assert Tokenizer.from_file(tmp_path).encode("hell") == [*before, HELL, *after]
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true}')
    assert Tokenizer.from_file(tmp_path).encode("hell") == [2, HELL, *after]


@pytest.mark.parametrize(
    "single", [[], [BOS], [WHOLE, WHOLE], [BOS, 7], [{"SpecialToken": {"id": "no"}}, WHOLE], None]
)
def test_a_template_that_is_none(single: Any) -> None:
    broken = template() | {"single": single}
    with pytest.raises(FileFormatError, match="post_processor"):
        Pipeline.parse({"post_processor": broken})


REPLACE = {"type": "Replace", "pattern": {"String": "c"}, "content": "th"}
RUN = [
    {"normalizer": {"type": "Sequence", "normalizers": [REPLACE, {"type": "NFC"}]}},
    {"normalizer": {"type": "Prepend", "prepend": "▁"}},
    {"normalizer": {"type": "Lowercase"}},
    {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}},
    {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}},
    {"pre_tokenizer": {"type": "Digits", "individual_digits": True}},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"decoder": {"type": "Strip", "content": "h", "start": 1, "stop": 0}},
    {"decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
    {"decoder": None},
    {"post_processor": None},
]


@pytest.mark.parametrize("members", RUN)
def test_known_steps_run_as_in_the_library(members: dict[str, Any], tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library

    document = as_json(Vocabulary.from_gguf(small_vocabulary()), merges=True) | members
    document["truncation"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    ours, library = Tokenizer.from_file(tmp_path), Library.from_str(json.dumps(document))
    for text in ("the cat", "Hell in 10", " acid e\u0301"):
        ids = library.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False) == ids
        assert ours.decode(ids) == library.decode(ids)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"normalizer": {"type": "BertNormalizer"}}, "'BertNormalizer' is not run; run are Repl"),
        ({"normalizer": 7}, "normalizer: 7 is no step"),
        ({"normalizer": REPLACE | {"speed": 1}}, "Replace with 'speed' = 1 is not run"),
        ({"normalizer": {"type": "Replace", "content": "x"}}, "Replace has no 'pattern'"),
        ({"normalizer": {"type": "Sequence", "normalizers": 3}}, "is no list of normalizers"),
        ({"normalizer": REPLACE | {"content": "x" * 9}}, "up to 9 times as long"),
        ({"decoder": {"type": "WordPiece", "prefix": "##"}}, "decoder: 'WordPiece' is not run"),
        ({"pre_tokenizer": {"type": "Metaspace", "replacement": "ab"}}, "'replacement' = 'ab'"),
    ],
)
def test_other_steps_are_refused_by_name(members: dict[str, Any], reason: str) -> None:
    with pytest.raises((UnsupportedError, FileFormatError), match=reason):
        Pipeline.parse(members)


MARKS = ("[turn]", "<|im_start|>", "<|im_end|>", "[/turn]")
IN_MARKS = (
    "{{ bos_token }}{% for m in messages %}[turn]<|im_start|>{{ m.content }}<|im_end|>[/turn]"
)


def marked(kind: int) -> dict[str, Any]:
    """The small vocabulary with marks of turns as pieces of that kind; the last ends an answer."""
    keys = small_vocabulary()
    count = len(keys["tokenizer.ggml.tokens"])
    keys["tokenizer.ggml.tokens"] += MARKS
    for key, value in (("scores", 0), ("token_type", kind)):
        held = keys[f"tokenizer.ggml.{key}"]
        keys[f"tokenizer.ggml.{key}"] = np.append(held, np.full(len(MARKS), value, held.dtype))
    return keys | {
        "tokenizer.ggml.eos_token_id": count + len(MARKS) - 1,
        "tokenizer.ggml.bos_token_id": count,
        "tokenizer.chat_template": IN_MARKS + "{% endfor %}",
    }


@pytest.mark.parametrize("source", ["gguf", "json"])
def test_nobody_says_what_begins_or_ends_an_answer(source: str, tmp_path: Path) -> None:
    """Whatever kind of piece the file makes of it: its role and its name count."""
    keys = marked(USER_DEFINED)
    first = len(keys["tokenizer.ggml.tokens"]) - len(MARKS)
    if source == "json":
        written = as_json(Vocabulary.from_gguf(keys), merges=True)
        for entry in written["added_tokens"]:
            entry["special"] = entry["special"] and entry["content"] not in MARKS
        config = {"bos_token": MARKS[0], "eos_token": MARKS[-1]}
        config["chat_template"] = keys["tokenizer.chat_template"]
        (tmp_path / "tokenizer.json").write_text(json.dumps(written))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = Tokenizer.from_file(tmp_path)
    else:
        tokenizer = Tokenizer.from_gguf(keys)
    assert tokenizer.eos_id == first + 3 and first + 3 in tokenizer.stop_ids
    said = "".join(MARKS) + "hell"
    ids = chat.render([{"role": "user", "content": said}], tokenizer).ids
    assert [id for id in ids if id >= first] == [first, first + 1, first + 2, first + 3]
    assert tokenizer.decode(ids, special=True) == "[turn]<|im_start|>" + said + "<|im_end|>[/turn]"
    assert tokenizer.encode(said, bos=False)[: len(MARKS)] == [*range(first, first + len(MARKS))]
