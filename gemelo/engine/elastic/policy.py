"""Policies: functions that choose the sub-model before every token, by latency, memory, entropy.

A policy is given what there is to know at that moment and names a sub-model. It holds no tensors
and changes nothing; the session makes the change. `latency` climbs and descends a ladder of sizes
so as to keep a rate, with hysteresis; `memory` descends it when memory is short; `difficulty`
gives easy tokens to the smaller of two sizes that write the same keys.

    session.policy = latency(20.0, ladder=[e2b, e3, e4b])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gemelo.config import Submodel
from gemelo.config.checks import is_number
from gemelo.errors import InputError


@dataclass(frozen=True)
class Moment:
    """What a policy may look at before a token is chosen."""

    active: Submodel
    scores: Tensor  # (V,) of the token to come
    step_s: float  # seconds of the last step; 0 before the first
    tokens: int  # written by the active size since it became active


Policy = Callable[[Moment], Submodel]


def fixed(submodel: Submodel) -> Policy:
    """Always the same."""
    return lambda moment: submodel


def latency(
    tokens_per_s: float, ladder: Sequence[Submodel], hysteresis: float = 0.1, patience: int = 4
) -> Policy:
    """The largest size of `ladder` (smallest first) that keeps up `tokens_per_s`.

    Goes down when the smoothed rate falls `hysteresis` below the target, up when it lies as far
    above; at least `patience` tokens at a size before it is judged, so that it cannot flutter.
    """
    if not is_number(tokens_per_s) or not tokens_per_s > 0:
        raise InputError(f"latency target of {tokens_per_s!r:.60} tokens/s; expected above 0")
    _check_submodels(*ladder)
    smoothed = 0.0

    def decide(moment: Moment) -> Submodel:
        nonlocal smoothed
        if moment.active not in ladder:
            return ladder[-1]
        rung = ladder.index(moment.active)
        if moment.tokens == 0 or not moment.step_s:
            smoothed = 0.0
            return moment.active
        smoothed = moment.step_s if not smoothed else 0.7 * smoothed + 0.3 * moment.step_s
        if moment.tokens < patience:
            return moment.active
        rate = 1 / smoothed
        if rate < tokens_per_s * (1 - hysteresis):
            return ladder[max(0, rung - 1)]
        if rate > tokens_per_s * (1 + hysteresis):
            return ladder[min(len(ladder) - 1, rung + 1)]
        return moment.active

    return decide


def memory(
    limit_bytes: int,
    ladder: Sequence[Submodel],
    resident_bytes: Callable[[], int],
    release: Callable[[Submodel], int] = lambda submodel: 0,
) -> Policy:
    """One size down (of `ladder`, smallest first) whenever the process holds more than the limit.

    `release` then lets go the pages that the smaller size does not use. It does not climb by
    itself: what was given back would only be taken again.
    """
    if not is_number(limit_bytes) or limit_bytes <= 0:
        raise InputError(f"memory limit of {limit_bytes!r:.60} bytes; expected above 0")
    _check_submodels(*ladder)

    def decide(moment: Moment) -> Submodel:
        rung = ladder.index(moment.active) if moment.active in ladder else len(ladder) - 1
        if resident_bytes() > limit_bytes and rung > 0:
            rung -= 1
            release(ladder[rung])
        return ladder[rung]

    return decide


def difficulty(easy: Submodel, hard: Submodel, entropy: float) -> Policy:
    """`easy` while the last scores were sure of themselves (below `entropy` nats), else `hard`.

    The caller sees to it that both write the same keys, so that changing per token costs nothing.
    """
    if not is_number(entropy) or entropy < 0:
        raise InputError(f"entropy threshold of {entropy!r:.60} nats; expected 0 or more")
    _check_submodels(easy, hard)

    def decide(moment: Moment) -> Submodel:
        logprobs = moment.scores.log_softmax(-1)
        nats = float(-(logprobs.exp() * logprobs).sum())
        return easy if nats < entropy else hard

    return decide


def _check_submodels(*submodels: Submodel) -> None:
    for submodel in submodels:
        if not isinstance(submodel, Submodel):
            raise InputError(
                f"a policy chooses among Submodel values, not {submodel!r:.60}: "
                "Submodel.named(name, model.config), or Submodel.ladder(model.config)"
            )
    if not submodels:
        raise InputError("a policy has no sub-models to choose from; give one or more")
