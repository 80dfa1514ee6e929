"""A session: one timeline of tokens, and the cache that holds them.

Callers are stateless: they pass the whole token list every time, and the session finds the longest
prefix it already holds, rewinds to it and reads only the rest. A turn that was interrupted anywhere
leaves the session usable, because what it claims to hold is only what a finished step has written.
A session is one thread's at a time: a turn beside another thread's, or a stream that is resumed
after a later turn, raises `SessionBusyError` and changes nothing (`turns`).

With Gemma 3n a session can change size between tokens (`use`, or a policy), draft with a sub-model,
and knows for every position which size wrote it.

    for piece in session.stream(ids, Sampling(temperature=0)):
        print(piece.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

import torch
from torch import Tensor

from gemelo.config import ModelConfig, Submodel
from gemelo.config.options import RepairMode
from gemelo.config.sampling import Sampling
from gemelo.engine import step
from gemelo.engine.continuation import Piece, Row
from gemelo.engine.elastic.policy import Moment, Policy
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.elastic.views import Repair, Sizes
from gemelo.engine.kv import KVCache, RewindError
from gemelo.engine.step import Decoder
from gemelo.engine.timings import Stats, Timings
from gemelo.engine.tokens import Soft, before_block, chunks, shared
from gemelo.engine.turns import Turn, Turns
from gemelo.errors import ContextLengthError, InputError
from gemelo.inputs.tokenizer.token_ids import token_ids
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.weights.mapped import check as check_files

Progress = Callable[[int, int], None]  # tokens read, tokens in all
REPAIR_TOKENS = 8  # encoded beside every new token; small batches cost little more than one token


class Session:
    """One timeline. `ids` is what the cache holds, `writers` which size wrote each position."""

    def __init__(self, sizes: Sizes, tokenizer: Tokenizer, cache: KVCache) -> None:
        self.sizes, self.tokenizer, self.cache = sizes, tokenizer, cache
        self.ids: list[int] = []
        self.soft: Sequence[Soft] = ()  # what stands in place of those that are no text
        self.writers: list[Submodel | None] = []
        self.active: Submodel | None = sizes.full
        self.policy: Policy | None = None
        self.draft: Draft | None = None
        self.repair_mode: RepairMode = "off"
        self.timings, self.stats, self.seed = Timings(), Stats(), 0
        self.turns = Turns()
        self._repair: Repair | None = None
        self._step_s = 0.0
        self._since = 0  # tokens written since the last switch

    @property
    def decoder(self) -> Decoder:
        """The decoder of the active size."""
        return self.sizes.view(self.active)

    def another(self) -> Session:
        """A session set up as this one is, empty; both count in the same statistics."""
        made = Session(self.sizes, self.tokenizer, self.cache.empty())
        made.active, made.policy, made.draft = self.active, self.policy, self.draft
        made.repair_mode, made.stats = self.repair_mode, self.stats
        return made

    # ---- sizes -----------------------------------------------------------------------------------

    def use(self, choice: str | Submodel, repair: RepairMode = "off") -> None:
        """Go on with a sub-model from the next token; nothing is allocated or copied.

        repair says what becomes of positions that another size wrote and this one would have
        written otherwise: "off" keeps them, "now" encodes them again at once, "lazy" a few beside
        every later token. Sizes with the same keys need none. Between two pieces of a stream it
        may be called by the thread that has the stream; raises SessionBusyError in any other.
        """
        self.turns.beside()
        submodel = self.sizes.named(choice)
        self.repair_mode = repair
        if submodel != self.active:
            self.stats.switches += 1
            self.active, self._since, self._step_s = submodel, 0, 0.0
        self._repair = None
        if repair == "now":
            while self.stale:
                self._repair_some(self.cache.chunk)

    @property
    def stale(self) -> int:
        """Positions that the active size would have written otherwise."""
        writers = {id(writer): writer for writer in self.writers}
        other = {
            key for key, writer in writers.items() if not self.sizes.same_keys(writer, self.active)
        }
        return sum(id(writer) in other for writer in self.writers)

    @property
    def provenance(self) -> list[str]:
        """For every position held, the name of the size that wrote it."""
        return [writer.name if writer else "" for writer in self.writers]

    def _repair_some(self, count: int) -> None:
        """Encode a little more of a clean cache; take it when it has caught up."""
        if self._repair is None:
            clean = next(
                (
                    place
                    for place, writer in enumerate(self.writers)
                    if not self.sizes.same_keys(writer, self.active)
                ),
                len(self.writers),
            )
            self._repair = Repair(self.decoder, self.cache, clean)
        self.stats.repaired_tokens += self._repair.advance(self.ids, count, self.soft)
        if self._repair.done == len(self.ids):
            self.cache = self._repair.cache
            self.writers = [self.active] * len(self.ids)
            self.stats.repairs += 1
            self._repair = None

    def _decide(self, scores: Tensor) -> None:
        if self.policy is not None and self.active is not None:
            moment = Moment(self.active, scores, self._step_s, self._since)
            chosen = self.policy(moment)
            if chosen != self.active:
                self.use(chosen, self.repair_mode)

    # ---- turns -----------------------------------------------------------------------------------

    def stream(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        progress: Progress | None = None,
        soft: Sequence[Soft] = (),
    ) -> Generator[Piece]:
        """Continue `ids`, reusing what the session holds of them. Close it, or stop, at any time.

        soft: the pictures and sounds among the ids, in order, as their towers made them.
        With sampling.n > 1 the prompt is read once and its cache copied; the session keeps the
        prompt and none of the answers. Its turn begins with the first piece; SessionBusyError is
        raised there if another thread has one, and at any later piece if this session has begun
        another turn since.
        """
        wanted = check(ids, self.cache.config, self.cache.context)
        yield from self.answer(self.turns.begin(), wanted, sampling, progress, soft)

    def answer(
        self,
        turn: Turn,
        ids: Sequence[int],
        sampling: Sampling,
        progress: Progress | None,
        soft: Sequence[Soft],
    ) -> Generator[Piece]:
        """What `stream` gives, in a turn that was begun; ids are checked."""
        pieces = self._pieces(ids, sampling, progress, soft)
        try:
            while (piece := turn.run(next, pieces, None)) is not None:
                yield piece
        finally:
            turn.over = True

    def _pieces(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        progress: Progress | None,
        soft: Sequence[Soft],
    ) -> Generator[Piece]:
        self.timings = timings = Timings()
        started = time.perf_counter()
        scores = self._read(ids, progress, soft)
        rows = [Row(self.tokenizer, ids, sampling, index) for index in range(sampling.n)]
        self.seed = rows[0].sampler.seed
        if sampling.n > 1:
            pieces = self._branch(rows, scores)
        elif self.draft is not None:
            pieces = self._speculate(rows[0], scores, self.draft)
        else:
            pieces = self._continue(rows[0], scores)
        clock = time.perf_counter()
        timings.prefill_s = clock - started
        for piece in pieces:
            timings.decode_tokens = sum(max(0, len(row.ids) - 1) for row in rows)
            timings.decode_s += time.perf_counter() - clock
            yield piece
            clock = time.perf_counter()  # what the caller did meanwhile is not ours
        check_files(self.sizes.files)  # what was written over in a turn may have been read in it

    def read(
        self,
        ids: Sequence[int],
        progress: Progress | None = None,
        soft: Sequence[Soft] = (),
    ) -> Tensor:
        """Bring the cache to hold `ids`, reusing a common prefix; scores (V,) of what follows."""
        wanted = check(ids, self.cache.config, self.cache.context)
        return self.turns.once(self._read, wanted, progress, soft)

    @torch.inference_mode()
    def _read(self, ids: Sequence[int], progress: Progress | None, soft: Sequence[Soft]) -> Tensor:
        keep = self._share(ids, soft, len(ids) - 1)
        self.timings.reused_tokens, self.timings.prefill_tokens = keep, len(ids) - keep

        def done(position: int) -> None:
            self._hold(ids[len(self.ids) : position])
            if progress is not None:
                progress(position - keep, len(ids) - keep)

        return step.prefill(self.decoder, self.cache, ids, keep, done, soft)

    def listen(self, ids: Sequence[int], soft: Sequence[Soft]) -> None:
        """Bring the cache to hold `ids`, which are not all yet: nothing is scored, and Gemma 3n's
        layers without keys of their own do not run."""
        wanted = check(ids, self.cache.config, self.cache.context)
        self.turns.once(self._listen, wanted, soft)

    def _listen(self, ids: Sequence[int], soft: Sequence[Soft]) -> None:
        keep = self._share(ids, soft, len(ids))
        for begin, end in chunks(keep, len(ids), self.cache.chunk, soft):
            step.write(self.decoder, self.cache, ids, begin, end, soft)
            self._hold(ids[begin:end])

    def _share(self, ids: Sequence[int], soft: Sequence[Soft], most: int) -> int:
        """Forget what is held beyond the common prefix with ids, and how long that is."""
        check_files(self.sizes.files)
        keep = min(common_prefix(self.ids, ids), shared(self.soft, soft), most)
        self._forget(before_block(keep, soft))
        self.soft = soft
        return len(self.ids)

    def _continue(self, row: Row, scores: Tensor) -> Iterator[Piece]:
        """One token after another, in whatever size is active."""
        while True:
            self._decide(scores)
            piece = row.choose(scores, last=len(self.ids) >= self.cache.context)
            self.decoder.prefetch(row.ids[-1:])  # while the caller has the piece
            yield piece
            if row.finish_reason is not None:
                return
            scores = self._append(row.ids[-1:])[-1]

    def _speculate(self, row: Row, scores: Tensor, draft: Draft) -> Iterator[Piece]:
        """Rounds of guesses and their verification; the same text as without."""
        yield row.choose(scores, last=len(self.ids) >= self.cache.context)
        while row.finish_reason is None:
            position = len(self.ids)
            room = min(self.cache.context - position, self.cache.chunk) - 1
            gamma = max(0, min(draft.gamma, room, row.sampling.max_tokens - len(row.ids) - 1))
            guesses = draft.propose(self.cache, row, position, gamma) if gamma else []
            started = time.perf_counter()
            all_scores = self._append([row.ids[-1], *(guess.id for guess in guesses)])
            seconds = time.perf_counter() - started
            accepted = 0
            for place, after in enumerate(all_scores):
                guess = guesses[place] if place < len(guesses) else None
                last = position + place + 1 >= self.cache.context
                piece = row.choose(after, last, guess)
                if row.finish_reason is not None:
                    self._forget(position + place + 1)
                yield piece
                if row.finish_reason is not None or guess is None or row.ids[-1] != guess.id:
                    break
                accepted += 1
            draft.learn(guesses, accepted, seconds)
            if guesses:  # a plain step has nothing to take back
                self._forget(position + accepted + 1)

    def _branch(self, rows: Sequence[Row], scores: Tensor) -> Iterator[Piece]:
        """Many continuations of one prompt, in step with each other on a copied cache."""
        cache, position = self.cache.repeat(len(rows)), len(self.ids)
        together = scores.expand(len(rows), -1)
        while True:
            for row, row_scores in zip(rows, together, strict=True):
                if row.finish_reason is None:
                    yield row.choose(row_scores, last=position >= cache.context)
            live = [row.finish_reason is None for row in rows]
            if not any(live):
                return
            tokens = [row.ids[-1] if row.ids else 0 for row in rows]
            places = [position if alive else -1 for alive in live]
            together = step.decode(self.decoder, cache, tokens, places)
            position += 1

    def _append(self, tokens: Sequence[int]) -> Tensor:
        """Write tokens after what is held; scores (T, V) after each."""
        started = time.perf_counter()
        scores = step.verify(self.decoder, self.cache, tokens, len(self.ids))
        self._step_s = time.perf_counter() - started
        self._hold(tokens)
        if self.repair_mode == "lazy" and self.stale:
            self._repair_some(REPAIR_TOKENS + len(tokens))
        return scores

    def _hold(self, tokens: Sequence[int]) -> None:
        """Note what a finished step has written, and who did."""
        self.ids.extend(tokens)
        self.writers.extend([self.active] * len(tokens))
        self._since += len(tokens)
        self.stats.tokens[self.active.name if self.active else ""] += len(tokens)

    def _forget(self, end: int) -> None:
        """Hold `end` tokens and no more; none at all, if the rings do not reach back so far."""
        try:
            self.cache.rewind(0, end)
        except RewindError:
            self.cache.clear()
            end = 0
        if end < len(self.ids):
            self._repair = None
        del self.ids[end:], self.writers[end:]


def check(values: Sequence[int], config: ModelConfig, context: int) -> list[int]:
    """Ids that can be run; raises unless they are some, in the vocabulary, within the context."""
    ids = token_ids(values)
    if not ids:
        raise InputError("the prompt is empty; give at least one token")
    for token in (min(ids), max(ids)):
        if not 0 <= token < config.vocab_size:
            raise InputError(f"token id {token} is outside 0 to {config.vocab_size - 1}")
    if len(ids) > context:
        raise ContextLengthError(
            f"the prompt has {len(ids)} tokens and the context holds {context} "
            f"(the model takes {config.max_position_embeddings})"
        )
    return ids


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading tokens the two have in common."""
    for index, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return index
    return min(len(held), len(wanted))
