"""Backends of a program: the native kernels, by address, and the NumPy reference, by array.

Both take the same steps under the same names (`kernels.reference_program` and the extension). What
differs is how a step refers to a weight and how a call refers to its tokens and to the KV cache;
that is all there is here.

    backend = NativeBackend(panels)
    backend.program.norm(x, backend.norm(weight, 1.0, eps), out)
    backend.run(step)

T tokens of a piece, N tokens of all, V vocabulary, D width, L layers, P width of a per-layer
embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gemelo.config import FULL, LAYER_TYPES, SLIDING, LayerType, ModelConfig
from gemelo.engine.decoder import StepPiece
from gemelo.engine.kv import KVCache, Memory
from gemelo.engine.scores import Scores
from gemelo.engine.slots import Integers, Table
from gemelo.kernels import cpu, native, reference_program
from gemelo.kernels.cpu import address_of as _address
from gemelo.kernels.quants import Floats, Packed
from gemelo.kernels.reference_layers import AltUp, Matrix, Norm
from gemelo.kernels.repacked import Panels, Unmoved

if TYPE_CHECKING:
    from gemelo.kernels import _native

# Names of the extension's enums.
_STORED = {"plain": "F32", "bf16": "BF16", "int8": "INT8"}
_KINDS: dict[LayerType, str] = {SLIDING: "SLIDING", FULL: "FULL"}


class Step(NamedTuple):
    """What one step of a decoder is given: pieces, in the order of `path_of` and with room in their
    caches; per_layer_rows (N * L, P) of all tokens; scores of those that are wanted, written."""

    pieces: Sequence[StepPiece]
    scores: Scores
    per_layer_rows: Packed | None = None

    def apart(self) -> list[Step]:
        """A step for each piece, by position: those of one cache come as they lie."""
        tokens = accumulate((len(piece.ids) for piece in self.pieces), initial=0)
        scored = accumulate((piece.num_scored for piece in self.pieces), initial=0)
        parts = zip(self.pieces, pairwise(tokens), pairwise(scored), strict=True)
        steps = [Step([p], self.scores[b:e], self._rows(*between)) for p, between, (b, e) in parts]
        return sorted(steps, key=lambda step: step.pieces[0].position)

    def _rows(self, begin: int, end: int) -> Packed | None:
        """per_layer_rows of some of the tokens."""
        rows = self.per_layer_rows
        if rows is None:
            return None
        layers = rows.rows // sum(len(piece.ids) for piece in self.pieces)
        return Packed(rows.blocks[begin * layers : end * layers], rows.format)


class Coefficients(NamedTuple):
    """AltUp's of a layer, float32."""

    modality_router: Floats
    prediction_coefs: Floats
    correction_coefs: Floats
    correct_output_scale: Floats


class Backend(Protocol):
    """What runs a program, and what its steps call their weights."""

    program: Any

    def matrix(
        self, name: str, weight: Packed, rows: int | None, columns: int | None,
        index: Integers | None,
    ) -> Any:  # fmt: skip
        """A weight, its leading part, or its rows at `index`."""

    def norm(self, weight: Floats | None, offset: float, eps: float) -> Any:
        """An RMSNorm; without a weight it multiplies by nothing."""

    def altup(self, router_norm: Any, coefficients: Coefficients) -> Any:
        """A layer's AltUp."""

    def layer_type(self, kind: LayerType) -> Any:
        """A type of layer."""

    def run(self, step: Step) -> bool:
        """Make the scores of a step; whether all are finite. Writes the caches."""


