"""Added strings are found as the `tokenizers` library finds them, flags and corners included."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Library

from gemelo.errors import UnsupportedError
from gemelo.inputs.tokenizer.added_tokens import AddedToken, Finder, Match
from gemelo.inputs.tokenizer.backends import SentencePieceBackend, TokenizersBackend
from gemelo.inputs.tokenizer.sentencepiece_file import pack_model
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import Vocabulary
from tests.inputs.conftest import as_json, small_vocabulary

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
CONTENTS = ["the", "he", "ell", "<tool>", "<tool", "in the", " in", "l ", "\n", "H", "é", "<b>"]
CONTENTS += ["日本", "zz", "<end_of_turn>", "tag>\n"]
AROUND = [
    " ",
    "  ",
    "\n",
    "\t",
    "_",
    "3",
    "²",
    "é",
    "e\u0301",
    "日",
    "Ⓐ",
    "\u00a0",
    "\x1f",
    ".",
    "",
]
AROUND += ["hello", "in", "the cat", "<bos>", "<", "a", "-", "\u200d", "🦙"]


def plain_vocabulary() -> dict[str, Any]:
    """The small vocabulary without the pieces that its two libraries find differently."""
    keys = small_vocabulary()
    runs = range(8, keys["tokenizer.ggml.tokens"].index("<0x00>"))
    keep = [id for id in range(len(keys["tokenizer.ggml.tokens"])) if id not in runs]
    for key in ("scores", "token_type"):
        keys[f"tokenizer.ggml.{key}"] = keys[f"tokenizer.ggml.{key}"][keep]
    keys["tokenizer.ggml.tokens"] = [keys["tokenizer.ggml.tokens"][id] for id in keep]
    return keys


def random_strings(rng: random.Random, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Some strings with random flags: new ones behind the last piece, known ones where they are."""
    entries = []
    behind = len(vocabulary)
    for content in rng.sample(CONTENTS, 5):
        entry: dict[str, Any] = {name: rng.random() < 0.35 for name in FLAGS}
        entry["normalized"] &= not entry["special"]
        if not content.strip():  # the library itself fails where two such meet
            entry["lstrip"] = False
        id = vocabulary.find(content) if " " not in content else None
        behind += id is None
        entries.append(entry | {"content": content, "id": behind - 1 if id is None else id})
    return entries


def random_text(rng: random.Random, entries: list[dict[str, Any]]) -> str:
    parts = AROUND + [entry["content"] for entry in entries] * 3
    return "".join(rng.choices(parts, k=rng.randint(1, 9)))


def written(entries: list[dict[str, Any]], folder: Path, kind: str) -> tuple[Tokenizer, Library]:
    """Strings beside the plain vocabulary: ours of a container, and the library with the same."""
    vocabulary = Vocabulary.from_gguf(plain_vocabulary())
    document = as_json(vocabulary, merges=True)
    contents = {entry["content"] for entry in entries}
    kept = [old for old in document["added_tokens"] if old["content"] not in contents]
    document["added_tokens"] = sorted(kept + entries, key=lambda entry: entry["id"])
    document["truncation"] = None
    folder.mkdir()
    if kind == "json":
        (folder / "tokenizer.json").write_text(json.dumps(document))
    else:
        (folder / "tokenizer.model").write_bytes(pack_model(vocabulary))
        listed = {str(entry["id"]): entry for entry in document["added_tokens"]}
        config = {"added_tokens_decoder": listed}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.from_file(folder), Library.from_str(json.dumps(document))


@pytest.mark.parametrize("kind", ["json", "model"])
def test_random_flags_give_the_ids_of_the_library(kind: str, tmp_path: Path) -> None:
    rng = random.Random(17)
    for number in range(60):
        entries = random_strings(rng, Vocabulary.from_gguf(plain_vocabulary()))
        ours, library = written(entries, tmp_path / str(number), kind)
        expected = TokenizersBackend if kind == "json" else SentencePieceBackend
        assert isinstance(ours.backend, expected)
        for _ in range(60):
            text = random_text(rng, entries)
            ids = library.encode(text, add_special_tokens=False).ids
            got = ours.encode(text, bos=False)
            assert got == ids, (entries, text)
            spelt = ours.encode(text, bos=False, special=False)
            words = {entry["id"] for entry in entries}  # a special word is still a word
            assert (set(ours.controls.values()) - words).isdisjoint(spelt)


