"""Decoder steps: prefill a prompt in chunks, decode a token a row, verify a draft's tokens.

All are one `forward` with `logits_to_keep`, on any decoder. They take Python integers and give
float32 arrays. `score` is for evaluation: every position's logits.

    scores = prefill(decoder, cache, Tokens(ids), start=0)        # (V,)
    scores = decode(decoder, cache, ids=[506], positions=[6])     # (B, V)

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gemelo.engine.decoder import Decoder, Rows
from gemelo.engine.kv import KVCache
from gemelo.engine.tokens import EmbeddingSpan, Tokens, step_inputs
from gemelo.errors import FileFormatError
from gemelo.kernels.quants import Floats
from gemelo.weights.mapped import listen, lost
from gemelo.weights.tensors import Weights


def prefill(
    decoder: Decoder,
    cache: KVCache,
    tokens: Tokens,
    start: int = 0,
    done: Callable[[int], None] = lambda position: None,
) -> Floats:
    """Write tokens from `start` on to row 0 of the cache, and score what follows the last: (V,).

    `done` is called with the position reached after every chunk, when the cache holds it.
    """
    scores = np.empty((0, 0), np.float32)
    for begin, end in tokens.chunks(start, cache.chunk):
        decoder.prefetch(tokens.ids[end : end + cache.chunk])  # while this chunk is computed
        # Only the prompt's last token is asked for; the others stop at the last keys written.
        scores = _forward_row(decoder, cache, tokens[begin:end], begin, int(end == len(tokens)))
        done(end)
    last: Floats = scores[-1]
    return last


def write(decoder: Decoder, cache: KVCache, tokens: Tokens, position: int) -> None:
    """Write tokens of row 0 from `position` on to the cache, in one step, and score nothing."""
    _forward_row(decoder, cache, tokens, position, 0)


def decode(
    decoder: Decoder, cache: KVCache, ids: Sequence[int], positions: Sequence[int]
) -> Floats:
    """One token in every row, at its position (-1 leaves the row alone): scores (B, V) float32."""
    return forward(decoder, cache, [[id] for id in ids], [[position] for position in positions])


def verify(decoder: Decoder, cache: KVCache, ids: Sequence[int], position: int) -> Floats:
    """Tokens of row 0 from `position` on, a draft's guesses: scores (T, V) after each."""
    return _forward_row(decoder, cache, Tokens(ids), position)


def score(decoder: Decoder, cache: KVCache, ids: Sequence[int] | Tokens) -> Floats:
    """Next-token scores at every position, (T, V) float32; 1 MB a token at Gemma's vocabulary."""
    tokens = Tokens.of(ids)
    steps = tokens.chunks(0, cache.chunk)
    return np.concatenate([_forward_row(decoder, cache, tokens[a:b], a) for a, b in steps])


def _forward_row(
    decoder: Decoder,
    cache: KVCache,
    tokens: Tokens,
    position: int,
    logits_to_keep: int | None = None,
) -> Floats:
    """Tokens of row 0 from `position` on."""
    positions = range(position, position + len(tokens))
    return forward(decoder, cache, [tokens.ids], [positions], logits_to_keep, tokens.spans)


def forward(
    decoder: Decoder,
    cache: KVCache,
    ids: Rows,
    positions: Rows,
    logits_to_keep: int | None = None,
    spans: Sequence[EmbeddingSpan] = (),
) -> Floats:
    """ids, positions (B, T) -> scores of all or the last tokens, (B * (T or logits_to_keep), V).

    spans are of row 0. Scores that are not finite raise the name of the weight that spoilt them:
    the step tells, and looking at load would read the whole file.
    """
    listen()
    inputs = step_inputs(decoder, ids, positions, spans)
    scores, finite = decoder.step(ids, positions, cache, logits_to_keep, inputs)
    check_result(decoder.weights, finite)
    return scores


def check_result(weights: Weights, finite: bool) -> None:
    """Raise the names of weights that are gone, or of the first that spoilt a step's scores."""
    if not lost() and finite:
        return
    if missing := list(weights.lost()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileFormatError(
            f"the model's file was cut short while it was in use: {missing[0]}{more} cannot be "
            "read any longer; load it again"
        )
    if not finite:
        name, kind = next(weights.broken(), ("", ""))
        cause = f"{name} holds {kind}" if name else "no weight is broken; the activations overflow"
        raise FileFormatError(f"the model's scores are not finite: {cause}")
