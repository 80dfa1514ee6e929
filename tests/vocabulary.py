"""The vocabulary of tiny models, made without PyTorch: `tests_without_torch` shares it."""

from __future__ import annotations

import numpy as np


def tiny_vocabulary() -> dict[str, object]:
    """GGUF key-values of a 512-piece vocabulary with Gemma's structure and special ids."""
    named = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>"}
    named |= {105: "<start_of_turn>", 106: "<end_of_turn>", 107: "\n", 108: "\n\n"}
    pieces = [named.get(id, f"<unused{id}>") for id in range(109)]
    types = [3] * 107 + [4, 4]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [6] * 256
    merges = ["th", "▁th", "▁the", "he", "in", "an", "er", "▁a", "ing", "▁capital", "of", "▁of"]
    letters = [chr(code) for code in range(33, 127)] + ["▁", "é", "日", "🦙"]
    rest = [*merges, *letters]
    rest += [a + b for a in "bcdfghjklmnpqrst" for b in "aeiou"]
    rest = list(dict.fromkeys(rest))[: 512 - len(pieces)]
    pieces += rest
    types += [1] * len(rest)
    scores = [0.0 if kind != 1 else -float(id) for id, kind in enumerate(types)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": np.array(scores, dtype=np.float32),
        "tokenizer.ggml.token_type": np.array(types, dtype=np.int32),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
