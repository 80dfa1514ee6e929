"""Speculative decoding: draft with a sub-model, verify with the whole; one cache for both.

The draft writes its guesses' keys into the cache; the verifier reads all of them at once, writing
its own keys over the draft's, and scores every position. Greedy output is the verifier's token
for token; sampled output has the verifier's distribution (arXiv 2211.17192, section 2.3).
Rejected positions are rewound.

How many tokens to draft follows from what is measured: the acceptance rate (the paper's alpha),
and what a guess and a verification take of a plain step's time (its c, and 1 there). When no number
of guesses pays, it drafts nothing, and tries again after a while.

    guesses = draft.propose(cache, row, position)
    draft.learn(guesses, accepted, verify_s)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gemelo.config import ModelConfig
from gemelo.engine.continuation import Continuation
from gemelo.engine.decoder import FEW_TOKENS, Decoder
from gemelo.engine.kv import KVCache
from gemelo.engine.sampler import Guess
from gemelo.engine.sequence import CachedSequence
from gemelo.engine.task import Task
from gemelo.engine.tokens import Tokens
from gemelo.engine.work import Work
from gemelo.errors import InputError
from gemelo.kernels.quants import Floats

MOST = 8  # guesses a round
# Tokens that a pass verifies: so many have the very numbers of as many passes (docs/kernels.md).
MOST_VERIFIED = FEW_TOKENS
RETRY = 64  # plain steps before a draft that did not pay is tried again


@dataclass
class Draft:
    """A drafting decoder and what has been learnt about it. `fixed_gamma` None adapts the number of
    guesses to that; a round has 15 at most, which is as many as are verified to the same bits.
    Times are in seconds; `name` is what the draft is called in statistics."""

    decoder: Decoder = field(repr=False)
    fixed_gamma: int | None = None
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    acceptance_rate: float = 0.8  # smoothed; the guess before anything is known
    draft_s: float = 0.0  # smoothed seconds of one draft step
    full_s: float = 0.0  # of one plain step of the verifier
    verify_s: dict[int, float] = field(default_factory=dict)  # of verifying n guesses
    name: str = ""
    _rest: int = 0  # plain steps still to take

    @property
    def gamma(self) -> int:
        """Guesses worth making now."""
        if self.fixed_gamma is not None:
            return self.fixed_gamma
        if self._rest:
            return 0
        if not self.full_s:
            return 0  # measure a plain step first
        if not self.draft_s:
            return 2
        best = max(range(MOST + 1), key=self.speedup)
        if best == 0:
            self._rest = RETRY
        return best

    def speedup(self, gamma: int) -> float:
        """Expected tokens per full step's time: (1 - a^(g+1)) / (1 - a) / (g c + v)."""
        if gamma == 0:
            return 1.0
        a = min(self.acceptance_rate, 0.999)
        tokens = (1 - a ** (gamma + 1)) / (1 - a)
        seconds = gamma * self.draft_s + self.verification_s(gamma)
        return tokens * self.full_s / seconds

    def verification_s(self, gamma: int) -> float:
        """Seconds of verifying `gamma` guesses: as measured, or by the nearest measured number."""
        if not self.verify_s:
            return self.full_s
        nearest = min(self.verify_s, key=lambda measured: abs(measured - gamma))
        return self.verify_s[nearest] * (1 + gamma) / (1 + min(nearest, gamma))

    def propose(
        self, cache: KVCache, row: Continuation, position: int, gamma: int
    ) -> Task[list[Guess]]:
        """`gamma` guesses of what follows the row's last token, which stands at `position`."""
        guesses: list[Guess] = []
        token = row.ids[-1]
        started = time.perf_counter()
        for ahead in range(position, position + gamma):
            [scores] = yield [Work(self.decoder, cache, Tokens([token]), ahead, 1)]
            guesses.append(row.guess(scores[0], [guess.id for guess in guesses]))
            token = guesses[-1].id
        self.draft_s = smooth(self.draft_s, (time.perf_counter() - started) / gamma)
        return guesses

    def learn(self, guesses: Sequence[Guess], accepted: int, seconds: float) -> None:
        """What became of a round of guesses; none is a plain step."""
        if not guesses:
            self.full_s = smooth(self.full_s, seconds)
            self._rest = max(0, self._rest - 1)
            return
        self.rounds += 1
        self.drafted += len(guesses)
        self.accepted += accepted
        tried = min(accepted + 1, len(guesses))  # those after a rejection were not judged
        for index in range(tried):
            self.acceptance_rate = 0.95 * self.acceptance_rate + 0.05 * (index < accepted)
        before = self.verify_s.get(len(guesses), 0.0)
        self.verify_s[len(guesses)] = smooth(before, seconds)

    @property
    def is_paused(self) -> bool:
        """Whether it makes no guesses for now, because none paid."""
        return self.fixed_gamma is None and self._rest > 0

    @property
    def draft_cost(self) -> float | None:
        """What a guess takes, as a share of a plain step; None before both were measured."""
        return self.draft_s / self.full_s if self.draft_s and self.full_s else None

    @property
    def best_speedup(self) -> float | None:
        """Tokens in a plain step's time at the number of guesses that gives most, or at the fixed
        one; None before a round was measured."""
        if self.draft_cost is None or not self.verify_s:
            return None
        gammas = range(MOST + 1) if self.fixed_gamma is None else (self.fixed_gamma,)
        return max(map(self.speedup, gammas))

    @property
    def tokens_per_round(self) -> float:
        """Tokens per pass of the verifier, its own one included."""
        return (self.accepted + self.rounds) / self.rounds if self.rounds else 1.0


