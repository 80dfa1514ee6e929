"""Program writer: a decoder's weights by name and its facts by layer, as the steps take them.

`gemma3.write` and `gemma3n.write` are the forwards of `models/gemma3` and `models/gemma3n` line by
line; they ask here for buffers, matrices and norms. A sub-model is the same forward over fewer
layers and the leading neurons of each: `layer_indices` says which of the whole's layers run.

    p = Writer(config, weights, config.layers, backend)
    p.program.norm(x, p.norm("norm"), h)
    p.layer(3).matrix("self_attn.q_proj")

D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gemelo.config import LAYER_TYPES, LayerType, ModelConfig
from gemelo.config.layers import LayerConfig
from gemelo.engine.programs.backends import Backend, Coefficients
from gemelo.engine.slots import Integers
from gemelo.kernels.quants import Floats
from gemelo.weights.tensors import Weights


class Writer:
    """What a program is written from: config, weights, layers, and the backend that will run it."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        layer_indices: Sequence[int],
        backend: Backend,
    ) -> None:
        """config is that of what runs, weights are the whole's; layer_indices are the whole's
        layers that run, in order."""
        self.config, self.weights, self.backend = config, weights, backend
        self.layer_indices = layer_indices
        self.program = backend.program

    def buffers(self, width: int, count: int) -> list[int]:
        """Numbers of new buffers (tokens, width)."""
        return [self.program.buffer(width) for _ in range(count)]

    def matrix(
        self,
        name: str,
        rows: int | None = None,
        columns: int | None = None,
        index: Integers | None = None,
    ) -> Any:
        """A matrix by the name of its layer, its leading part, or its rows at `index`."""
        key = f"{name}.weight"
        return self.backend.matrix(key, self.weights[key], rows, columns, index)

    def floats(self, name: str) -> Floats:
        """A small weight in float32, whatever it is stored as."""
        return self.weights.floats(name)

    def norm(self, name: str) -> Any:
        """An RMSNorm by its name."""
        weight = self.floats(f"{name}.weight")
        return self.backend.norm(weight, self.config.norm_offset, self.config.rms_norm_eps)

    def plain_norm(self) -> Any:
        """An RMSNorm without a weight."""
        return self.backend.norm(None, 0.0, self.config.rms_norm_eps)

    def head(self) -> Any:
        """The matrix that makes scores: the embedding, or one of its own."""
        return self.matrix("embed_tokens" if self.config.tie_word_embeddings else "lm_head")

    def layer_type(self, kind: LayerType) -> Any:
        """What the backend calls a type of layer."""
        return self.backend.layer_type(kind)

    def rotary_embedding(self) -> None:
        """Steps: the turns of both types of layer."""
        for kind in LAYER_TYPES:
            frequencies = self.config.rope(kind).frequencies(self.config.head_dim)
            self.program.rotary_embedding(frequencies, self.layer_type(kind))

    def layer(self, index: int) -> Layer:
        """What a layer of those that run is made of."""
        return Layer(self, index)


class Layer:
    """One layer's facts, and its weights by their names inside it."""

    def __init__(self, writer: Writer, index: int) -> None:
        self.writer, self.index = writer, index
        self.facts: LayerConfig = writer.config.layer(index)
        self.type = writer.layer_type(self.facts.type)
        self._prefix = f"layers.{writer.layer_indices[index]}."

    def matrix(self, name: str, rows: int | None = None, columns: int | None = None) -> Any:
        """A matrix of this layer, or its leading part."""
        return self.writer.matrix(self._prefix + name, rows, columns)

    def norm(self, name: str) -> Any:
        """An RMSNorm of this layer."""
        return self.writer.norm(self._prefix + name)

    def altup(self) -> Any:
        """The coefficients of this layer's AltUp."""
        at = f"{self._prefix}altup."
        floats = self.writer.floats
        coefficients = Coefficients(
            floats(f"{at}modality_router.weight"),
            floats(f"{at}prediction_coefs.weight"),
            floats(f"{at}correction_coefs.weight"),
            floats(f"{at}correct_output_scale"),
        )
        return self.writer.backend.altup(self.norm("altup.router_norm"), coefficients)

    def attend(self, q: int, owner: int, out: int) -> None:
        """A step: attention of queries in buffer `q`, (tokens, heads * d), over the keys and values
        that layer `owner` has in the cache, to buffer `out` of that shape."""
        config = self.writer.config
        # Cosines and sines of queries and of keys would be multiplied by it.
        scale = config.attention_scale * self.facts.rope.attention_scaling**2
        heads, window = config.num_attention_heads, self.facts.window or 0
        self.writer.program.attend(q, owner, self.type, heads, window, scale, out)


def rows_of_layers(layer_indices: Sequence[int], layers: int, width: int) -> Integers | None:
    """Which rows of a matrix with `width` rows a layer are those of some layers; None for all."""
    if len(layer_indices) == layers:
        return None
    rows = np.arange(layers * width, dtype=np.int64).reshape(layers, width)
    return rows[list(layer_indices)].ravel()
