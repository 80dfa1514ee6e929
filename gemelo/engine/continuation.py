"""A continuation of a prompt: sampled tokens, detokenised text, stop texts and finish reason.

It knows no model. It is given scores, samples a token, and says what text may be shown. Text is
held back while it could still be the beginning of a stop text or half of a character, so that what
has been shown never has to be taken back.

    row = Continuation(tokenizer, prompt_ids, Sampling(stop="\\n"))
    while row.finish_reason is None:
        piece = row.choose(scores)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemelo.config.options import FinishReason
from gemelo.config.sampling import Sampling
from gemelo.engine.sampler import Guess, Sampler, Token
from gemelo.engine.scores import leading
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import Floats


@dataclass(frozen=True)
class Piece:
    """What one token adds to a continuation. The texts of all pieces join to the whole text."""

    text: str  # may be empty while a character or a stop text is incomplete
    token_ids: tuple[int, ...]
    index: int = 0  # which continuation, where n > 1
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None


class Continuation:
    """A continuation of `prompt`; `index` tells those of one prompt apart."""

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], sampling: Sampling, index: int = 0
    ) -> None:
        self.prompt, self.sampling, self.index = prompt, sampling, index
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.sampler = Sampler(sampling, index)
        self._vocab_size = tokenizer.vocab_size  # a model's rows may be padded past its last token
        self._stop_ids = () if sampling.ignore_eos else tokenizer.stop_ids
        self._stream = tokenizer.stream()
        self._pending = ""

    def guess(self, scores: Floats, ahead: Sequence[int]) -> Guess:
        """A draft's next token, after this row's and those guessed `ahead`; the row stays."""
        return self.sampler.guess(self._without_padding(scores), self.prompt, [*self.ids, *ahead])

    def choose(self, scores: Floats, last: bool = False, guess: Guess | None = None) -> Piece:
        """Sample from scores (V,), or judge a guess by them, and move on.

        `last`: there is no room for another token.
        """
        token = self.sampler(self._without_padding(scores), self.prompt, self.ids, guess)
        if token.id in self._stop_ids:
            self.finish_reason = "stop"
            return self._piece(token, self._pending + self._stream.flush(), ())
        self.ids.append(token.id)
        self._pending += self._stream.push(token.id)
        text = self._release()
        if self.finish_reason is None and (last or len(self.ids) >= self.sampling.max_tokens):
            self.finish_reason = "length"
            text += self._pending + self._stream.flush()
        return self._piece(token, text, (token.id,))

    def _without_padding(self, scores: Floats) -> Floats:
        """Scores (V,) of the tokens that the tokenizer has."""
        return leading(scores, self._vocab_size)

    def _release(self) -> str:
        """Text that is certain to stay; finishes the row at the first stop text."""
        stops = self.sampling.stop
        begins = [begin for stop in stops if (begin := self._pending.find(stop)) >= 0]
        if begins:
            self.finish_reason = "stop"
            return self._pending[: min(begins)]
        keep = max((overlap(self._pending, stop) for stop in stops), default=0)
        cut = len(self._pending) - keep
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text

    def _piece(self, token: Token, text: str, ids: tuple[int, ...]) -> Piece:
        return Piece(text, ids, self.index, token.logprob, token.top_logprobs, self.finish_reason)


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
