"""One decoder in every size: views of its sub-models, and bringing a cache up to date with one.

A view shares every weight with the whole, and writes its keys to the whole's places in a cache, so
that changing size between tokens allocates nothing. What a smaller model wrote is an approximation
of what a larger one would have written, unless the two agree on all layers that own keys
(`Submodel.same_keys`): then the cache is the very same.

A `Repair` encodes the sequence anew, a few tokens at a time beside the running generation, into a
second cache; when it has caught up, that cache is a clean prefill of the active size and takes the
first one's place.

    sizes = Sizes(decoder)
    small = sizes.view(Submodel.named("E2B", decoder.config))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch

from gemelo.config import ModelConfig, Submodel
from gemelo.engine import step
from gemelo.engine.kv import KVCache, RewindError
from gemelo.engine.native_program import NativeProgram
from gemelo.engine.step import Decoder
from gemelo.engine.tokens import Soft
from gemelo.errors import InputError
from gemelo.weights.mapped import Mapped, behind


class Sizes:
    """The sub-models of one decoder, each made when it is first asked for. Gemma 3 has one size."""

    def __init__(self, whole: Decoder, name: str = "") -> None:
        """name is what the whole is called in statistics, where it is itself a sub-model."""
        self.whole, self.name = whole, name
        self._views: dict[Submodel, Decoder] = {}

    @cached_property
    def files(self) -> list[Mapped]:
        """The maps that its weights came from, and some of them still lie in."""
        return behind((*self.whole.parameters(), *self.whole.buffers()))

    def named(self, choice: str | Submodel) -> Submodel:
        """A sub-model that may run on the whole's cache; else `InputError` with the reason."""
        config = self._config()
        submodel = Submodel.of(choice, config)
        if not submodel.owns_all_keys(config):
            raise InputError(
                f"sub-model {submodel.name or choice!r} skips a layer below "
                f"{len(config.kv_layers)}, which owns keys: cut it out with `gemelo slice` instead"
            )
        return submodel

    @property
    def full(self) -> Submodel | None:
        """The whole as a sub-model; None for a decoder that has no others."""
        if not self.whole.config.is_matformer:
            return None
        return Submodel.whole(self._config(), self.name)

    def view(self, submodel: Submodel | None) -> Decoder:
        """The decoder of a sub-model: the whole's own weights, fewer of them used."""
        if submodel is None or submodel == self.full or not self.whole.config.is_matformer:
            return self.whole
        if submodel not in self._views:
            view = self.whole.view(submodel)
            if isinstance(self.whole.native_program, NativeProgram):
                view.native_program = NativeProgram.of(view, self.whole.native_program.panels)
            self._views.setdefault(submodel, view)  # another thread may have made one meanwhile
        return self._views[submodel]

    def same_keys(self, a: Submodel | None, b: Submodel | None) -> bool:
        """Whether a cache written by one is exactly what the other would have written."""
        return a is b or (a is not None and b is not None and a.same_keys(b, self._config()))

    def _config(self) -> ModelConfig:
        config = self.whole.config
        if not config.is_matformer:
            raise InputError(f"{config.model_type} has no sub-models; Gemma 3n has")
        return config


class Repair:
    """A cache on its way to being what `decoder` alone would have written for a sequence."""

    def __init__(self, decoder: Decoder, stale: KVCache, clean_tokens: int) -> None:
        """The first `clean_tokens` positions of `stale` are kept, if its rings still reach them."""
        self.decoder = decoder
        self.cache = stale.repeat(1)
        self.done = clean_tokens
        try:
            self.cache.rewind(0, clean_tokens)
        except RewindError:
            self.cache.clear()
            self.done = 0

    @torch.inference_mode()
    def advance(self, ids: Sequence[int], count: int, soft: Sequence[Soft] = ()) -> int:
        """Encode up to `count` more of ids; returns how many. `done` == len(ids) is caught up."""
        end = min(self.done + min(count, self.cache.chunk), len(ids))
        if end > self.done:
            step.write(self.decoder, self.cache, ids, self.done, end, soft)
        encoded, self.done = end - self.done, end
        return encoded
