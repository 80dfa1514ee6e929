"""Sub-model views: a MatFormer decoder in every size, on the same weights.

A view shares every weight with the whole, and writes its keys to the whole's places in a cache, so
that changing size between tokens allocates nothing. What a smaller model wrote is an approximation
of what a larger one would have written, unless the two agree on all layers that own keys
(`Submodel.same_keys`): then the cache is the very same; `rebuild` brings one up to date.

    views = SubmodelViews(decoder)
    small = views.view(views.parse("E2B"))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from gemelo.config import ModelConfig, Submodel
from gemelo.engine.decoder import Decoder
from gemelo.errors import InputError
from gemelo.weights.mapped import Mapped


class SubmodelViews:
    """The sub-models of one decoder, each made when it is first asked for. Gemma 3 has one size."""

    def __init__(self, decoder: Decoder, name: str = "") -> None:
        """name is what the decoder is called in statistics, where it is itself a sub-model."""
        self.decoder, self.name = decoder, name
        self._views: dict[Submodel, Decoder] = {}

    @property
    def files(self) -> list[Mapped]:
        """The maps that its weights came from, and some of them still lie in."""
        return self.decoder.weights.files

    def parse(self, choice: str | Submodel) -> Submodel:
        """A sub-model that may run on the whole's cache; else `InputError` with the reason."""
        config = self._config()
        submodel = Submodel.of(choice, config)
        if not submodel.owns_all_keys(config):
            raise InputError(
                f"sub-model {submodel.name or choice!r} skips a layer below "
                f"{len(config.kv_layers)}, which owns keys: cut it out with `gemelo slice` instead"
            )
        return submodel

    @cached_property
    def whole(self) -> Submodel | None:
        """The whole as a sub-model; None for a decoder that has no others."""
        if not self.decoder.config.is_matformer:
            return None
        return Submodel.whole(self._config(), self.name)

    def view(self, submodel: Submodel | None) -> Decoder:
        """The decoder of a sub-model: the whole's own weights, fewer of them used."""
        if submodel is None or submodel == self.whole or not self.decoder.config.is_matformer:
            return self.decoder
        if submodel not in self._views:
            view = self.decoder.view(submodel)
            self._views.setdefault(submodel, view)  # another thread may have made one meanwhile
        return self._views[submodel]

    def same_keys(self, a: Submodel | None, b: Submodel | None) -> bool:
        """Whether a cache written by one is exactly what the other would have written."""
        return a is b or (a is not None and b is not None and a.same_keys(b, self._config()))

    def stale(self, writers: Sequence[Submodel | None], active: Submodel | None) -> list[bool]:
        """Of every position, whether its writer would have written otherwise than `active`."""
        distinct = {id(writer): writer for writer in writers}
        same = {key for key, writer in distinct.items() if self.same_keys(writer, active)}
        return [id(writer) not in same for writer in writers]

    def _config(self) -> ModelConfig:
        config = self.decoder.config
        if not config.is_matformer:
            raise InputError(f"{config.model_type} has no sub-models; Gemma 3n has")
        return config
