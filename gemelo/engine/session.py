"""Session: one conversation: a cached sequence, the sub-model that is active, and turns on it.

Callers are stateless: they pass the whole token list every time, and the session reads what it does
not hold already (`sequence`). A turn that was interrupted anywhere leaves the session usable. A
session is one thread's at a time: a turn beside another thread's, or a stream that is resumed after
a later turn, raises `SessionBusyError` and changes nothing (`turns`).

A turn is a task (`task`): it asks for steps and gives pieces of text. Its steps are computed in
this thread while no others are wanted, else together with those of other callers (`loop`).

With Gemma 3n a session can change size between tokens (`use`, or a policy), draft with a sub-model
(`speculate`), and knows for every position which size wrote it.

    for piece in session.stream(ids, temperature=0):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Unpack

from gemelo.config import Submodel
from gemelo.config.options import RebuildMode, checked_rebuild
from gemelo.config.sampling import Sampling, SamplingSettings
from gemelo.config.submodel import WHOLE
from gemelo.engine.completion import Completion
from gemelo.engine.continuation import Continuation, Piece
from gemelo.engine.decoder import Decoder
from gemelo.engine.elastic.policy import Moment, Policy, check_policy, check_turn
from gemelo.engine.elastic.rebuild import CacheRebuild
from gemelo.engine.elastic.speculative import Draft, check_draft, speculate
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.kv import KVCache
from gemelo.engine.loop import StepLoop
from gemelo.engine.parallel_sampling import continue_all
from gemelo.engine.scores import read_only
from gemelo.engine.sequence import CachedSequence
from gemelo.engine.task import Task, Works
from gemelo.engine.timings import Stats, Timings
from gemelo.engine.tokens import EmbeddingSpan, Tokens, checked
from gemelo.engine.turns import Turn, Turns
from gemelo.engine.unpicklable import Unpicklable
from gemelo.errors import InputError
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import Floats
from gemelo.weights.mapped import check as check_files

Progress = Callable[[int, int], None]  # tokens read, tokens in all
REBUILD_TOKENS = 8  # encoded beside every new token; small batches cost little more than one token


class Session(Unpicklable):
    """One conversation. `ids` is what the cache holds, `spans` the embeddings among them, `timings`
    of the last turn, `stats` of all. `policy`, `draft` and `rebuild_mode` may be set between turns.
    """

    def __init__(
        self,
        views: SubmodelViews,
        tokenizer: Tokenizer,
        sequence: CachedSequence,
        loop: StepLoop,
        take_load_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """take_load_s gives the seconds of loading that a turn has to count; every turn asks."""
        self.views, self.tokenizer, self.sequence, self.loop = views, tokenizer, sequence, loop
        self.active: Submodel | None = views.whole
        self._policy: Policy | None = None
        self._draft: Draft | None = None
        self._rebuild_mode: RebuildMode = "off"
        self.timings, self.stats, self.seed = Timings(), Stats(), 0
        self.turns = Turns()
        self._rebuild: CacheRebuild | None = None
        self._take_load_s, self._step_s = take_load_s, 0.0
        self._since = 0  # tokens written since the last switch

    @property
    def decoder(self) -> Decoder:
        """The decoder of the active size."""
        return self.views.view(self.active)

    @property
    def cache(self) -> KVCache:
        """The keys and values of what is held."""
        return self.sequence.cache

    @property
    def ids(self) -> list[int]:
        """The token ids that the cache holds."""
        return self.sequence.ids

    @property
    def spans(self) -> list[EmbeddingSpan]:
        """The embeddings among them."""
        return self.sequence.spans

    @property
    def tokens(self) -> Tokens:
        """What the cache holds."""
        return self.sequence.tokens

    def __repr__(self) -> str:
        size = "" if self.active is None else f", {self.active.name or 'custom'} is active"
        return f"Session({len(self.ids)} of {self.cache.context} tokens{size})"

    # ---- sizes -----------------------------------------------------------------------------------

    def use(self, choice: str | Submodel, rebuild: RebuildMode = "off") -> None:
        """Go on with a sub-model from the next token; nothing is allocated or copied.

        rebuild says what becomes of positions that another size wrote and this one would have
        written otherwise: "off" keeps them, "now" encodes them again at once, "lazy" a few beside
        every later token. Sizes with the same keys need none. Between two pieces of a stream it
        may be called by the thread that has the stream; raises SessionBusyError in any other.
        """
        self.turns.beside()
        submodel, self.rebuild_mode = self.views.parse(choice), rebuild
        self._switch(submodel)
        if rebuild == "now":
            self.loop.finish(self._rebuild_all())

    def _switch(self, submodel: Submodel) -> None:
        if submodel != self.active:
            self.stats.switches += 1
            self.active, self._since, self._step_s = submodel, 0, 0.0
        self._rebuild = None

    def speculate(self, choice: str | Submodel, gamma: int | None = None) -> Draft:
        """Draft with a sub-model from the next turn on; returns what is learnt about it.

        gamma None adapts the number of guesses to what is measured, down to none. The draft shares
        the model's weights; for one with a copy of its own see `Model.draft`.
        """
        part = self.views.parse(choice)
        self.draft = draft = Draft(self.views.view(part), gamma, name=part.name or "custom")
        return draft

    @property
    def policy(self) -> Policy | None:
        """What chooses the size before every token; what cannot be called is refused."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy | None) -> None:
        self._policy = check_policy(policy)

    @property
    def rebuild_mode(self) -> RebuildMode:
        """What becomes of stale positions when a policy changes the size: see `use`."""
        return self._rebuild_mode

    @rebuild_mode.setter
    def rebuild_mode(self, mode: RebuildMode) -> None:
        self._rebuild_mode = checked_rebuild(mode)

    @property
    def draft(self) -> Draft | None:
        """What drafts from the next turn on; one of another architecture is refused."""
        return self._draft

    @draft.setter
    def draft(self, draft: Draft | None) -> None:
        if draft is not None:
            check_draft(draft, self.cache.config)
        self._draft = draft

    @property
    def num_stale(self) -> int:
        """Positions that the active size would have written otherwise."""
        return sum(self._stale())

    def _stale(self) -> list[bool]:
        """Of every position, whether it is one of those."""
        return self.views.stale(self.sequence.writers, self.active)

    @property
    def written_by(self) -> list[str]:
        """For every position held, the name of the size that wrote it."""
        return [writer.name if writer else WHOLE for writer in self.sequence.writers]

    def _rebuild_all(self) -> Task[None]:
        """Encode all that is stale again."""
        while self.num_stale:
            yield self._rebuild_works(self.tokens, self.cache.chunk)
            self._take_rebuilt()

    def _rebuild_works(self, tokens: Tokens, count: int) -> Works:
        """What encodes a little more of a clean cache."""
        if self._rebuild is None:
            self._rebuild = CacheRebuild(self.decoder, self.cache, self._stale().index(True))
        return self._rebuild.works(tokens, count)

    def _take_rebuilt(self) -> None:
        """The clean cache takes the place of the stale one when it has caught up."""
        rebuild = self._rebuild
        assert rebuild is not None, "its works were asked for"
        self.stats.rebuilt_tokens += rebuild.take_encoded()
        if rebuild.done == len(self.ids):
            self.stats.rebuilds += 1
            self.sequence.replace_cache(rebuild.cache, self.active)
            self._rebuild = None

    def _decide(self, scores: Floats) -> Task[None]:
        if self.policy is not None and self.active is not None:
            moment = Moment(self.active, read_only(scores), self._step_s, self._since)
            chosen = self.policy(moment)
            if not isinstance(chosen, Submodel):
                raise InputError(f"the policy chose {chosen!r:.60}; expected a Submodel")
            if chosen != self.active:
                self._switch(chosen)
                if self.rebuild_mode == "now":
                    yield from self._rebuild_all()

    # ---- turns -----------------------------------------------------------------------------------

    def stream(
        self,
        tokens: Sequence[int] | Tokens,
        sampling: Sampling | None = None,
        progress: Progress | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Generator[Piece]:
        """Continue tokens, reusing what the session holds of them. Close it, or stop, at any time.

        Keyword arguments are `Sampling`'s fields. With n > 1 the prompt is read once and its cache
        copied; the session keeps the prompt and none of the answers, and neither a draft nor a
        policy goes with it. Its turn begins with the first piece; SessionBusyError is raised there
        if another thread has one, and at any later piece if this session has begun another turn
        since.
        """
        chosen = Sampling.of(settings, sampling)
        return self._stream(self._prompt(tokens), chosen, progress)

    def _stream(
        self, tokens: Tokens, sampling: Sampling, progress: Progress | None
    ) -> Generator[Piece]:
        yield from self.answer(self.turns.begin(), tokens, sampling, progress)

    def _prompt(self, tokens: Sequence[int] | Tokens) -> Tokens:
        """Tokens that can be run; InputError for a text, which `Model.tokens` makes tokens of."""
        if isinstance(tokens, str | bytes):
            raise InputError(
                f"a session takes token ids, not the text {tokens!r:.60}: give model.tokens(text)"
            )
        return checked(Tokens.of(tokens), self.cache.config, self.cache.context)

    def generate(
        self,
        tokens: Sequence[int] | Tokens,
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Completion:
        """Continue tokens to the end. Keyword arguments are `Sampling`'s fields."""
        chosen, prompt = Sampling.of(settings, sampling), self._prompt(tokens)
        pieces = list(self.answer(self.turns.begin(), prompt, chosen))
        return Completion.of(prompt.ids, pieces, self.timings, self.seed, chosen.n)

    def answer(
        self, turn: Turn, tokens: Tokens, sampling: Sampling, progress: Progress | None = None
    ) -> Generator[Piece]:
        """What `stream` gives, in a turn that was begun; tokens are checked."""
        task = self.task(tokens, sampling, progress)
        try:
            while (piece := turn.run(self.loop.advance, task)) is not None:
                yield piece
        finally:
            turn.over = True

    def task(
        self, tokens: Tokens, sampling: Sampling, progress: Progress | None = None
    ) -> Task[None]:
        """A turn as a task that somebody else runs; tokens are checked."""
        check_turn(self.policy, self.draft is not None, self.active, sampling.n)
        load_s = self._take_load_s() + self.decoder.prepare(len(tokens))
        self.timings = timings = Timings(load_s)
        started = time.perf_counter()
        scores = yield from self._read(tokens, progress, timings)
        rows = [
            Continuation(self.tokenizer, tokens.ids, sampling, index) for index in range(sampling.n)
        ]
        self.seed = rows[0].sampler.seed
        if sampling.n > 1:
            task = continue_all(rows, scores, self.decoder, self.cache, len(self.ids))
        elif self.draft is not None:
            task = speculate(self.draft, rows[0], scores, self.sequence, self._append, self._forget)
        else:
            task = self._continue(rows[0], scores)
        timings.prefill_s = time.perf_counter() - started
        yield from self._timed(task, rows, timings)
        check_files(self.views.files)  # what was written over in a turn may have been read in it

    def _timed(
        self, task: Task[None], rows: Sequence[Continuation], timings: Timings
    ) -> Task[None]:
        """The same task, its pieces counted."""
        clock, scorer, scores = time.perf_counter(), self.active, None
        while True:
            try:
                item = task.send(scores)
            except StopIteration:
                return
            if not isinstance(item, Piece):
                scores = yield item
                continue
            self.stats.answered[scorer.name if scorer else WHOLE] += len(item.token_ids)
            timings.decode_tokens = sum(max(0, len(row.ids) - 1) for row in rows)
            timings.decode_s += time.perf_counter() - clock
            yield item
            # What the caller did meanwhile is not ours, and a move is no decoding.
            if item.finish_reason is None:
                timings.repack_s += self.decoder.prepare(1)
            clock, scorer, scores = time.perf_counter(), self.active, None

    def read(self, tokens: Sequence[int] | Tokens, progress: Progress | None = None) -> Floats:
        """Bring the cache to hold tokens, reusing a common prefix; scores (V,) of what follows."""
        task = self._read(self._prompt(tokens), progress, Timings())
        return self.turns.once(self.loop.finish, task)

    def _read(self, tokens: Tokens, progress: Progress | None, timings: Timings) -> Task[Floats]:
        shared = read = self._rewind_to(tokens, len(tokens) - 1)
        self.timings, writer = timings, self.active  # whom `progress` may change
        timings.reused_tokens, timings.prefill_tokens = shared, len(tokens) - shared

        def told(position: int) -> None:
            nonlocal read
            self._count(position - read, writer)
            read = position
            if progress is not None:
                progress(position - shared, len(tokens) - shared)

        return (yield from self.sequence.read(self.decoder, writer, tokens, told))

    def write(self, tokens: Sequence[int] | Tokens) -> None:
        """Bring the cache to hold tokens: nothing is scored, and Gemma 3n's layers without keys of
        their own do not run. For a prompt that is still going on; `extend` goes on with it."""
        self.turns.once(self.loop.finish, self._write(self._prompt(tokens)))

    def extend(self, tokens: Sequence[int] | Tokens) -> None:
        """Write more tokens after those that are held, at a cost that does not grow with these."""
        more = Tokens.of(tokens)
        more = Tokens(token_ids(more.ids), more.spans)
        if len(more):
            more = checked(more, self.cache.config, self.cache.context, num_held=len(self.ids))
            self.turns.once(self.loop.finish, self._extend(more))

    def _write(self, tokens: Tokens) -> Task[None]:
        shared = self._rewind_to(tokens, len(tokens))
        yield from self.sequence.write(self.decoder, self.active, tokens)
        self._count(len(tokens) - shared, self.active)

    def _extend(self, more: Tokens) -> Task[None]:
        check_files(self.views.files)
        yield from self.sequence.extend(self.decoder, self.active, more)
        self._count(len(more), self.active)

    def _rewind_to(self, tokens: Tokens, limit: int) -> int:
        """Forget what is held beyond the usable prefix of tokens, at most `limit`; its length."""
        check_files(self.views.files)
        shared = self.sequence.rewind_to(tokens, limit)
        if self._rebuild is not None:
            self._rebuild.rewind(shared)
        return shared

    def _continue(self, row: Continuation, scores: Floats) -> Task[None]:
        """One token after another, in whatever size is active."""
        while True:
            yield from self._decide(scores)
            piece = row.choose(scores, last=len(self.ids) >= self.cache.context)
            self.decoder.prefetch(row.ids[-1:])  # while the caller has the piece
            yield piece
            if row.finish_reason is not None:
                return
            scores = (yield from self._append(row.ids[-1:]))[-1]

    def _append(self, ids: Sequence[int]) -> Task[Floats]:
        """Write the last token, and guesses after it; scores (T, V) after each."""
        started = time.perf_counter()
        lazily = self.rebuild_mode == "lazy" and self.num_stale > 0
        whole = self.tokens + Tokens(ids)
        beside = self._rebuild_works(whole, REBUILD_TOKENS + len(ids)) if lazily else []
        scores = yield from self.sequence.append(self.decoder, self.active, ids, beside)
        self._step_s = time.perf_counter() - started
        self._count(len(ids), self.active)
        if lazily:
            self._take_rebuilt()
        return scores

    def _count(self, count: int, writer: Submodel | None) -> None:
        """Tokens that a size has written."""
        self._since += count
        self.stats.tokens[writer.name if writer else WHOLE] += count

    def _forget(self, end: int) -> None:
        """Hold `end` tokens and no more."""
        self.sequence.forget(end)
        if self._rebuild is not None:
            self._rebuild.rewind(len(self.ids))
