"""A decoder that computes nothing: the scores of a token are a hash of all ids up to it.

It writes ids where a decoder writes keys, and reads them there: whatever a cache claims to hold and
does not, shows in the text. A thousand steps take a tenth of a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemelo.config import Gemma3Config, ModelConfig, Submodel
from gemelo.config.options import KVFormat
from gemelo.config.sampling import Sampling
from gemelo.engine.decoder import StepPiece, check_pieces, make_room
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache
from gemelo.engine.request import Request
from gemelo.engine.tokens import Tokens
from gemelo.kernels.quants import Floats
from gemelo.weights.tensors import Weights

VOCAB_SIZE = 97
CONFIG = Gemma3Config(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=2,
    sliding_window=40,
    max_position_embeddings=4096,
    layer_types=["sliding_attention", "full_attention"],
)


def scores_after(ids: Sequence[int], size: str = "") -> Floats:
    """Of the next token, (V,), given all ids and the size that answers."""
    digest = hashlib.blake2b(f"{size}{list(ids)}".encode(), digest_size=8).digest()
    generator = np.random.default_rng(int.from_bytes(digest, "little"))
    return generator.standard_normal(VOCAB_SIZE).astype(np.float32)


def text_alone(prompt: Sequence[int], count: int, size: str = "") -> list[int]:
    """The ids that greedy decoding gives, by the definition."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(scores_after(ids, size).argmax()))
    return ids[len(prompt) :]


class FakeDecoder:
    """`steps` are the tokens that each step took, by piece."""

    def __init__(self, size: str = "", config: ModelConfig = CONFIG) -> None:
        self.config, self.size, self.weights = config, size, Weights({})
        self.layer_indices = config.layers
        self.device_name, self.steps = "cpu", list[list[int]]()
        self.broken_after: int | None = None  # steps, after which one fails

    kv_format: KVFormat = "plain"

    def step(self, pieces: Sequence[StepPiece]) -> tuple[list[Floats], bool]:
        check_pieces(pieces, VOCAB_SIZE)
        make_room(pieces)
        self.steps.append([len(piece.ids) for piece in pieces])
        if self.broken_after is not None and len(self.steps) > self.broken_after:
            self.broken_after = None
            raise MemoryError("a step that fails")
        return [self._scores(piece) for piece in pieces], True

    def _scores(self, piece: StepPiece) -> Floats:
        cache, positions = piece.cache, np.arange(piece.position, piece.end)
        for layer, (keys, _) in cache.stores.items():
            slots = cache.slots.mapping(cache.config.layer_types[layer], positions)
            keys.x[slots, 0, 0] = piece.ids
        cache.slots.place(positions)
        for kind, table in cache.slots.tables.items():  # what the last token sees has to be there
            seen = range(cache.slots.first_seen(kind, piece.end - 1), piece.end)
            assert set(seen) <= set(table.tolist()), f"{kind} layers have lost what they see"
        held = cache.stores[1][0].x[: piece.end, 0, 0].astype(int).tolist()
        ends = range(piece.end - piece.num_scored + 1, piece.end + 1)
        rows = [scores_after(held[:end], self.size) for end in ends]
        return np.array(rows, np.float32).reshape(-1, VOCAB_SIZE)

    def has_own_embeddings(self, ids: Sequence[int]) -> bool:
        return False

    def embed(self, ids: Sequence[int]) -> Floats:
        raise AssertionError("no piece has embeddings")

    def view(self, submodel: Submodel) -> FakeDecoder:
        return FakeDecoder(submodel.name)

    def prepare(self, num_tokens: int) -> float:
        return 0.0

    def prefetch(self, ids: Sequence[int]) -> None: ...

    def cache(self, context: int, chunk: int = 512, kv_format: KVFormat | None = None) -> KVCache:
        return KVCache(self.config, context, chunk, kv_format or "plain")


class FakeTokenizer:
    """Ids are characters."""

    vocab_size, stop_ids = VOCAB_SIZE, ()

    def stream(self) -> FakeTokenizer:
        return self

    def push(self, id: int) -> str:
        return chr(32 + id)

    def flush(self) -> str:
        return ""


def engine_of(kv_limit_bytes: int | None = 1 << 20, **options: Any) -> Engine:
    decoder: Any = FakeDecoder()
    tokenizer: Any = FakeTokenizer()
    return Engine(decoder, tokenizer, 1024, 64, kv_limit_bytes=kv_limit_bytes, **options)


def request(prompt: list[int], count: int, **options: Any) -> Request:
    sampling = Sampling(temperature=0, max_tokens=count)
    return Request(Tokens(prompt), sampling, **options)
