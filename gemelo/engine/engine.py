"""Inference engine: a decoder and a tokenizer with context, chunk and KV cache format of a run.

Sessions are sequences on it; sub-models are views of its decoder.

    session = Engine(decoder, tokenizer).session()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemelo.config.options import KVFormat
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.kv import KVCache, check_kv_format
from gemelo.engine.memory.pages import available_bytes
from gemelo.engine.session import Session
from gemelo.engine.slots import check_context
from gemelo.engine.tokens import Tokens, checked
from gemelo.errors import UnavailableError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import Floats
from gemelo.weights.mapped import check as check_files


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
    ) -> None:
        """context None is all that the model was trained for; the cache grows as it is used.

        kv_format None is the decoder's own choice: bfloat16 where the native kernels run on weights
        of 16 bits or fewer. name is what the decoder's size is called in statistics.
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

    def cache(self) -> KVCache:
        """An empty cache of one sequence."""
        return self.decoder.cache(self.context, self.chunk, self.kv_format)

    def session(self, take_load_s: Callable[[], float] = lambda: 0.0) -> Session:
        """A new session, empty. take_load_s gives the seconds of loading that a turn has to count;
        every turn asks, and all but a model's first are given 0."""
        return Session(self.views, self.tokenizer, self.cache(), take_load_s)

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