def speculate(
    draft: Draft,
    row: Continuation,
    scores: Floats,
    sequence: CachedSequence,
    append: Callable[[Sequence[int]], Task[Floats]],
    forget: Callable[[int], None],
) -> Task[None]:
    """Rounds of guesses and their verification; the same text as without. append writes tokens and
    scores them; forget takes those back that were not kept."""
    context = sequence.cache.context
    yield row.choose(scores, last=len(sequence.ids) >= context)
    while row.finish_reason is None:
        cache, position = sequence.cache, len(sequence.ids)
        room = min(context - position, cache.chunk, MOST_VERIFIED) - 1
        gamma = max(0, min(draft.gamma, room, row.sampling.max_tokens - len(row.ids) - 1))
        guesses = (yield from draft.propose(cache, row, position, gamma)) if gamma else []
        started = time.perf_counter()
        all_scores = yield from append([row.ids[-1], *(guess.id for guess in guesses)])
        seconds, accepted = time.perf_counter() - started, 0
        for index, after in enumerate(all_scores):
            guess = guesses[index] if index < len(guesses) else None
            last = position + index + 1 >= context
            piece = row.choose(after, last, guess)
            if row.finish_reason is not None:
                forget(position + index + 1)
            yield piece
            if row.finish_reason is not None or guess is None or row.ids[-1] != guess.id:
                break
            accepted += 1
        draft.learn(guesses, accepted, seconds)
        if guesses:  # a plain step has nothing to take back
            forget(position + accepted + 1)


def check_draft(draft: Draft, config: ModelConfig) -> None:
    """Raise InputError if a draft cannot write its keys and values to the cache of a model."""
    if not isinstance(draft, Draft):
        raise InputError(f"a draft is a Draft, not {draft!r:.60}: model.draft(name) makes one")
    ours, its = _shared_with_verifier(config), _shared_with_verifier(draft.decoder.config)
    for name, value in ours.items():
        if its[name] != value:
            raise InputError(
                f"the draft is of another architecture: its {name} is {its[name]!r:.60} and the "
                f"model's {value!r:.60}; draft with a sub-model of the same Gemma 3n"
            )


def _shared_with_verifier(config: ModelConfig) -> dict[str, object]:
    """What a draft and its verifier must have in common: the ids, and the cache."""
    return {
        "vocab_size": config.vocab_size,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "sliding_window": config.sliding_window,
        "layers with keys": [config.layer_types[layer] for layer in config.kv_layers],
    }


def smooth(mean: float, new: float) -> float:
    """An exponential moving average; the first value as it is."""
    return new if not mean else 0.8 * mean + 0.2 * new
