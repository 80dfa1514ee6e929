"""The two regimes of a decoder: prefill reads a prompt in chunks, decode adds a token to every row.

Both take Python integers and give scores. A decoder's program takes them as they are, since after a
step nothing of torch is in the caches and its first operator costs a tenth of a millisecond; for
modules they become tensors here. `score` is the third way through the same forward, for evaluation:
every position's scores. The plain forward without a cache stays their oracle in the tests.

    scores = prefill(decoder, cache, ids, start=0)              # (V,)
    scores = decode(decoder, cache, tokens=[506], positions=[6])  # (B, V)

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gemelo.engine.kv import KVCache
from gemelo.engine.memory.pages import lost_weights
from gemelo.engine.native_program import Rows
from gemelo.engine.tokens import Soft, chunks, given
from gemelo.errors import FileFormatError
from gemelo.kernels.formats import Packed, unpacked_chunks
from gemelo.kernels.linear import QuantEmbedding, QuantLinear
from gemelo.models.decoder import Decoder as Decoder
from gemelo.models.layers import Embedding, Linear, RMSNorm, TransposedLinear
from gemelo.weights.mapped import listen, lost


@torch.inference_mode()
def prefill(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    start: int,
    done: Callable[[int], None] = lambda position: None,
    soft: Sequence[Soft] = (),
) -> Tensor:
    """Write ids[start:] of row 0 to the cache and score what follows the last: (V,) float32.

    soft: what stands in place of ids that mean pictures and sounds. `done` is called with the
    position reached after every chunk, when the cache holds it.
    """
    scores = torch.empty(0)
    for begin, end in chunks(start, len(ids), cache.chunk, soft):
        decoder.prefetch(ids[end : end + cache.chunk])  # while this chunk is computed
        # Only the prompt's last token is asked for; the others stop at the last keys written.
        keep = int(end == len(ids))
        scores = _scores(decoder, *_span(ids, begin, end), cache, keep, soft)
        done(end)
    return scores[-1]


@torch.inference_mode()
def write(
    decoder: Decoder,
    cache: KVCache,
    ids: Sequence[int],
    begin: int,
    end: int,
    soft: Sequence[Soft] = (),
) -> None:
    """Write ids[begin:end] of row 0 to the cache and score nothing."""
    _scores(decoder, *_span(ids, begin, end), cache, 0, soft)


@torch.inference_mode()
def verify(decoder: Decoder, cache: KVCache, tokens: Sequence[int], position: int) -> Tensor:
    """Write tokens of row 0 from `position` on and score after each: (T, V) float32."""
    places = range(position, position + len(tokens))
    return _scores(decoder, [tokens], [places], cache)


@torch.inference_mode()
def decode(
    decoder: Decoder, cache: KVCache, tokens: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """One token in every row, at its position (-1 leaves the row alone): scores (B, V) float32."""
    ids, places = [[token] for token in tokens], [[position] for position in positions]
    return _scores(decoder, ids, places, cache)


@torch.inference_mode()
def score(decoder: Decoder, cache: KVCache, ids: Sequence[int]) -> Tensor:
    """Next-token scores at every position, (T, V) float32; 1 MB a token at Gemma's vocabulary."""
    parts = []
    for begin in range(0, len(ids), cache.chunk):
        end = min(begin + cache.chunk, len(ids))
        parts.append(_scores(decoder, *_span(ids, begin, end), cache))
    return torch.cat(parts)


def _scores(
    decoder: Decoder,
    ids: Rows,
    positions: Rows,
    cache: KVCache,
    keep: int | None = None,
    soft: Sequence[Soft] = (),
) -> Tensor:
    """ids, positions (B, T) -> scores of all or the last `keep` tokens, (B * (T or keep), V).

    A decoder that was fused is one native call; its modules are the same, one after the other.
    Scores that are not finite raise the name of the weight that spoilt them: looking here costs a
    pass over the scores, looking at load would read the whole file.
    """
    listen()
    beside = None
    if soft or decoder.modality_embeddings is not None:
        beside = given(decoder, _tensor(decoder, ids), _tensor(decoder, positions), soft)
    if decoder.native_program is not None and decoder.native_program.takes(cache):
        scores, finite = decoder.native_program.scores(ids, positions, cache, keep, beside)
    else:
        tokens, places = _tensor(decoder, ids), _tensor(decoder, positions)
        hidden = decoder(tokens, places, cache, keep, beside).flatten(0, 1)
        scores = decoder.logits(hidden) if len(hidden) else hidden
        finite = is_finite(scores)
    if lost() or not finite:
        _accuse(decoder, finite)
    return scores


def _tensor(decoder: Decoder, rows: Rows) -> Tensor:
    """Numbers (B, T) where the decoder is."""
    return torch.tensor([list(row) for row in rows], device=decoder.norm.weight.device)


def _accuse(decoder: Decoder, finite: bool) -> None:
    """Raise the names of weights that are gone, or of the first that spoilt the scores."""
    if missing := list(lost_weights(decoder)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileFormatError(
            f"the model's file was cut short while it was in use: {missing[0]}{more} cannot be "
            "read any longer; load it again"
        )
    if not finite:
        name, kind = next(broken_weights(decoder), ("", ""))
        cause = f"{name} holds {kind}" if name else "no weight is broken; the activations overflow"
        raise FileFormatError(f"the model's scores are not finite: {cause}")


def _span(ids: Sequence[int], begin: int, end: int) -> tuple[Rows, Rows]:
    """Tokens begin to end as ids and positions, both (1, T)."""
    return [ids[begin:end]], [range(begin, end)]


def is_finite(scores: Tensor) -> bool:
    """Whether no score is NaN or infinite.

    The extremes tell, since NaN is both. NumPy looks for them on one thread: torch would wake its
    own threads, which then spin for a while on the cores that the next step needs.
    """
    if scores.device.type == "cpu" and scores.numel():
        values = scores.numpy()
        return bool(np.isfinite(values.max()) and np.isfinite(values.min()))
    return bool(torch.isfinite(scores).all())


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
