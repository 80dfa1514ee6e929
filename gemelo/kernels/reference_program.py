"""Reference program: the steps of a native program in NumPy, slow, obvious, in float32.

The extension's `Program` runs a decoder's forward as a list of steps over buffers, on all threads
(csrc/program). This is the same list with the same names, each step as its formula. It runs where
nothing was compiled, where the environment asks for it, and for widths that the kernels do not
take; and it says what a native step has to give.

    program = Program()
    x, h = program.buffer(640), program.buffer(640)
    program.embed(Matrix(table), 25.3, x);  program.norm(x, Norm(weight, 1.0, 1e-6), h)
    program.logits(h, Matrix(table), 0.0)
    finite = program.run(call)               # call.scores holds them

T tokens, S slots, H heads, K key/value heads, d head width, W width of a buffer, P width of a
per-layer embedding, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gemelo.kernels.quants import Floats, Packed, unpack
from gemelo.kernels.reference_layers import AltUp, Matrix, Norm, attention, gelu, visible

Integers = NDArray[np.int64]


class Store(Protocol):
    """Keys or values of one layer: see `gemelo.engine.kv`."""

    def put(self, slots: Integers, new: Floats) -> None: ...
    def view(self, used: int) -> Floats: ...


@dataclass
class Call:
    """One piece of a step. ids, positions and attend_until are (T,); slots has for each type of
    layer the slot of every token (T,), and the positions in those that are used (S,); stores has
    keys and values of each layer that owns some. Buffers and turns are the call's own, so that
    threads may share a program."""

    ids: Integers
    positions: Integers
    attend_until: Integers
    inputs_embeds: Floats | None  # (T, D)
    logits_to_keep: int | None
    slots: Mapping[str, tuple[Integers, Integers]]
    stores: Sequence[tuple[Store, Store]]
    per_layer_rows: Packed | None  # (T * L, P)
    scores: Floats  # (T or logits_to_keep, V), written
    done: bool = False
    finite: bool = True
    at: list[Floats] = field(default_factory=list)  # buffers by number, (T, W) each
    turns: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)  # cosines, sines


class Program:
    """A decoder's forward as a list of steps over buffers (T, W)."""

    def __init__(self) -> None:
        self._widths: list[int] = []
        self._steps: list[Callable[[Call], None]] = []
        self._frequencies: dict[str, Floats] = {}

    def buffer(self, width: int) -> int:
        """A new buffer; its number."""
        self._widths.append(width)
        return len(self._widths) - 1

    def run(self, call: Call) -> bool:
        """Make the scores; whether all are finite."""
        tokens = len(call.ids)
        call.at = [np.zeros((tokens, width), np.float32) for width in self._widths]
        with np.errstate(all="ignore"):  # what is not finite is told by the result
            for step in self._steps:
                step(call)
                if call.done:
                    return True
        return call.finite

    # ---- steps of every decoder ------------------------------------------------------------------

    def embed(self, table: Matrix, scale: float, out: int) -> None:
        """Rows of the ids times `scale`, or the embeddings that the call brings."""

        def step(call: Call) -> None:
            given = call.inputs_embeds
            rows = table.rows_of(call.ids) * np.float32(scale) if given is None else given
            call.at[out][:] = rows

        self._steps.append(step)

    def rotary_embedding(self, inv_freq: Sequence[float], layer_type: str) -> None:
        """Cosines and sines of the tokens' positions for one type of layer."""
        self._frequencies[layer_type] = np.array(inv_freq, np.float32)
        self._steps.append(lambda call: self._turn(call, layer_type))

    def _turn(self, call: Call, layer_type: str) -> None:
        positions = call.positions[:, None].astype(np.float32)
        angles = positions * self._frequencies[layer_type]  # (T, d / 2)
        call.turns[layer_type] = np.cos(angles), np.sin(angles)

    def norm(self, x: int, n: Norm, out: int) -> None:
        """out = norm(x)."""

        def step(call: Call) -> None:
            call.at[out] = n(call.at[x])

        self._steps.append(step)

    def add_norm(self, x: int, y: int, n: Norm, next: Norm | None, out: int) -> None:
        """x += norm(y), and what the next layer reads of it to `out`."""

        def step(call: Call) -> None:
            call.at[x] = call.at[x] + n(call.at[y])
            if next is not None:
                call.at[out] = next(call.at[x])

        self._steps.append(step)

    def product(self, x: int, weights: Sequence[Matrix], outs: Sequence[int]) -> None:
        """x times several matrices, each to a buffer of its own."""

        def step(call: Call) -> None:
            for matrix, out in zip(weights, outs, strict=True):
                call.at[out] = matrix.product(call.at[x])

        self._steps.append(step)

    def geglu(self, x: int, gate_proj: Matrix, up_proj: Matrix, gates: int, ups: int) -> None:
        """gates = gelu(gate(x)) * up(x)."""

        def step(call: Call) -> None:
            call.at[gates] = gelu(gate_proj.product(call.at[x])) * up_proj.product(call.at[x])

        self._steps.append(step)

    def norm_rope_heads(self, x: int, head_dim: int, n: Norm, layer_type: str | None) -> None:
        """Normalise every head of x (T, heads * d), and turn its pairs (p, p + d / 2)."""

        def step(call: Call) -> None:
            tokens, width = call.at[x].shape
            heads = n(call.at[x].reshape(tokens, width // head_dim, head_dim))
            if layer_type is not None:
                cos, sin = (turn[:, None] for turn in call.turns[layer_type])  # (T, 1, d / 2)
                low, high = np.split(heads, 2, axis=-1)
                heads = np.concatenate([low * cos - high * sin, high * cos + low * sin], -1)
            call.at[x] = heads.reshape(tokens, width)

        self._steps.append(step)

    def store_kv(self, k: int, v: int, layer: int, layer_type: str) -> None:
        """Keys and values (T, K * d) to the slots of their tokens."""

        def step(call: Call) -> None:
            slots, _ = call.slots[layer_type]
            for buffer, store in zip((k, v), call.stores[layer], strict=True):
                heads = call.at[buffer].reshape(len(slots), -1, self._head_dim(layer_type))
                store.put(slots, heads)

        self._steps.append(step)

    def attend(
        self, q: int, layer: int, layer_type: str, heads: int, window: int, scale: float, out: int
    ) -> None:
        """Softmax attention of q (T, H * d) over a layer's keys and values; window 0 is none."""

        def step(call: Call) -> None:
            tokens, (_, held) = len(call.positions), call.slots[layer_type]
            seen = visible(call.positions, call.attend_until, held, window)  # (T, S)
            k, v = (store.view(len(held)) for store in call.stores[layer])
            queries = call.at[q].reshape(tokens, heads, -1)
            call.at[out] = attention(queries, k, v, seen, scale).reshape(tokens, -1)

        self._steps.append(step)

    def keep_last_tokens(self, buffers: Sequence[int]) -> None:
        """Only the last tokens go on, as many as the call asks for."""

        def step(call: Call) -> None:
            tokens = len(call.positions)
            keep = tokens if call.logits_to_keep is None else call.logits_to_keep
            call.done = keep == 0
            if keep >= tokens or call.done:
                return
            call.positions = call.positions[tokens - keep :]
            call.attend_until = call.attend_until[tokens - keep :]
            for buffer in buffers:
                call.at[buffer] = call.at[buffer][tokens - keep :]
            for layer_type in call.turns:
                self._turn(call, layer_type)

        self._steps.append(step)

    def logits(self, x: int, head: Matrix, cap: float) -> None:
        """Scores over the vocabulary, soft-capped where `cap` is above 0."""

        def step(call: Call) -> None:
            scores = head.product(call.at[x])
            call.finite = bool(np.isfinite(scores).all())  # of infinity a cap makes a number
            if cap > 0:
                scores = np.float32(cap) * np.tanh(scores / np.float32(cap))
            call.scores[:] = scores

        self._steps.append(step)

    def _head_dim(self, layer_type: str) -> int:
        return 2 * len(self._frequencies[layer_type])

    # ---- Gemma 3n's ------------------------------------------------------------------------------

    def sparse_geglu(
        self, x: int, gate_proj: Matrix, up_proj: Matrix, std_multiplier: float,
        gates: int, ups: int,
    ) -> None:  # fmt: skip
        """GeGLU of the gates that lie so many standard deviations above their token's mean."""

        def step(call: Call) -> None:
            gate = gate_proj.product(call.at[x])
            cutoff = gate.mean(-1, keepdims=True) + np.float32(std_multiplier) * gate.std(
                -1, keepdims=True
            )
            gate = np.maximum(gate - cutoff, np.float32(0))
            call.at[gates] = gelu(gate) * up_proj.product(call.at[x])

        self._steps.append(step)

    def altup_predict(self, streams: Sequence[int], predicted: Sequence[int], altup: AltUp) -> None:
        """Every stream plus a mixture of all."""

        def step(call: Call) -> None:
            x = np.stack([call.at[stream] for stream in streams])  # (S, T, D)
            mix = altup.modalities(x[0]) @ altup.prediction_coefs.T
            mix = mix.reshape(-1, len(x), len(x))  # (T, out, in)
            for out, y in zip(predicted, x + np.einsum("noi,ind->ond", mix, x), strict=True):
                call.at[out] = y

        self._steps.append(step)

    def altup_correct(
        self, streams: Sequence[int], predicted: Sequence[int], activated: int, altup: AltUp,
        scaled: int,
    ) -> None:  # fmt: skip
        """Move every predicted stream by its share of what the block found; `scaled` is the first
        one times correct_output_scale."""

        def step(call: Call) -> None:
            found = call.at[activated]
            innovation = found - call.at[predicted[0]]
            share = altup.modalities(found) @ altup.correction_coefs.T + 1  # (T, S)
            for index, (stream, before) in enumerate(zip(streams, predicted, strict=True)):
                call.at[stream] = call.at[before] + innovation * share[:, index : index + 1]
            call.at[scaled] = call.at[streams[0]] * altup.correct_output_scale

        self._steps.append(step)

    def laurel_residual(
        self, active: int, attended: int, post_attention_norm: Norm, x: int, laurel: int,
        post_laurel_norm: Norm, pre_feedforward_norm: Norm, out: int, normed: int,
    ) -> None:  # fmt: skip
        """out = (active + norm(attended) + x + norm(laurel)) / sqrt 2, and its norm."""

        def step(call: Call) -> None:
            attention = call.at[active] + post_attention_norm(call.at[attended])
            detour = call.at[x] + post_laurel_norm(call.at[laurel])
            call.at[out] = (attention + detour) * np.float32(2**-0.5)
            call.at[normed] = pre_feedforward_norm(call.at[out])

        self._steps.append(step)

    def gate_per_layer_input(self, gates: int, per_layer_inputs: int, layer: int) -> None:
        """gates = gelu(gates) * the tokens' inputs (T, L * P) for a layer."""

        def step(call: Call) -> None:
            width = self._widths[gates]
            own = call.at[per_layer_inputs][:, layer * width : (layer + 1) * width]
            call.at[gates] = gelu(call.at[gates]) * own

        self._steps.append(step)

    def add_to_others(self, streams: Sequence[int], y: int, n: Norm) -> None:
        """Every stream but the first gains norm(y)."""

        def step(call: Call) -> None:
            for stream in streams[1:]:
                call.at[stream] = call.at[stream] + n(call.at[y])

        self._steps.append(step)

    def match_magnitude(self, x: int, target: int, scale: float, add: bool, out: int) -> None:
        """x with the root mean square of `target`, token by token, scaled; or that added."""

        def step(call: Call) -> None:
            wanted = np.sqrt(np.square(call.at[target]).mean(-1, keepdims=True))
            own = np.square(call.at[x]).mean(-1, keepdims=True)
            ratio: Floats = wanted / np.sqrt(np.maximum(own, np.float32(1e-5)))
            y = call.at[x] * ratio * np.float32(scale)
            call.at[out] = call.at[out] + y if add else y

        self._steps.append(step)

    def per_layer_inputs(
        self, projected: int, layers: int, n: Norm, projected_scale: float, table_scale: float
    ) -> None:
        """(norm(projected * scale) + looked up * its scale) / sqrt 2, (T, L * P), in place."""

        def step(call: Call) -> None:
            assert call.per_layer_rows is not None
            rows = unpack(call.per_layer_rows)  # (T * L, P)
            x = call.at[projected].reshape(rows.shape) * np.float32(projected_scale)
            y = (n(x) + rows * np.float32(table_scale)) * np.float32(2**-0.5)
            call.at[projected] = y.reshape(call.at[projected].shape)

        self._steps.append(step)
