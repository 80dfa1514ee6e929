"""Policies: functions that choose the sub-model before every token, by latency, memory, entropy.

A policy is given what there is to know at that moment and names a sub-model. It holds no tensors
and changes nothing; the session makes the change. `latency` takes a smaller or a larger sub-model
so as to keep a rate, with hysteresis; `memory` takes a smaller one when memory is short;
`difficulty` gives easy tokens to the smaller of two that write the same keys and values. Statistics
call a policy by its `__name__`, as they would any function.

    session.policy = latency(20.0, submodels=[e2b, e3, e4b])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gemelo.config import Submodel
from gemelo.config.checks import is_number
from gemelo.engine.memory.process import process_bytes
from gemelo.engine.sampler import softmax
from gemelo.errors import InputError, shown
from gemelo.kernels.quants import Floats


@dataclass(frozen=True)
class Moment:
    """What a policy may look at before a token is chosen."""

    active: Submodel
    scores: Floats  # (V,) of the token to come, read-only
    step_s: float  # seconds of the last step; 0 before the first
    tokens: int  # written by the active sub-model since it became active


Policy = Callable[[Moment], Submodel]
LEAST_BYTES = 1 << 20  # of a memory limit; a smaller one was meant in another unit


def fixed(submodel: Submodel) -> Policy:
    """Always `submodel`."""

    def decide(moment: Moment) -> Submodel:
        return submodel

    return _called(f"always {submodel.name}", decide)


def latency(
    tokens_per_s: float, submodels: Sequence[Submodel], hysteresis: float = 0.1, patience: int = 4
) -> Policy:
    """The largest sub-model that keeps up a rate.

    - tokens_per_s: the rate to keep, in tokens a second, above 0.
    - submodels: what to choose among, the smallest first; `Submodel.by_size` gives such a list.
    - hysteresis: how far the smoothed rate may lie from the target before the sub-model changes, as
      a share of it: 0.1 is a tenth. It goes down when the rate is lower, up when it is higher.
    - patience: tokens that a sub-model writes before it is judged, so that it cannot flutter.

    Raises InputError for a rate that is none, or for what is no `Submodel`.
    """
    if not is_number(tokens_per_s) or not tokens_per_s > 0:
        raise InputError(f"latency target of {tokens_per_s!r:.60} tokens/s; expected above 0")
    _check_submodels(*submodels)
    smoothed = 0.0

    def decide(moment: Moment) -> Submodel:
        nonlocal smoothed
        if moment.active not in submodels:
            return submodels[-1]
        place = submodels.index(moment.active)
        if moment.tokens == 0 or not moment.step_s:
            smoothed = 0.0
            return moment.active
        smoothed = moment.step_s if not smoothed else 0.7 * smoothed + 0.3 * moment.step_s
        if moment.tokens < patience:
            return moment.active
        rate = 1 / smoothed
        if rate < tokens_per_s * (1 - hysteresis):
            return submodels[max(0, place - 1)]
        if rate > tokens_per_s * (1 + hysteresis):
            return submodels[min(len(submodels) - 1, place + 1)]
        return moment.active

    return _called(f"latency {tokens_per_s:g} tokens/s", decide)


def memory(
    limit_bytes: float,
    submodels: Sequence[Submodel],
    resident_bytes: Callable[[], int] = process_bytes,
    release: Callable[[Submodel], int] = lambda submodel: 0,
) -> Policy:
    """The next smaller sub-model whenever the process holds more memory than a limit.

    - limit_bytes: the limit, in bytes: 3.5 GiB are 3.5 * 2**30. A MiB or more.
    - submodels: what to choose among, the smallest first; `Submodel.by_size` gives such a list.
    - resident_bytes: a function that returns the bytes that the process holds now; left out, its
      resident set (RSS), touched pages of the model's file included. Linux alone tells it.
    - release: a function that is given the smaller sub-model, lets go the pages of the file that it
      does not use, and returns how many bytes those were: `Model.release`, of a model loaded with
      repack=False. Left out, nothing is let go.

    It never goes back up by itself: what was given back would only be taken again. Raises
    InputError for a limit that is none, or for what is no `Submodel`.
    """
    if not is_number(limit_bytes) or not limit_bytes >= LEAST_BYTES:
        raise InputError(
            f"memory limit of {limit_bytes!r:.60} bytes; expected {LEAST_BYTES} or more: "
            "3.5 GiB are 3.5 * 2**30"
        )
    _check_submodels(*submodels)

    def decide(moment: Moment) -> Submodel:
        last = len(submodels) - 1
        place = submodels.index(moment.active) if moment.active in submodels else last
        if resident_bytes() > limit_bytes and place > 0:
            place -= 1
            release(submodels[place])
        return submodels[place]

    return _called(f"memory {limit_bytes / 2**30:.2g} GiB", decide)


def difficulty(easy: Submodel, hard: Submodel, entropy: float) -> Policy:
    """A smaller sub-model while the model is sure of the next token, a larger one where it is not.

    - easy: runs while the scores of the next token have an entropy below `entropy`.
    - hard: runs otherwise. Both should write the same keys and values (`Submodel.same_keys`), so
      that changing at any token leaves no trace; `Submodel.easy` is such a part of a whole model.
    - entropy: the limit in nats, 0 or more: 0.69 is a coin toss between two tokens, 0 is certainty.

    Raises InputError for a limit that is none, or for what is no `Submodel`.
    """
    if not is_number(entropy) or entropy < 0:
        raise InputError(f"entropy threshold of {entropy!r:.60} nats; expected 0 or more")
    _check_submodels(easy, hard)

    def decide(moment: Moment) -> Submodel:
        return easy if entropy_nats(moment.scores) < entropy else hard

    return _called(f"difficulty {entropy:g} nats", decide)


def entropy_nats(scores: Floats) -> float:
    """The entropy of the softmax of scores (V,), in nats: 0 is certainty, log(V) knows nothing."""
    chances = softmax(scores, 1.0)
    chances = chances[chances > 0]
    return -float((chances * np.log(chances)).sum(dtype=np.float64))


def check_policy(policy: Policy | None) -> Policy | None:
    """A policy as it is, or None; InputError for what cannot be called."""
    if policy is not None and not callable(policy):
        raise InputError(
            f"policy = {shown(policy)}; expected a function, or None: gemelo.latency_policy, "
            "memory_policy and difficulty_policy make one"
        )
    return policy


def check_turn(policy: Policy | None, drafts: bool, active: Submodel | None, n: int) -> None:
    """Raise InputError for a turn of n continuations that a policy or a draft has no part in: a
    policy is asked before every token of one continuation, and of one alone are guesses made."""
    if policy is not None and active is None:
        raise InputError("the model has no sub-models, so that a policy has nothing to choose")
    if policy is not None and (n > 1 or drafts):
        other = "n > 1" if n > 1 else "a draft"
        raise InputError(f"a policy chooses the size, which {other} excludes; set one to None")
    if drafts and n > 1:
        raise InputError(
            f"n = {n}: a draft guesses for one continuation; set n to 1, or the draft to None"
        )


def _called(name: str, policy: Policy) -> Policy:
    """The policy by a name for people."""
    policy.__name__ = name
    return policy


def _check_submodels(*submodels: Submodel) -> None:
    for submodel in submodels:
        if not isinstance(submodel, Submodel):
            raise InputError(
                f"a policy chooses among Submodel values, not {submodel!r:.60}: "
                "Submodel.named(name, model.config), or Submodel.by_size(model.config)"
            )
    if not submodels:
        raise InputError("a policy has no sub-models to choose from; give one or more")
