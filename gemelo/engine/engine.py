"""Inference engine: a decoder and a tokenizer with context, chunk and KV cache format of a run.

Sessions are sequences on it; sub-models are views of its decoder.

    session = Engine(decoder, tokenizer).session()
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from gemelo.config.options import KVFormat
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.elastic.policy import check_turn
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.grid import GRID
from gemelo.engine.kv import KVCache, check_kv_format
from gemelo.engine.loop import StepLoop
from gemelo.engine.memory.pages import available_bytes
from gemelo.engine.plan import Admission, KVPlan
from gemelo.engine.prefix_pool import PrefixPool
from gemelo.engine.request import Request
from gemelo.engine.request_queue import RequestQueue
from gemelo.engine.scheduler import Scheduler
from gemelo.engine.sequence import CachedSequence
from gemelo.engine.session import Session
from gemelo.engine.slots import check_context
from gemelo.engine.tokens import Tokens, checked
from gemelo.errors import UnavailableError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import Floats
from gemelo.weights.mapped import check as check_files

IDLE_BYTES = 256 << 20  # of KV caches that ended requests leave behind, if nobody says how many


class Engine:
    """A decoder and a tokenizer, with the context, chunk and cache format of a run."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        context: int | None = None,
        chunk: int = 512,
        kv_format: KVFormat | None = None,
        name: str = "",
        loop: StepLoop | None = None,
        kv_limit_bytes: int | None = None,
    ) -> None:
        """context None is all that the model was trained for; the cache grows as it is used.

        kv_format None is the decoder's own choice: bfloat16 where the native kernels run on weights
        of 16 bits or fewer. name is what the decoder's size is called in statistics. loop is that
        of an engine on the same weights. kv_limit_bytes is what the KV caches of all requests may
        take, those that ended included; None is half of what is free now, and 256 MiB of them for
        those that ended.
        """
        self.decoder, self.tokenizer = decoder, tokenizer
        trained = decoder.config.max_position_embeddings
        self.context = trained if context is None else context
        check_context(decoder.config, self.context)
        # A picture of Gemma 3 goes through in one step.
        self.chunk = max(chunk, decoder.config.bidirectional_image_tokens)
        self.kv_format: KVFormat = kv_format or decoder.kv_format
        check_kv_format(self.kv_format)
        self.views = SubmodelViews(decoder, name)
        self.owns_loop, self.loop = loop is None, loop or StepLoop(Scheduler())
        self.kv_limit_bytes = kv_limit_bytes
        self.requests = self._request_queue(kv_limit_bytes)
        self.load_s_due = 0.0  # seconds of loading that a turn has to count

    def _request_queue(self, kv_limit_bytes: int | None) -> RequestQueue:
        """The requests of all callers, and the sequences that ended ones leave behind."""
        admission = Admission(kv_limit_bytes)
        limit = admission.limit_bytes
        pool_bytes = min(limit, IDLE_BYTES) if kv_limit_bytes is None else limit
        return RequestQueue(
            self._sequence,
            self._session,
            self.loop,
            PrefixPool(pool_bytes, min(GRID, self.chunk)),
            admission,
            self.request_bytes,
        )

    def request_bytes(self, request: Request) -> int:
        """What the KV caches of a request may come to take, with two snapshots.

        Raises InputError for one that cannot be run.
        """
        checked(request.tokens, self.decoder.config, self.context)
        check_turn(None, request.draft is not None, request.submodel, request.sampling.n)
        sampling, num_prompt = request.sampling, len(request.tokens)
        return self._plan.request_bytes(
            num_prompt, sampling.max_tokens, self.context, sampling.n, num_snapshots=2
        )

    @cached_property
    def _plan(self) -> KVPlan:
        config, plain_bytes = self.decoder.config, 4 if self.decoder.device_name == "cpu" else 2
        return KVPlan(config, self.chunk, self.kv_format, plain_bytes)

    def cache(self) -> KVCache:
        """An empty cache of one sequence."""
        return self.decoder.cache(self.context, self.chunk, self.kv_format)

    def session(self) -> Session:
        """A new session, empty."""
        return self._session(self._sequence())

    def _sequence(self) -> CachedSequence:
        return CachedSequence(self.cache())

    def _session(self, sequence: CachedSequence) -> Session:
        return Session(self.views, self.tokenizer, sequence, self.loop, self._take_load_s)

    def _take_load_s(self) -> float:
        """Seconds of loading for the first turn, whichever session has it; then 0."""
        due, self.load_s_due = self.load_s_due, 0.0
        return due

    def score(self, ids: Sequence[int] | Tokens) -> Floats:
        """Scores of the next token after every position, (T, V) float32: 1 MB a token.

        Raises UnavailableError where memory has no room for them.
        """
        tokens = checked(Tokens.of(ids), self.decoder.config, self.context)
        check_room(len(tokens), 4 * len(tokens) * self.decoder.config.vocab_size)
        check_files(self.views.files)
        return step.score(self.decoder, self.cache(), tokens)


def check_room(tokens: int, nbytes: int) -> None:
    """Raise UnavailableError unless memory has room for what so many tokens are to give."""
    available = available_bytes()  # 0 where the system does not say
    if 0 < available < nbytes:
        raise UnavailableError(
            f"what is asked of {tokens} tokens takes {nbytes / 2**30:.1f} GiB, and "
            f"{available / 2**30:.1f} GiB of memory are free; give fewer tokens at once"
        )