class NativeBackend:
    """The kernels of this machine, which take addresses: `kept` holds what lies there."""

    def __init__(self, config: ModelConfig, panels: Panels | Unmoved | None = None) -> None:
        """Matrices are read from `panels` where they were moved there."""
        self.config, self.panels = config, panels
        self.program: _native.Program = native.extension.Program()
        self.kept: list[NDArray[Any]] = []

    def matrix(
        self, name: str, weight: Packed, rows: int | None, columns: int | None,
        index: Integers | None,
    ) -> _native.Matrix:  # fmt: skip
        """By address, in the panels or where the file has it."""
        if index is not None:
            self.kept.append(index)
        if self.panels is not None and self.panels.has(name, columns):
            return self.panels.matrix(name, rows, columns, index)
        self.kept.append(weight.blocks)
        return cpu.matrix(weight.prefix(rows, columns), index)

    def norm(self, weight: Floats | None, offset: float, eps: float) -> _native.Norm:
        """By address; 0 is no weight."""
        return native.extension.Norm(0 if weight is None else self._keep(weight), offset, eps)

    def altup(self, router_norm: _native.Norm, coefficients: Coefficients) -> _native.AltUp:
        """By addresses."""
        return native.extension.AltUp(router_norm, *map(self._keep, coefficients))

    def layer_type(self, kind: LayerType) -> _native.LayerType:
        """The extension's name of it."""
        return native.extension.LayerType[_KINDS[kind]]

    def run(self, step: Step) -> bool:
        """One native call on all threads. `step` and what it names are held meanwhile."""
        ids = np.fromiter(chain.from_iterable(piece.ids for piece in step.pieces), np.int64)
        for piece in step.pieces:
            piece.cache.slots.use(piece.end)
        held: list[object] = []  # what lies at the addresses
        pieces = [self._piece(piece, held) for piece in step.pieces]
        rows, maxima = step.per_layer_rows, step.scores.maxima
        call = native.extension.Call(
            ids=_address(ids),
            pieces=pieces,
            per_layer_rows=None if rows is None else cpu.matrix(rows),
            scores=_address(step.scores),
            maxima=0 if maxima is None else _address(maxima),
        )
        return self.program.run(call)

    def _piece(self, piece: StepPiece, held: list[object]) -> _native.Piece:
        """A piece by addresses; what lies there is added to `held`."""
        memory, tables, inputs = piece.cache.memory(), piece.cache.tables(), piece.inputs
        until = None if inputs is None or inputs.attend_until is None else attend_until(piece)
        embeds = inputs_embeds(piece)
        held += [memory, tables, until, embeds]
        return native.extension.Piece(
            native_cache(piece.cache, memory, tables),
            piece.position,
            len(piece.ids),
            piece.num_scored,
            0 if until is None else _address(until),
            0 if embeds is None else _address(embeds),
        )

    def _keep(self, array: Floats) -> int:
        """Where float32 numbers lie, one behind the other; they stay alive."""
        self.kept.append(np.ascontiguousarray(array, np.float32))
        return _address(self.kept[-1])


def native_cache(cache: KVCache, memory: Memory, tables: list[Table]) -> _native.Cache:
    """What the extension calls a cache, made anew when it has grown, with the slots in use now."""
    slots = [(address, capacity) for address, capacity, _ in (table.numbers for table in tables)]
    if memory.native is None or memory.native[1] != slots:
        made = native.extension.Cache(
            layers=memory.layers,
            slots=slots,
            format=native.extension.CacheFormat[_STORED[cache.kv_format]],
            kv_heads=cache.config.num_key_value_heads,
            head_dim=cache.config.head_dim,
        )
        memory.native = made, slots
    found: _native.Cache = memory.native[0]
    found.used = [table.used for table in tables]
    return found


class ReferenceBackend:
    """NumPy, on one thread, exactly what the formulas say."""

    def __init__(self) -> None:
        self.program = reference_program.Program()

    def matrix(
        self, name: str, weight: Packed, rows: int | None, columns: int | None,
        index: Integers | None,
    ) -> Matrix:  # fmt: skip
        """The weight itself."""
        return Matrix(weight.prefix(rows, columns), index)

    def norm(self, weight: Floats | None, offset: float, eps: float) -> Norm:
        """The weight itself."""
        return Norm(weight, offset, eps)

    def altup(self, router_norm: Norm, coefficients: Coefficients) -> AltUp:
        """The coefficients themselves."""
        return AltUp(router_norm, *coefficients)

    def layer_type(self, kind: LayerType) -> str:
        """Its name."""
        return kind

    def run(self, step: Step) -> bool:
        """Piece by piece; maxima of scores are nobody's."""
        step.scores.maxima = None
        finite = [self._run_piece(part.pieces[0], part) for part in step.apart()]
        return all(finite)

    def _run_piece(self, piece: StepPiece, step: Step) -> bool:
        call = reference_program.Call(
            ids=np.array(piece.ids, np.int64),
            positions=positions(piece),
            attend_until=attend_until(piece),
            inputs_embeds=inputs_embeds(piece),
            logits_to_keep=piece.logits_to_keep,
            slots=_placed(piece),
            stores=list(piece.cache.stores.values()),
            per_layer_rows=step.per_layer_rows,
            scores=step.scores,
        )
        return self.program.run(call)


def positions(piece: StepPiece) -> Integers:
    """Of a piece's tokens, (T,)."""
    return np.arange(piece.position, piece.end, dtype=np.int64)


def attend_until(piece: StepPiece) -> Integers:
    """The last position that each token sees, (T,)."""
    until = None if piece.inputs is None else piece.inputs.attend_until
    return positions(piece) if until is None else np.ascontiguousarray(until, np.int64)


def inputs_embeds(piece: StepPiece) -> Floats | None:
    """What stands for the embeddings of a piece's ids, (T, D)."""
    embeds = None if piece.inputs is None else piece.inputs.inputs_embeds
    return None if embeds is None else np.ascontiguousarray(embeds, np.float32)


def _placed(piece: StepPiece) -> Mapping[str, tuple[Integers, Integers]]:
    """For each type of layer the slots of a piece's tokens and the positions in those in use."""
    slots, places = piece.cache.slots, positions(piece)
    slots.use(piece.end)
    slots.place(places)
    return {
        kind: (slots.mapping(kind, places), table.positions[: table.used])
        for kind, table in zip(LAYER_TYPES, piece.cache.tables(), strict=True)
    }
