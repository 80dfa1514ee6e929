"""The same text has the same ids from every container of a vocabulary, and comes back whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.tokenizer.backends import SentencePieceBackend, TokenizersBackend
from gemelo.inputs.tokenizer.sentencepiece_file import pack_model
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import Vocabulary
from tests.inputs.conftest import SOURCES, as_json, small_vocabulary

FRAGMENTS = [
    "the",
    " the",
    "hell",
    "in",
    " ",
    "  ",
    "       ",
    "\n",
    "\n" * 7,
    "\t",
    "é",
    "日",
    "€",
]
FRAGMENTS += ["🦙", "▁", "\0", "<b>", "</b>", "<bos>", "<mask>", "<end_of_turn>", "<unused0>", "<"]
FRAGMENTS += ["<image_soft_token>", "[multimodal]", "<0x41>", "\r\n", "\u00a0", "\ufffd", "Z"]
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=12).map("".join)

Real = Callable[[str], Tokenizer]


@pytest.mark.parametrize("source", SOURCES)
def test_real_ids_are_the_published_ones(source: str, real: Real, corpus: dict[str, Any]) -> None:
    tokenizer = real(source)
    assert isinstance(tokenizer.backend, SentencePieceBackend)
    wrong = [text for text, ids in corpus["texts"] if tokenizer.encode(text, bos=False) != ids]
    assert wrong == []


@pytest.mark.parametrize("source", SOURCES)
def test_real_ids_come_back_as_text(source: str, real: Real, corpus: dict[str, Any]) -> None:
    tokenizer = real(source)
    for text, ids in corpus["texts"]:
        assert tokenizer.decode(ids, special=True) == text.replace("▁", " ")
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("source", SOURCES)
def test_real_text_without_control_ids(source: str, real: Real, corpus: dict[str, Any]) -> None:
    tokenizer, controls = real(source), set(real(source).controls.values())
    for text, _ in corpus["texts"]:
        ids = tokenizer.encode(text, special=False)
        assert controls.isdisjoint(ids[1:])
        assert ids == real("gguf").encode(text, special=False)
        assert tokenizer.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("source", SOURCES)
def test_real_special_ids(source: str, real: Real) -> None:
    tokenizer = real(source)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 1, 0)
    assert tokenizer.stop_ids == (1, 106)
    assert tokenizer.vocab_size == (262_145 if source == "json" else 262_144)
    assert not tokenizer.has_chat
    assert tokenizer.encode("Hello world!") == [2, 9259, 1902, 236888]
    assert tokenizer.pieces([818, 138, 478, 106]) == ["The", "▁▁", "<0xF0>", "<end_of_turn>"]


def test_a_soft_token_is_never_read_from_text(real: Real) -> None:
    spelt = real("gguf").encode("<image_soft_token>")
    assert len(spelt) > 2
    assert real("json").encode("<image_soft_token>") == spelt
    assert real("json").controls["<image_soft_token>"] == 262_144


def test_real_vocabulary_written_as_gguf_is_what_was_read(
    real: Real, real_metadata: dict[str, Any]
) -> None:
    for source in ("gguf", "model"):
        written = real(source).to_gguf()
        pieces = [piece.encode() for piece in written["tokenizer.ggml.tokens"]]
        assert pieces == list(real_metadata["tokenizer.ggml.tokens"])
        scores = real_metadata["tokenizer.ggml.scores"]
        np.testing.assert_array_equal(written["tokenizer.ggml.scores"], scores)
        for key in ("bos", "eos", "unknown", "padding"):
            name = f"tokenizer.ggml.{key}_token_id"
            assert written[name] == real_metadata[name]
        types = written["tokenizer.ggml.token_type"]
        changed = np.flatnonzero(types != real_metadata["tokenizer.ggml.token_type"])
        # The two image markers are control strings here; the unknown piece may be called so.
        assert set(changed) <= {3, 255_999, 256_000}


def test_real_vocabulary_from_json_merges_alike(real: Real) -> None:
    """Scores rank the same pieces in the same order; only what never merges may differ."""
    ours, theirs = (real(source).to_gguf()["tokenizer.ggml.scores"] for source in ("json", "gguf"))
    np.testing.assert_array_equal(ours[:236_743], theirs[:236_743])
    assert (np.diff(ours[236_742:255_968]) < 0).all()


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, special=st.booleans())
def test_containers_agree(small: dict[str, Tokenizer], text: str, special: bool) -> None:
    expected = small["gguf"].encode(text, bos=False, special=special)
    for source in ("model", "json"):
        assert small[source].encode(text, bos=False, special=special) == expected
    for tokenizer in small.values():
        shown = tokenizer.decode(expected, special=special)
        assert shown == text.replace("▁", " ")


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 329), max_size=30))
def test_a_stream_says_what_decode_says(small: dict[str, Tokenizer], ids: list[int]) -> None:
    for tokenizer in small.values():
        stream = tokenizer.stream()
        said = [stream.push(id) for id in ids]
        assert "".join([*said, stream.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_holds_back_half_characters(small: dict[str, Tokenizer], source: str) -> None:
    tokenizer = small[source]
    llama = [tokenizer.controls["<bos>"], *tokenizer.encode("🦙the", bos=False)]
    stream = tokenizer.stream()
    assert [stream.push(id) for id in llama] == ["", "", "", "", "🦙", "the"]
    assert [stream.push(id) for id in llama[1:3]] == ["", ""]
    assert set(stream.flush()) == {"\ufffd"}


def test_small_json_runs_in_the_library(small: dict[str, Tokenizer]) -> None:
    assert isinstance(small["json"].backend, TokenizersBackend)
    assert small["json"].encode("the the the the") == small["gguf"].encode("the the the the")
    written, expected = (small[source].to_gguf() for source in ("json", "gguf"))
    assert written["tokenizer.ggml.tokens"][:-1] == expected["tokenizer.ggml.tokens"]
    again = Tokenizer.from_gguf(written)
    assert again.encode("hell  in the\n\n<b>") == small["gguf"].encode("hell  in the\n\n<b>")


def test_bos_once_and_empty_text(small: dict[str, Tokenizer]) -> None:
    for tokenizer in small.values():
        assert tokenizer.encode("") == [2]
        assert tokenizer.encode("", bos=False) == []
        assert tokenizer.encode("<bos>in") == tokenizer.encode("in")
        assert tokenizer.encode("<bos>", special=False)[0] == 2
        assert tokenizer.decode([2, 1]) == ""
        assert tokenizer.decode([2, 1], special=True) == "<bos><eos>"


def test_text_that_is_no_text(small: dict[str, Tokenizer]) -> None:
    for tokenizer in small.values():
        with pytest.raises(InputError, match=r"character 2 of the text is U\+DCE9"):
            tokenizer.encode("ab\udce9")
        with pytest.raises(InputError, match="bytes is not text"):
            tokenizer.encode(b"ab")  # type: ignore[arg-type]


def test_ids_that_are_no_ids(small: dict[str, Tokenizer]) -> None:
    for tokenizer in small.values():
        limit = tokenizer.vocab_size
        for wrong in (-1, limit, 2**70):
            for use in (tokenizer.decode, tokenizer.pieces):
                with pytest.raises(InputError, match=f"ids are 0 to {limit - 1}"):
                    use([2, wrong])
            with pytest.raises(InputError, match=f"{wrong} is out of range"):
                tokenizer.stream().push(wrong)
        with pytest.raises(InputError, match="ids are integers"):
            tokenizer.decode(["2"])  # type: ignore[list-item]
        assert tokenizer.decode(np.array([2], np.int32)) == ""


def test_control_strings_match_the_longest(small: dict[str, Tokenizer]) -> None:
    tokenizer = replace(small["gguf"], controls={"<a": 10, "<a>>": 11, "<a>": 12, "b": 13})
    assert list(tokenizer.split("x<<a<a>>>b <a>")) == ["x<", 10, 11, ">", 13, " ", 12]
    assert list(replace(tokenizer, controls={}).split("<a")) == ["<a"]


def test_stop_ids_follow_the_file() -> None:
    keys = small_vocabulary() | {"tokenizer.ggml.eos_token_id": 7}
    assert Tokenizer.from_gguf(keys).eos_id == 7
    assert Tokenizer.from_gguf(keys).stop_ids == (1, 7)
    assert Tokenizer.from_gguf(keys).to_gguf()["tokenizer.ggml.eos_token_id"] == 7
    keys["tokenizer.ggml.eot_token_id"] = 5
    assert Tokenizer.from_gguf(keys).stop_ids == (1, 5, 7)


def test_a_directory_prefers_json_and_reads_what_lies_beside(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_gguf(small_vocabulary())
    (tmp_path / "tokenizer.model").write_bytes(pack_model(vocabulary))
    assert isinstance(Tokenizer.from_file(tmp_path).backend, SentencePieceBackend)
    (tmp_path / "tokenizer.json").write_text(json.dumps(as_json(vocabulary, merges=True)))
    assert isinstance(Tokenizer.from_file(str(tmp_path)).backend, TokenizersBackend)
    templates = [{"name": "other", "template": "x"}, {"name": "default", "template": "one"}]
    config = {"chat_template": templates, "eos_token": {"content": "<end_of_turn>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    read = Tokenizer.from_file(tmp_path)
    assert (read.chat_template, read.eos_id, read.bos_id) == ("one", 7, 2)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "two"}))
    assert Tokenizer.from_file(tmp_path).chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert Tokenizer.from_file(tmp_path / "tokenizer.model").chat_template == "three"
    assert Tokenizer.from_file(tmp_path).to_gguf()["tokenizer.chat_template"] == "three"


def foreign(kind: str) -> Any:
    """Small tokenizers of other families, built by the library."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers

    if kind == "words":
        words = Library(models.WordLevel({"<unk>": 0, "the": 1, "cat": 2, ".": 3}, "<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.add_special_tokens(["<s>", "<unk>"])
        return words
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: id for id, piece in enumerate([*alphabet, "th", "the"])}
    library = Library(models.BPE(vocab, [("t", "h"), ("th", "e")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>"])
    return library


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_other_families_run_in_the_library(kind: str, tmp_path: Path) -> None:
    library = foreign(kind)
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    ours = Tokenizer.from_file(tmp_path)
    start = library.token_to_id("<s>")
    assert ours.bos_id == start and ours.eos_id is None and ours.stop_ids == ()
    for text in ("the cat . the", "the", "") + (("é 日🦙 ",) if kind == "bytes" else ()):
        ids = library.encode(text).ids
        assert ours.encode(text) == [start, *ids]
        assert ours.decode(ids) == library.decode(ids)
        stream = ours.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == library.decode(ids)
    assert start not in ours.encode("<s>", bos=False, special=False)
    with pytest.raises(UnsupportedError, match="not SentencePiece"):
        ours.to_gguf()
