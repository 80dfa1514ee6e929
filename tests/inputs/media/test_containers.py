"""Vocabularies in and out of their files: what others wrote is read, what is broken is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.checkpoints.tokenizers import read_tokenizer
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.inputs.tokenizer.backends import SentencePieceBackend
from gemelo.inputs.tokenizer.sentencepiece_file import pack_model, unpack_model
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import Vocabulary
from tests.inputs.conftest import as_json, small_vocabulary


def trained_by_sentencepiece() -> bytes:
    import sentencepiece

    written = io.BytesIO()
    lines = ["the cat in the hat  and the bat", "hello there, hello\tworld <b>x</b>", "日本 ñandú"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 5),
        model_writer=written,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["▁▁", "<b>", "\n"],
        control_symbols=["<start_of_turn>"],
        bos_piece="<bos>",
        eos_piece="<eos>",
        minloglevel=3,
    )
    return written.getvalue()


def test_a_model_by_sentencepiece_itself(tmp_path: Path) -> None:
    import sentencepiece

    message = trained_by_sentencepiece()
    theirs = sentencepiece.SentencePieceProcessor(model_proto=message)
    (tmp_path / "tokenizer.model").write_bytes(message)
    ours = Tokenizer.from_file(tmp_path / "tokenizer.model")
    for text in ("the cat", " hello   there\n", "<b>x</b> ñ 🦙", "日本日", "<start_of_turn>"):
        assert ours.encode(text, bos=False, special=False) == theirs.EncodeAsIds(text)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())
    assert ours.pieces(range(330)) == [theirs.IdToPiece(id) for id in range(330)]


def test_the_written_model_is_the_message_it_claims_to_be() -> None:
    from sentencepiece import sentencepiece_model_pb2

    keys = small_vocabulary()
    for length in (110, 111, 118, 119, 120, 127, 128, 129, 4096):  # where sizes grow a byte
        keys["tokenizer.ggml.tokens"].append("x" * length)
    extra = len(keys["tokenizer.ggml.tokens"]) - len(keys["tokenizer.ggml.scores"])
    for key, value in (("scores", -1e4), ("token_type", 1)):
        name = f"tokenizer.ggml.{key}"
        keys[name] = np.append(keys[name], np.full(extra, value, keys[name].dtype))
    vocabulary = Vocabulary.from_gguf(keys)
    parsed = sentencepiece_model_pb2.ModelProto.FromString(pack_model(vocabulary))
    assert [p.piece for p in parsed.pieces] == [vocabulary.piece(i) for i in range(len(vocabulary))]
    assert [p.score for p in parsed.pieces] == vocabulary.scores.tolist()
    assert parsed.pieces[3].type == 2
    assert parsed.trainer_spec.byte_fallback and not parsed.normalizer_spec.add_dummy_prefix
    again = unpack_model(parsed.SerializeToString())
    assert again.text == vocabulary.text
    np.testing.assert_array_equal(again.scores, vocabulary.scores)


def test_odd_but_legal_records_are_read() -> None:
    """Fields in another order, an absent type, an unknown field: all allowed by the format."""
    message = pack_model(Vocabulary.from_gguf(small_vocabulary()))
    odd = b"\x15\0\0\x80\xbf" + b"\x0a\x02zz" + b"\x98\x06\x07"
    read = unpack_model(message + bytes((0x0A, len(odd))) + odd)
    last = len(read) - 1
    assert (read.piece(last), read.scores[last], read.types[last]) == ("zz", -1.0, 1)


def test_names_decide_what_is_control() -> None:
    keys = small_vocabulary()
    types = keys["tokenizer.ggml.token_type"]
    types[[6, 7]] = 1  # as in files that type the turn markers as normal pieces
    types[5] = 4
    tokenizer = Tokenizer.from_gguf(keys)
    assert tokenizer.encode("<end_of_turn><unused0>", bos=False) == [7, 5]
    assert {5, 7}.isdisjoint(tokenizer.encode("<end_of_turn><unused0>", special=False))
    assert 9 in tokenizer.encode("<b>", special=False)  # a tag is text


def test_merges_out_of_order_cannot_become_scores(tmp_path: Path) -> None:
    written = as_json(Vocabulary.from_gguf(small_vocabulary()), merges=True)
    written["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    tokenizer = Tokenizer.from_file(tmp_path)
    with pytest.raises(UnsupportedError, match="only merges in id order"):
        tokenizer.to_sentencepiece()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model", "gpt2", "only 'llama'"),
        ("model", None, "only 'llama'"),
        ("model", np.zeros(3), "only 'llama'"),
        ("tokens", None, "tokens is missing"),
        ("tokens", [], "not a list of 1 to"),
        ("tokens", 7, "not a list of 1 to"),
        ("tokens", ["a", "b"], "need one of each"),
        ("tokens", ["a", b"b"], "is not text"),
        ("tokens", [b"\xff"], "is not text"),
        ("tokens", ["\ud800"], "is not text"),
        ("tokens", ["a\0b"], "NUL"),
        ("tokens", ["a", ""], "piece 1 has 0 bytes"),
        ("tokens", ["x" * 5000], "piece 0 has 5000 bytes"),
        ("scores", None, "scores is missing"),
        ("scores", [[1], [2, 3]], "not a list of numbers"),
        ("scores", "x", "need one of each"),
        ("scores", [1e300] * len(small_vocabulary()["tokenizer.ggml.tokens"]), "float32 can hold"),
        ("token_type", [3, 3], "need one of each"),
        ("bos_token_id", -1, "bos id -1 is outside"),
        ("eos_token_id", 10**6, "eos id 1000000 is outside"),
        ("eos_token_id", "1", "not a token id"),
        ("eot_token_id", 10**6, "eot_token_id is 1000000: not one of the"),
        ("eot_token_id", np.zeros(2), "not a token id"),
    ],
)
def test_broken_gguf_vocabularies(key: str, value: Any, reason: str) -> None:
    keys = small_vocabulary() | {f"tokenizer.ggml.{key}": value}
    with pytest.raises(GemeloError, match=reason):
        Tokenizer.from_gguf(keys)


@pytest.mark.parametrize(
    ("key", "at", "value", "reason"),
    [
        ("scores", 5, np.nan, "not a number that float32 can hold"),
        ("token_type", 5, 9, "outside 1 to 6"),
        ("token_type", 100, 1, "255 byte pieces"),
        ("tokens", 300, "hell", r"the piece 'hell' twice, as ids 288 and 300: give"),
    ],
)
def test_broken_entries(key: str, at: int, value: Any, reason: str) -> None:
    keys = small_vocabulary()
    keys[f"tokenizer.ggml.{key}"][at] = value
    with pytest.raises(FileFormatError, match=reason):
        Tokenizer.from_gguf(keys)


@settings(deadline=None, max_examples=200)
@given(at=st.integers(0, 5000), patch=st.binary(max_size=8), cut=st.integers(0, 8))
def test_broken_model_files_say_so(at: int, patch: bytes, cut: int) -> None:
    message = pack_model(Vocabulary.from_gguf(small_vocabulary()))
    broken = message[:at] + patch + message[at + cut :]
    try:
        SentencePieceBackend(unpack_model(broken)).encode("the hell € <b>")
    except GemeloError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "[" * 100_000,
        '{"added_tokens": [], "model": {"vocab": {"a": 0}',
        '{"added_tokens": [7], "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        '{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    ],
)
def test_broken_json_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(FileFormatError, match="tokenizer.json"):
        Tokenizer.from_file(tmp_path)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        with pytest.raises(InputError, match="no tokenizer at"):
            Tokenizer.from_file(path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="can't decode byte 0xff in position 0"):
        Tokenizer.from_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(FileFormatError, match="tokenizer_config.json: not readable as JSON"):
        Tokenizer.from_file(tmp_path)


def test_a_model_with_other_rules_is_refused() -> None:
    message = pack_model(Vocabulary.from_gguf(small_vocabulary()))
    prefix = message.replace(b"identity\x18\x00", b"identity\x18\x01")
    assert prefix != message
    with pytest.raises(UnsupportedError, match="adds a leading space"):
        unpack_model(prefix)


def block(field: int, body: bytes) -> bytes:
    return bytes((field << 3 | 2, len(body))) + body


PIECE = block(1, b"zz")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (PIECE + b"\x12\x00", "piece 336: field 2 has wire type 2, expected 5"),
        (PIECE + b"\x12\x04abcd", "field 2 has wire type 2"),
        (PIECE + b"\x11" + bytes(8), "field 2 has wire type 1"),
        (PIECE + b"\x10\x01", "field 2 has wire type 0"),
        (PIECE + b"\x1a\x01a", "field 3 has wire type 2, expected 0"),
        (PIECE + b"\x1d" + bytes(4), "field 3 has wire type 5"),
        (PIECE + b"\x18\xff\xff\xff\xff\x0f", "type of the vocabulary is outside"),
        (b"\x08\x05", "field 1 has wire type 0, expected 2"),
        (b"\x15\0\0\0\0", "piece 336 has 0 bytes"),
        (PIECE + b"\x15\0\0\xc0\x7f", "not a number that float32 can hold"),
        (PIECE + b"\x0b", "wire type 3"),
    ],
)
def test_fields_of_the_wrong_kind(record: bytes, reason: str, tmp_path: Path) -> None:
    message = pack_model(Vocabulary.from_gguf(small_vocabulary()))
    (tmp_path / "tokenizer.model").write_bytes(message + block(1, record))
    with pytest.raises(FileFormatError, match=reason):
        Tokenizer.from_file(tmp_path)


def test_specs_in_parts_and_of_the_wrong_kind() -> None:
    message = pack_model(Vocabulary.from_gguf(small_vocabulary()))
    assert unpack_model(message + block(2, b"\x20\x07")).bos_id == 2  # a second part of the trainer
    with pytest.raises(UnsupportedError, match="does not fall back"):
        unpack_model(message + block(2, b"\x98\x02\x00"))
    with pytest.raises(UnsupportedError, match="rewrites the text of ids"):
        unpack_model(message + block(5, block(2, b"map")))
    for wrong in (b"\x10\x05", b"\x1d" + bytes(4)):
        with pytest.raises(FileFormatError, match="has wire type"):
            unpack_model(message + wrong)
    with pytest.raises(FileFormatError, match="trainer_spec: field 3 has wire type 2"):
        unpack_model(message + block(2, block(3, b"x")))


@pytest.mark.parametrize("name", ["tokenizer.model", "model.gguf"])
def test_a_piece_that_is_there_twice_is_named(name: str, tmp_path: Path) -> None:
    keys = small_vocabulary()
    keys["tokenizer.ggml.tokens"][300] = "[PAD]"
    keys["tokenizer.ggml.tokens"][310] = "[PAD]"
    path = tmp_path / name
    if name == "model.gguf":
        from gemelo.weights.gguf_write import write_gguf

        write_gguf(path, keys | {"general.architecture": "gemma3"}, [])
    else:
        path.write_bytes(pack_model(Vocabulary.from_gguf(keys)))
    with pytest.raises(FileFormatError, match="piece '\\[PAD\\]' twice, as ids 300 and 310") as one:
        Tokenizer.from_file(path) if path.suffix == ".model" else read_tokenizer(path)
    assert str(one.value).startswith(f"{path}: ")
