"""One vocabulary in each of its three containers, small and real, and the corpus of known ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

SOURCES = ("gguf", "model", "json")
WORDS = ["th", "he", "▁t", "the", "▁the", "▁a", "in", "er", "▁in", "el", "ll", "ell", "hell"]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyzTH0123456789.,<>/_", "é", "日"]


def small_vocabulary() -> dict[str, Any]:
    """GGUF key-values with Gemma's structure: controls, runs, a tag, bytes, merges, letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<unused0>"]
    pieces += ["<start_of_turn>", "<end_of_turn>", "[multimodal]", "<b>", "</b>"]
    pieces += ["\n" * n for n in range(1, 6)] + [" " * n for n in range(2, 6)]
    types = [3] * 8 + [4] * (len(pieces) - 8) + [6] * 256
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    normal = WORDS + LETTERS
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + normal,
        "tokenizer.ggml.scores": np.array(
            [-1000.0] * len(pieces) + [-float(rank) for rank in range(len(normal))], np.float32
        ),
        "tokenizer.ggml.token_type": np.array(types + [NORMAL] * len(normal), np.int32),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }


def as_json(vocabulary: Vocabulary, *, merges: bool, soft: bool = False) -> dict[str, Any]:
    """The members of a tokenizer.json; merges may be left out where they say nothing new."""
    pieces = vocabulary.text.decode().split("\0")[:-1]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    added = [
        {"id": id, "content": piece, "special": kind != USER_DEFINED}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for id, (piece, kind) in enumerate(zip(pieces, vocabulary.types.tolist(), strict=True))
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    if soft:
        added.append(added[0] | {"id": len(pieces), "content": "<image_soft_token>"})
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": None,
        "added_tokens": added,
        "normalizer": replace,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": _merges(vocab, vocabulary) if merges else [],
        },
    }


def _merges(vocab: dict[str, int], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    return [
        (piece[:cut], piece[cut:])
        for piece, id in vocab.items()
        if vocabulary.types[id] == NORMAL
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]


def in_container(source: str, metadata: dict[str, Any], folder: Path, *, merges: bool) -> Tokenizer:
    """The vocabulary of `metadata`, written into one of the containers and read from it."""
    if source == "gguf":
        return Tokenizer.from_gguf(metadata)
    if source == "model":
        (folder / "tokenizer.model").write_bytes(Tokenizer.from_gguf(metadata).to_sentencepiece())
    else:
        written = as_json(Vocabulary.from_gguf(metadata), merges=merges, soft=True)
        (folder / "tokenizer.json").write_text(json.dumps(written, ensure_ascii=False))
    return Tokenizer.from_file(folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The small vocabulary from each container; the JSON runs in the tokenizers library."""
    return {
        source: in_container(
            source, small_vocabulary(), tmp_path_factory.mktemp(source), merges=True
        )
        for source in SOURCES
    }


@pytest.fixture(scope="session")
def real_metadata(real_gguf: Path) -> dict[str, Any]:
    from gemelo.weights.gguf import GGUFFile

    return dict(GGUFFile(real_gguf).metadata)


@pytest.fixture(scope="session")
def real(
    real_metadata: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Tokenizer]:
    """The real vocabulary from the container named, read once."""
    read: dict[str, Tokenizer] = {}

    def tokenizer(source: str) -> Tokenizer:
        if source not in read:
            folder = tmp_path_factory.mktemp(f"real-{source}")
            read[source] = in_container(source, real_metadata, folder, merges=False)
        return read[source]

    return tokenizer


@pytest.fixture(scope="session")
def corpus() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((Path(__file__).parent / "corpus.json").read_text())
    return read
