"""Decoder steps: prefill a prompt in chunks, decode a token a row, verify a draft's tokens.

All are one `forward` with `logits_to_keep`. It takes Python integers: a decoder's native
program takes them as they are, since after a step nothing of torch is in the caches and its first
operator costs a tenth of a millisecond; for modules they become tensors here. `score` is for
evaluation: every position's logits. `outputs` is the plain forward without a cache, which stays the
oracle in the tests, with its hidden states and attention probabilities.

    scores = prefill(decoder, cache, Tokens(ids), start=0)        # (V,)
    scores = decode(decoder, cache, ids=[506], positions=[6])     # (B, V)

B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gemelo.engine.kv import KVCache
from gemelo.engine.native_program import Rows
from gemelo.engine.tokens import EmbeddingSpan, Tokens, step_inputs
from gemelo.errors import FileFormatError
from gemelo.kernels.linear import QuantEmbedding, QuantLinear
from gemelo.kernels.quants import Packed, unpacked_chunks
from gemelo.models.decoder import Decoder as Decoder
from gemelo.models.layers import Embedding, Linear, RMSNorm, TransposedLinear
from gemelo.models.outputs import CausalLMOutput
from gemelo.models.outputs import forward as forward_modules
from gemelo.weights.mapped import listen, lost, lost_weights


@torch.inference_mode()
def prefill(
    decoder: Decoder,
    cache: KVCache,
    tokens: Tokens,
    start: int = 0,
    done: Callable[[int], None] = lambda position: None,
) -> Tensor:
    """Write tokens from `start` on to row 0 of the cache, and score what follows the last: (V,).

    `done` is called with the position reached after every chunk, when the cache holds it.
    """
    scores = torch.empty(0)
    for begin, end in tokens.chunks(start, cache.chunk):
        decoder.prefetch(tokens.ids[end : end + cache.chunk])  # while this chunk is computed
        # Only the prompt's last token is asked for; the others stop at the last keys written.
        scores = _forward_row(decoder, cache, tokens[begin:end], begin, int(end == len(tokens)))
        done(end)
    return scores[-1]


@torch.inference_mode()
def write(decoder: Decoder, cache: KVCache, tokens: Tokens, position: int) -> None:
    """Write tokens of row 0 from `position` on to the cache, in one step, and score nothing."""
    _forward_row(decoder, cache, tokens, position, 0)


@torch.inference_mode()
def decode(
    decoder: Decoder, cache: KVCache, ids: Sequence[int], positions: Sequence[int]
) -> Tensor:
    """One token in every row, at its position (-1 leaves the row alone): scores (B, V) float32."""
    return forward(decoder, cache, [[id] for id in ids], [[position] for position in positions])


@torch.inference_mode()
def verify(decoder: Decoder, cache: KVCache, ids: Sequence[int], position: int) -> Tensor:
    """Tokens of row 0 from `position` on, a draft's guesses: scores (T, V) after each."""
    return _forward_row(decoder, cache, Tokens(ids), position)


@torch.inference_mode()
def score(decoder: Decoder, cache: KVCache, ids: Sequence[int] | Tokens) -> Tensor:
    """Next-token scores at every position, (T, V) float32; 1 MB a token at Gemma's vocabulary."""
    tokens = Tokens.of(ids)
    steps = tokens.chunks(0, cache.chunk)
    return torch.cat([_forward_row(decoder, cache, tokens[a:b], a) for a, b in steps])


def outputs(
    decoder: Decoder, tokens: Tokens, output_hidden_states: bool, output_attentions: bool
) -> CausalLMOutput:
    """One forward of tokens through the modules, without a cache, and what is asked for of it."""
    listen()
    ids, positions = (_tensor(decoder, [row]) for row in (tokens.ids, range(len(tokens))))
    inputs = step_inputs(decoder, ids, positions, tokens.spans)
    found = forward_modules(
        decoder, ids, positions, inputs, output_hidden_states, output_attentions
    )
    finite = is_finite(found.logits)
    if lost() or not finite:
        _accuse(decoder, finite)
    return found


def _forward_row(
    decoder: Decoder,
    cache: KVCache,
    tokens: Tokens,
    position: int,
    logits_to_keep: int | None = None,
) -> Tensor:
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
) -> Tensor:
    """ids, positions (B, T) -> scores of all or the last tokens, (B * (T or logits_to_keep), V).

    spans are of row 0. A decoder with a native program is one native call; its modules are the
    same, one after the other. Scores that are not finite raise the name of the weight that spoilt
    them: looking here costs a pass over the scores, looking at load would read the whole file.
    """
    listen()
    inputs = None
    if spans or decoder.modality_embeddings is not None:
        inputs = step_inputs(decoder, _tensor(decoder, ids), _tensor(decoder, positions), spans)
    program = decoder.native_program
    if program is not None and program.supports(cache):
        scores, finite = program.scores(ids, positions, cache, logits_to_keep, inputs)
    else:
        hidden = decoder(
            _tensor(decoder, ids), _tensor(decoder, positions), cache, logits_to_keep, inputs
        ).flatten(0, 1)
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
