"""Native decoder: a model on the CPU, its forward a program over its weights, a call a step.

The one way to run a decoder on a CPU, for quantised files and for float ones alike. When it is
loaded, its forward is written down as a list of steps (`programs`), like a compute graph, which all
threads run together: in a step of a small model the work between the products costs as much as the
products, when Python goes from one to the next. A view of a sub-model is a program over the leading
rows and columns of the same weights. Where nothing was compiled, and for widths or formats that the
kernels do not take, the same program runs in NumPy: slowly, and with the same results.

A first short prompt may be read before the matrices have moved to where they are read fastest
(`memory.repack`); then they move, and the program is written anew, to compute the same bits.

    decoder = NativeDecoder(config, weights)
    [scores], finite = decoder.step([StepPiece(decoder.cache(4096), ids, position=0)])

T tokens of a piece, N tokens of all, D width, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from gemelo.config import ModelConfig, Submodel
from gemelo.config.options import KVFormat
from gemelo.engine.decoder import FEW_TOKENS, StepPiece, check_pieces, make_room
from gemelo.engine.kv import KVCache
from gemelo.engine.programs import gemma3, gemma3n
from gemelo.engine.programs.backends import Backend, NativeBackend, ReferenceBackend, Step
from gemelo.engine.programs.writer import Writer
from gemelo.engine.scores import ScoreMemory
from gemelo.engine.turns import Line
from gemelo.errors import InputError
from gemelo.kernels import cpu, native
from gemelo.kernels.products import embedding
from gemelo.kernels.quants import Floats, Packed
from gemelo.kernels.repacked import Panels, Unmoved
from gemelo.weights.mapped import listen
from gemelo.weights.tensors import Weights

PER_LAYER_EMBEDDING = "embed_tokens_per_layer.weight"
_SHORT_TOKENS = 64  # a first prompt of no more is not worth the wait for the move


class PerLayerTable(Protocol):
    """Per-layer embeddings as a decoder asks for them: see `memory.per_layer_table`."""

    def packed(self, ids: Sequence[int], kept: Sequence[int]) -> Packed:
        """Vectors of N ids for the layers `kept` of the whole model, (N * L, P), as stored."""

    def prefetch(self, ids: Sequence[int]) -> None:
        """Begin to read the rows of ids, which will be asked for soon."""


class ModalityEmbeddings(Protocol):
    """Embeddings of ids past the text vocabulary: see `gemelo.checkpoints.modality_embeddings`."""

    first: int

    def rows(self, ids: Sequence[int]) -> dict[int, Floats]:
        """By place in ids, the embeddings (D,) of those that have some."""


class NativeDecoder:
    """A decoder's program, and how a step is put to it."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        panels: Panels | Unmoved | None = None,
        table: PerLayerTable | None = None,
        modality_embeddings: ModalityEmbeddings | None = None,
        layer_indices: Sequence[int] | None = None,
        nested_in: tuple[NativeDecoder, Submodel] | None = None,
    ) -> None:
        """Matrices are read from `panels` where they were moved there or are to be, which is for a
        decoder without views; per-layer embeddings from `table`. layer_indices are the whole
        model's layers that run; None is all. nested_in says of a view what it is a view of, and
        which."""
        self.config, self.weights, self.table = config, weights, table
        self.modality_embeddings, self.nested_in = modality_embeddings, nested_in
        self.layer_indices = config.layers if layer_indices is None else layer_indices
        self.is_native = runs_natively(config, weights)
        self._backend: Backend = self._written(panels)
        self._line, self._has_run = Line(), False
        self._score_memory = ScoreMemory()

    def _written(self, panels: Panels | Unmoved | None) -> Backend:
        """The forward as a program over its weights."""
        backend = NativeBackend(self.config, panels) if self.is_native else ReferenceBackend()
        family = gemma3n if self.config.is_matformer else gemma3
        family.write(Writer(self.config, self.weights, self.layer_indices, backend))
        return backend

    @property
    def panels(self) -> Panels | Unmoved | None:
        """Matrices out of their file, or about to be; None if they stay there."""
        return self._backend.panels if isinstance(self._backend, NativeBackend) else None

    def prepare(self, num_tokens: int) -> float:
        """See `Decoder.prepare`: matrices that wait for it move, and the program is written anew.
        Steps of other threads end with the program that they have begun with."""
        pays = self._has_run or num_tokens > _SHORT_TOKENS
        if not pays or not isinstance(self.panels, Unmoved):
            return 0.0
        started = time.perf_counter()
        with self._line.lock:
            waiting = self.panels
            if isinstance(waiting, Unmoved):  # else another thread has moved them meanwhile
                listen()  # to a file that is cut short: the step that comes next will say so
                self._backend = self._written(waiting.move())
        return time.perf_counter() - started

    @property
    def device_name(self) -> str:
        """The host's processor."""
        return "cpu"

    @property
    def kv_format(self) -> KVFormat:
        """Float32 beside float32 weights; elsewhere bfloat16: what 16 bits round off of keys is not
        to be seen beside the rounding of weights and activations (benchmarks/)."""
        return "bf16" if self.is_native and not is_float32(self.weights) else "plain"

    def cache(self, context: int, chunk: int = 512, kv_format: KVFormat | None = None) -> KVCache:
        """An empty cache of one sequence; "plain" is float32."""
        return KVCache(self.config, context, chunk, kv_format or self.kv_format)

    def step(self, pieces: Sequence[StepPiece]) -> tuple[list[Floats], bool]:
        """See `Decoder.step`."""
        check_pieces(pieces, self.config.vocab_size)
        self.prepare(sum(len(piece.ids) for piece in pieces))
        make_room(pieces)
        # Those that share a path lie together: few tokens, and then those of which few go on.
        order = sorted(range(len(pieces)), key=lambda place: path_of(pieces[place]))
        chosen = [pieces[place] for place in order]
        ends = list(accumulate((piece.num_scored for piece in chosen), initial=0))
        scores = self._score_memory.empty(ends[-1], self.config.vocab_size)
        finite = True
        if chosen:
            rows = self._per_layer_rows([id for piece in chosen for id in piece.ids])
            finite = self._backend.run(Step(chosen, scores, rows))
            self._has_run = True
        found: list[Floats] = [scores[:0]] * len(pieces)
        for place, (begin, end) in zip(order, pairwise(ends), strict=True):
            found[place] = scores[begin:end]
        return found, finite

    def has_own_embeddings(self, ids: Sequence[int]) -> bool:
        """Whether there are ids that have their embeddings with a modality."""
        special = self.modality_embeddings
        return special is not None and max(ids, default=0) >= special.first

    def embed(self, ids: Sequence[int]) -> Floats:
        """ids (T,) -> (T, D): rows times sqrt(D), or what a modality has for an id."""
        numbers = np.array(ids, np.int64)
        scale = np.float32(self.config.embed_scale)
        x = embedding(numbers, self.weights["embed_tokens.weight"]) * scale
        if self.modality_embeddings is not None and self.has_own_embeddings(ids):
            for place, embeds in self.modality_embeddings.rows(ids).items():
                x[place] = embeds
        return x

    def view(self, submodel: Submodel) -> NativeDecoder:
        """A program over a part of the same weights."""
        if not self.config.is_matformer:
            raise InputError(f"{self.config.model_type} has no sub-models; Gemma 3n has")
        return NativeDecoder(
            submodel.config(self.config),
            self.weights,
            self.panels,
            self.table,
            self.modality_embeddings,
            [self.layer_indices[layer] for layer in submodel.kept_layers(self.config)],
            (self, submodel),
        )

    def prefetch(self, ids: Sequence[int]) -> None:
        """Have the per-layer embeddings of ids read ahead."""
        if self.table is not None:
            self.table.prefetch(self._per_layer_ids(ids))

    def _per_layer_rows(self, ids: Sequence[int]) -> Packed | None:
        """Gemma 3n's vectors of all tokens for every layer, (N * L, P)."""
        if self.table is None:
            return None
        return self.table.packed(self._per_layer_ids(ids), self.layer_indices)

    def _per_layer_ids(self, ids: Sequence[int]) -> list[int]:
        """Where the table has what is looked up for ids: those outside (images, sounds) take its
        row 0."""
        rows = self.config.vocab_size_per_layer_input
        return [id if id < rows else 0 for id in ids]


def path_of(piece: StepPiece) -> tuple[bool, bool]:
    """Whether many tokens go in, and out at the last layer that owns keys."""
    return not piece.exact, piece.num_scored > FEW_TOKENS


def runs_natively(config: ModelConfig, weights: Weights) -> bool:
    """Whether the kernels run a decoder: they were built, and take its widths and formats."""
    fits = gemma3n.fits if config.is_matformer else gemma3.fits
    return native.module is not None and fits(config) and not unread_formats(weights)


def unread_formats(weights: Weights) -> set[str]:
    """Formats of matrices that the kernels do not multiply; the per-layer table is only read."""
    matrices = (w for name, w in weights.items() if name != PER_LAYER_EMBEDDING)
    return {w.format.name for w in matrices if len(w.shape) == 2} - cpu.FORMATS


def is_float32(weights: Weights) -> bool:
    """Whether every layer's projections are float32."""
    projections = (w for name, w in weights.items() if name.endswith("_proj.weight"))
    return all(weight.format.name == "f32" for weight in projections)
