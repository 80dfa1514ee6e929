"""Readers of vocabularies in each of their containers, and of the settings beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.mutations import (
    VALUES,
    mutated_bytes,
    mutated_json,
    mutated_value,
)
from fuzzing.readers import TEXT, Reader
from fuzzing.seeds import MESSAGES, TEMPLATE, Seeds, vocabulary
from fuzzing.weights import linked
from gemelo.inputs.prompt import chat
from gemelo.inputs.tokenizer.tokenizer import Tokenizer


def tokenizer_readers(seeds: Seeds) -> list[Reader]:
    facts = vocabulary()
    model = (seeds.sees / "tokenizer.model").read_bytes()
    document = _tokenizer_json(facts)
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "bos_token": "<bos>",
        "eos_token": {"content": "<eos>", "lstrip": False},
        "chat_template": [{"name": "default", "template": TEMPLATE}],
    }

    def model_settings(rng: Random) -> bytes:
        return mutated_json(rng, settings)

    def take_settings(content: bytes, folder: Path) -> None:
        home = folder / "settings"
        linked(home, seeds.sees, ["tokenizer.model"])
        (home / "tokenizer_config.json").write_bytes(content)
        tokenizer = Tokenizer.from_file(home)
        _use_tokenizer(tokenizer)
        if tokenizer.chat_template is not None:
            chat.render(MESSAGES, tokenizer)

    return [
        Reader("vocabulary", lambda rng: _facts(rng, facts), _take_facts),
        Reader(
            "tokenizer.model", lambda rng: mutated_bytes(rng, model, 2), _file("tokenizer.model")
        ),
        Reader("tokenizer.json", lambda rng: mutated_json(rng, document), _file("tokenizer.json")),
        Reader("tokenizer_config", model_settings, take_settings),
    ]


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(ids)
    tokenizer.pieces(ids)
    stream = tokenizer.stream()
    for number in ids:
        stream.push(number)


def _file(name: str) -> Callable[[bytes, Path], None]:
    def take(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        _use_tokenizer(Tokenizer.from_file(folder / name))

    return take


def _facts(rng: Random, facts: dict[str, Any]) -> dict[str, Any]:
    """Key-values of a vocabulary with some changed; arrays keep their kind or lose it."""
    changed = dict(facts)
    for key in rng.sample(sorted(facts), rng.randint(1, 3)):
        value = facts[key]
        if hasattr(value, "dtype") and rng.random() < 0.8:
            changed[key] = _other_array(rng, value)
        elif isinstance(value, list) and rng.random() < 0.8:
            changed[key] = mutated_value(rng, value)
        else:
            changed[key] = rng.choice(VALUES)
        if rng.random() < 0.1:
            del changed[key]
    return changed


def _other_array(rng: Random, array: Any) -> Any:
    changed = array[: rng.choice((len(array), len(array), 0, 1, len(array) - 1))].copy()
    for _ in range(rng.randint(0, 3) if len(changed) else 0):
        edge = rng.choice((0, -1, 7, 1e30 if changed.dtype.kind == "f" else 1 << 30))
        changed[rng.randrange(len(changed))] = edge
    return changed.astype(rng.choice((changed.dtype, "float64", "int64")))


def _take_facts(facts: dict[str, Any], folder: Path) -> None:
    tokenizer = Tokenizer.from_gguf(facts)
    _use_tokenizer(tokenizer)
    tokenizer.to_gguf()


def _tokenizer_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    pieces, types = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"].tolist()
    known = set(pieces)
    merges = [
        [piece[:cut], piece[cut:]]
        for piece, kind in zip(pieces, types, strict=True)
        for cut in range(1, len(piece))
        if kind == 1 and {piece[:cut], piece[cut:]} <= known
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": piece, "special": kind == 3} | flags
            for number, (piece, kind) in enumerate(zip(pieces, types, strict=True))
            if kind in (3, 4) and number % 8 == 2
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "dropout": None,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
            "merges": merges,
        },
    }
