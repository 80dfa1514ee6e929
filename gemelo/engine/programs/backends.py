"""Backends of a program: the native kernels, by address, and the NumPy reference, by array.

Both take the same steps under the same names (`kernels.reference_program` and the extension). What
differs is how a step refers to a weight and how a call refers to its tokens and to the KV cache;
that is all there is here.

    backend = NativeBackend(panels)
    backend.program.norm(x, backend.norm(weight, 1.0, eps), out)
    backend.run(call)

B rows, T tokens, V vocabulary, D width, L layers, P width of a per-layer embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gemelo.config import FULL, LAYER_TYPES, SLIDING, LayerType, ModelConfig
from gemelo.engine.kv import KVCache
from gemelo.engine.scores import Scores
from gemelo.engine.slots import Integers
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
    """What one step of a decoder is given. ids, positions, attend_until (B, T); inputs_embeds
    (B, T, D); per_layer_rows (B * T * L, P); scores (B * T or B * logits_to_keep, V), written."""

    ids: Integers
    positions: Integers
    cache: KVCache
    logits_to_keep: int | None
    scores: Scores
    attend_until: Integers | None = None
    inputs_embeds: Floats | None = None
    per_layer_rows: Packed | None = None


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
        """Make the scores of a step; whether all are finite. Writes the cache."""


class NativeBackend:
    """The kernels of this machine, which take addresses: `kept` holds what lies there."""

    def __init__(self, config: ModelConfig, panels: Panels | Unmoved | None = None) -> None:
        """Matrices are read from `panels` where they were moved there, or are to be."""
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
        num_rows, tokens = step.ids.shape
        if num_rows > 1 and step.logits_to_keep not in (None, 0, tokens):
            return self._run_all(step)
        cache, rows = step.cache, step.per_layer_rows
        memory, tables = cache.memory(), cache.tables()
        positions = _address(step.positions)
        until, embeds = step.attend_until, step.inputs_embeds
        call = native.extension.Call(
            ids=_address(step.ids),
            positions=positions,
            attend_until=positions if until is None else _address(until),
            inputs_embeds=0 if embeds is None else _address(embeds),
            rows=step.ids.shape[0],
            tokens_a_row=step.ids.shape[1],
            logits_to_keep=step.logits_to_keep,
            slots=[table.numbers for table in tables],
            caches=memory.layers,
            format=native.extension.CacheFormat[_STORED[cache.kv_format]],
            kv_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            per_layer_rows=None if rows is None else cpu.matrix(rows),
            scores=_address(step.scores),
            maxima=0 if step.scores.maxima is None else _address(step.scores.maxima),
        )
        return bool(self.program.run(call))

    def _run_all(self, step: Step) -> bool:
        """The same where the last tokens of several rows are asked for: the program lets go what
        lies before the last row's, so all are computed, and the last of each row taken."""
        num_rows, tokens = step.ids.shape
        scores = Scores.empty(num_rows * tokens, step.scores.shape[1])
        finite = self.run(step._replace(logits_to_keep=None, scores=scores))
        kept = scores.reshape(num_rows, tokens, -1)[:, tokens - (step.logits_to_keep or 0) :]
        step.scores[:] = kept.reshape(step.scores.shape)
        step.scores.maxima = None
        return finite

    def _keep(self, array: Floats) -> int:
        """Where float32 numbers lie, one behind the other; they stay alive."""
        self.kept.append(np.ascontiguousarray(array, np.float32))
        return _address(self.kept[-1])


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
        """Step by step; maxima of scores are nobody's."""
        step.scores.maxima = None
        embeds, width = step.inputs_embeds, step.ids.size
        call = reference_program.Call(
            ids=step.ids,
            positions=step.positions,
            attend_until=step.positions if step.attend_until is None else step.attend_until,
            inputs_embeds=None if embeds is None else embeds.reshape(width, -1),
            logits_to_keep=step.logits_to_keep,
            slots=_placed(step.cache, step.positions),
            stores=list(step.cache.stores.values()),
            per_layer_rows=step.per_layer_rows,
            scores=step.scores,
        )
        return self.program.run(call)


def _placed(cache: KVCache, positions: Integers) -> Mapping[str, tuple[Integers, Integers]]:
    """For each type of layer the slots of a step's tokens and the positions in those in use."""
    slots = cache.slots
    mapped = {kind: slots.mapping(kind, positions) for kind in LAYER_TYPES}
    slots.place(positions)
    return {
        kind: (mapped[kind], table.positions[:, : table.used])
        for kind, table in zip(LAYER_TYPES, cache.tables(), strict=True)
    }
