"""The two regimes of a decoder: prefill reads a prompt in chunks, decode adds a token to every row.

Both take Python integers and give scores; this is where lists become tensors. `score` is the third
way through the same forward, for evaluation: every position's scores. The plain forward without a
cache stays their oracle in the tests.

    scores = prefill(decoder, cache, ids, start=0)              # (V,)
    scores = decode(decoder, cache, tokens=[506], positions=[6])  # (B, V)

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gemelo.engine.kv import KVCache
from gemelo.errors import FileFormatError
from gemelo.kernels.formats import Packed, unpacked_chunks
from gemelo.kernels.linear import QuantEmbedding, QuantLinear
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.layers import Embedding, Linear, RMSNorm, TransposedLinear

Decoder = Gemma3 | Gemma3n


@torch.inference_mode()
def prefill(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    start: int,
    done: Callable[[int], None] = lambda position: None,
) -> Tensor:
    """Write ids[start:] of row 0 to the cache and score what follows the last: (V,) float32.

    `done` is called with the position reached after every chunk, when the cache holds it.
    """
    hidden = torch.empty(0)
    for begin in range(start, len(ids), cache.chunk):
        end = min(begin + cache.chunk, len(ids))
        decoder.prefetch(ids[end : end + cache.chunk])  # while this chunk is computed
        # Only the prompt's last token is asked for; the others stop at the last keys written.
        hidden = decoder(*_span(decoder, ids, begin, end), cache, keep=int(end == len(ids)))
        done(end)
    return checked(decoder, decoder.logits(hidden[0, -1]))


@torch.inference_mode()
def write(decoder: Decoder, cache: KVCache, ids: Sequence[int], begin: int, end: int) -> None:
    """Write ids[begin:end] of row 0 to the cache and score nothing."""
    decoder(*_span(decoder, ids, begin, end), cache, keep=0)


@torch.inference_mode()
def verify(decoder: Decoder, cache: KVCache, tokens: Sequence[int], position: int) -> Tensor:
    """Write tokens of row 0 from `position` on and score after each: (T, V) float32."""
    device = decoder.norm.weight.device
    places = torch.arange(position, position + len(tokens), device=device)[None]
    hidden = decoder(torch.tensor(tokens, device=device)[None], places, cache)
    return checked(decoder, decoder.logits(hidden[0]))


@torch.inference_mode()
def decode(
    decoder: Decoder, cache: KVCache, tokens: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """One token in every row, at its position (-1 leaves the row alone): scores (B, V) float32."""
    device = decoder.norm.weight.device
    ids = torch.tensor(tokens, device=device)[:, None]
    hidden = decoder(ids, torch.tensor(positions, device=device)[:, None], cache)
    return checked(decoder, decoder.logits(hidden[:, 0]))


@torch.inference_mode()
def score(decoder: Decoder, cache: KVCache, ids: Sequence[int]) -> Tensor:
    """Next-token scores at every position, (T, V) float32; 1 MB a token at Gemma's vocabulary."""
    parts = []
    for begin in range(0, len(ids), cache.chunk):
        end = min(begin + cache.chunk, len(ids))
        parts.append(decoder.logits(decoder(*_span(decoder, ids, begin, end), cache)[0]))
    return checked(decoder, torch.cat(parts))


def _span(decoder: Decoder, ids: Sequence[int], begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Tokens begin to end as ids and positions, both (1, T)."""
    device = decoder.norm.weight.device
    tokens = torch.tensor(ids[begin:end], device=device)[None]
    return tokens, torch.arange(begin, end, device=device)[None]


def checked(decoder: Decoder, scores: Tensor) -> Tensor:
    """scores, or the name of the weight that spoilt them.

    Looking here costs a pass over one row of scores; looking at load would read the whole file.
    """
    if not torch.isfinite(scores).all():
        name, kind = next(broken_weights(decoder), ("", ""))
        cause = f"{name} holds {kind}" if name else "no weight is broken; the activations overflow"
        raise FileFormatError(f"the model's scores are not finite: {cause}")
    return scores


def broken_weights(decoder: Decoder) -> Iterator[tuple[str, str]]:
    """Names of weights that hold NaN or infinity, and which; reads all of them."""
    weighty = (Linear, TransposedLinear, Embedding, RMSNorm, QuantLinear, QuantEmbedding)
    for name, module in decoder.named_modules():
        if isinstance(module, weighty):
            for part in _parts(module.weight):
                if not torch.isfinite(part).all():
                    yield f"{name}.weight", "NaN" if part.isnan().any() else "infinity"
                    break


def _parts(weight: Tensor | Packed) -> Iterator[Tensor]:
    """A weight a few thousand rows at a time, in floats."""
    if isinstance(weight, Packed):
        yield from (values for _, values in unpacked_chunks(weight))
    else:
        for row in range(0, weight.shape[0], 4096):
            yield weight[row : row + 4096]