@pytest.mark.parametrize(
    ("flags", "text", "match"),
    [
        ({}, "concatenate", [(3, 6)]),
        ({"single_word": True}, "concatenate cat", [(12, 15)]),
        ({"single_word": True}, "cat_ cat- (cat)3 cat\u0301 ²cat", [(5, 8), (11, 14), (23, 26)]),
        ({"lstrip": True}, "a \t\u3000cat", [(1, 7)]),
        ({"lstrip": True}, "a\x1fcat", [(2, 5)]),  # a separator is no white space
        ({"rstrip": True}, "cat \n cat", [(0, 6), (6, 9)]),
        ({"lstrip": True, "rstrip": True}, "cat  cat", [(0, 5), (5, 8)]),
    ],
)
def test_flags(flags: dict[str, bool], text: str, match: list[tuple[int, int]]) -> None:
    finder = Finder([AddedToken("cat", 7, **flags)])
    assert list(finder.matches(text)) == [Match(7, *places) for places in match]


def test_the_longest_is_found_and_one_that_is_rejected_is_used_up() -> None:
    strings = [AddedToken("ab", 1), AddedToken("abc", 2, single_word=True), AddedToken("c", 3)]
    assert [m.id for m in Finder(strings).matches("abc ab abcd")] == [2, 1]
    assert [m.id for m in Finder(strings).matches("abc", skipped={2})] == []


def test_too_many_lengths_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="300 lengths of added tokens begin with 'a'"):
        Finder(AddedToken("a" * length, length) for length in range(1, 301))


def test_flags_cannot_be_held_by_other_containers(tmp_path: Path) -> None:
    entry = dict.fromkeys(FLAGS, False) | {"content": "zz", "id": 400, "rstrip": True}
    entry["id"] = len(Vocabulary.from_gguf(plain_vocabulary()))
    ours, _ = written([entry], tmp_path / "flags", "model")
    for write in (ours.to_gguf, ours.to_sentencepiece):
        with pytest.raises(UnsupportedError, match=r"'zz' \(rstrip\).*keeps tokenizer.json"):
            write()
    plain, _ = written([entry | {"rstrip": False}], tmp_path / "plain", "model")
    again = Tokenizer.from_gguf(plain.to_gguf())
    for text in ("hezzll zz", "zzz"):
        assert again.encode(text) == plain.encode(text)


def test_a_template_is_cut_where_its_control_strings_take_spaces(tmp_path: Path) -> None:
    entry = dict.fromkeys(FLAGS, False) | {"content": "<end_of_turn>", "id": 7, "special": True}
    ours, library = written([entry | {"rstrip": True}], tmp_path / "flags", "model")
    assert list(ours.split("in<end_of_turn> \n the")) == ["in", 7, "the"]
    text = "in<end_of_turn> \n the"
    assert ours.encode(text, bos=False) == library.encode(text, add_special_tokens=False).ids


def test_settings_beside_a_model_add_strings(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_gguf(plain_vocabulary())
    behind = len(vocabulary)
    (tmp_path / "tokenizer.model").write_bytes(pack_model(vocabulary))
    names = {"<image_soft_token>": behind, "<tool>": behind + 1, "<unused0>": 5}
    (tmp_path / "added_tokens.json").write_text(json.dumps(names))
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<tool>"}')
    ours = Tokenizer.from_file(tmp_path)
    assert ours.vocab_size == behind + 2 and ours.pad_id == behind + 1
    assert ours.encode("a<tool>b", bos=False) == [
        *ours.encode("a", bos=False),
        behind + 1,
        *ours.encode("b", bos=False),
    ]
    assert behind not in ours.encode("<image_soft_token>")
    assert ours.decode([behind + 1], special=True) == "<tool>"
    np.testing.assert_array_equal(ours.backend.vocabulary.scores[:behind], vocabulary.scores)
