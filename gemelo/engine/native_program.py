"""Native decoder program: the forward as a list of steps, like a compute graph, in one call.

In a step of a small model the work between the products (norms, angles, attention, gates) costs as
much as the products when Python and torch go from one to the next. So a quantised decoder on the
CPU is written down, when it is loaded, as a program that all threads run together
(kernels/csrc/program). `NativeProgram.of` reads the modules and keeps their weights where they
are; a view of a sub-model is a program over the leading rows and columns. The plain modules stay
the oracle: tests compare the two, and everything that has no program (other dtypes, devices) runs
through them.

    decoder.native_program = NativeProgram.of(decoder)
    scores, finite = decoder.native_program.scores([ids], [positions], cache, logits_to_keep=1)

B rows, T tokens, S streams, D width, H heads, d head width, L layers, P width of a per-layer
embedding, V vocabulary.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gemelo.config import FULL, LAYER_TYPES, SLIDING, LayerType
from gemelo.engine.kv import KVCache
from gemelo.kernels import cpu, native
from gemelo.kernels.linear import QuantEmbedding, QuantLinear, as_blocks
from gemelo.kernels.quants import FORMATS, Packed, unpack
from gemelo.kernels.repacked import Panels
from gemelo.models.altup import NestedMLP
from gemelo.models.decoder import Decoder as Decoder
from gemelo.models.gemma3 import Block as Gemma3Block
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Block as Gemma3nBlock
from gemelo.models.gemma3n import Gemma3n, PlainNorm
from gemelo.models.layers import Linear, RMSNorm, StepInputs

if TYPE_CHECKING:
    from gemelo.kernels import _native

Rows = Sequence[Sequence[int]]  # of ids or positions, as many in each
# Names of the extension's enums.
STORED = {torch.float32: "F32", torch.bfloat16: "BF16", torch.int8: "INT8"}
KINDS: dict[LayerType, str] = {SLIDING: "SLIDING", FULL: "FULL"}


class NativeProgram:
    """A decoder's program, and how a step is put to it."""

    def __init__(self, decoder: Decoder, panels: Panels | None = None) -> None:
        """Write the program down; `NativeProgram.of` says whether there can be one."""
        self.decoder, self.config, self.panels = decoder, decoder.config, panels
        self.program = native.extension.Program()
        self.kept: list[Tensor] = []  # what the program reads and nobody else holds
        if isinstance(decoder, Gemma3n):
            _write_gemma3n(self, decoder)
        elif isinstance(decoder, Gemma3):
            _write_gemma3(self, decoder)

    @classmethod
    def of(cls, decoder: Decoder, panels: Panels | None = None) -> NativeProgram | None:
        """The program of a decoder that is quantised, on the CPU, in float32; else None.

        It reads matrices from `panels` where they were moved there.
        """
        return cls(decoder, panels) if is_native(decoder) else None

    def supports(self, cache: KVCache) -> bool:
        """Whether it reads and writes this cache."""
        return cache.stored in STORED and native.module is not None

    def scores(
        self,
        ids: Rows,
        positions: Rows,
        cache: KVCache,
        logits_to_keep: int | None,
        inputs: StepInputs | None = None,
    ) -> tuple[Tensor, bool]:
        """ids, positions (B, T) -> scores (B * (T or logits_to_keep), V) float32, and whether all
        are finite; writes the cache. `inputs` holds embeddings where not all tokens are text."""
        rows, tokens = len(ids), len(ids[0]) if ids else 0
        num_scored = tokens if logits_to_keep is None else logits_to_keep
        out = torch.empty(rows * num_scored, self.config.vocab_size)
        if not rows * tokens:
            return out, True
        cache.make_room(tokens, max(map(max, positions)) + 1)
        flat_ids, flat_positions = _flat(ids), _flat(positions)
        per_layer = self._per_layer_rows(flat_ids)
        embeds = None if inputs is None else inputs.inputs_embeds.float().contiguous()
        attend_until = None if inputs is None else inputs.attend_until
        attend_until = None if attend_until is None else attend_until.contiguous()
        positions_address = flat_positions.buffer_info()[0]
        memory, tables = cache.memory(), cache.tables()  # held until the program is done with them
        call = native.extension.Call(
            ids=flat_ids.buffer_info()[0],
            positions=positions_address,
            attend_until=positions_address if attend_until is None else attend_until.data_ptr(),
            inputs_embeds=0 if embeds is None else embeds.data_ptr(),
            rows=rows,
            tokens_a_row=tokens,
            logits_to_keep=logits_to_keep,
            slots=[table.numbers for table in tables],
            caches=memory.layers,
            format=native.extension.CacheFormat[STORED[cache.stored]],
            kv_heads=self.config.num_key_value_heads,
            head_dim=self.config.head_dim,
            per_layer_rows=None if per_layer is None else cpu.matrix(per_layer),
            scores=out.data_ptr(),
        )
        return out, self.program.run(call)

    def _per_layer_rows(self, ids: Sequence[int]) -> Packed | None:
        """Gemma 3n's vectors of N tokens for every layer, (N * L, P), as they are stored."""
        decoder = self.decoder
        if not isinstance(decoder, Gemma3n):
            return None
        per_layer_ids = decoder.per_layer_ids(ids)
        if decoder.per_layer_table is not None:
            return decoder.per_layer_table.packed(per_layer_ids, decoder.layer_indices)
        vectors = decoder.get_per_layer_inputs(torch.tensor([per_layer_ids]))
        return as_blocks(vectors.float().flatten(0, 2).contiguous())

    # ---- what the program refers to --------------------------------------------------------------

    def matrix(
        self,
        module: nn.Module,
        rows: int | None = None,
        columns: int | None = None,
        index: Tensor | None = None,
    ) -> _native.Matrix:
        """The weight of a layer, or its leading part, or its rows at `index`."""
        weight = packed(module).prefix(rows, columns)
        if index is not None:
            self.kept.append(index)
        if self.panels is not None and self.panels.has(weight):
            return self.panels.matrix(weight, index)
        self.kept.append(weight.blocks)
        return cpu.matrix(weight, index)

    def norm(self, module: nn.Module) -> _native.Norm:
        """An RMSNorm as the program has it: weight (D,), its offset, epsilon; PlainNorm's is all
        ones, and so no weight."""
        if isinstance(module, RMSNorm):
            return native.extension.Norm(self.address(module.weight), module.offset, module.eps)
        assert isinstance(module, PlainNorm)
        return native.extension.Norm(0, 0.0, module.eps)

    def address(self, tensor: Tensor) -> int:
        """Where a tensor's numbers lie, as float32, one behind the other; it stays alive."""
        self.kept.append(tensor.detach().float().contiguous())
        return self.kept[-1].data_ptr()

    def angles(self) -> None:
        """The turns of both kinds of layer, as `layers.rotary` makes them."""
        config, program = self.config, self.program
        for kind in LAYER_TYPES:
            frequencies = config.rope(kind).frequencies(config.head_dim)
            program.rotary_embedding(frequencies, self.layer_type(kind))

    def layer_type(self, kind: LayerType) -> _native.LayerType:
        """What the program calls it."""
        return native.extension.LayerType[KINDS[kind]]

    def head(self, decoder: Decoder, table: _native.Matrix) -> _native.Matrix:
        """The matrix that makes scores: the embedding, or one of its own."""
        tied = self.config.tie_word_embeddings
        return table if tied else self.matrix(decoder.lm_head)

    def product(self, x: int, to: Sequence[tuple[_native.Matrix, int]]) -> None:
        """A buffer times several matrices, each to a buffer of its own."""
        self.program.product(x, [matrix for matrix, _ in to], [buffer for _, buffer in to])

    def attend(self, block: Gemma3Block | Gemma3nBlock, q: int, owner: int, out: int) -> None:
        """A step: attention of a block's queries in buffer `q`, (B * T, H * d), over the keys and
        values that layer `owner` has in the cache, to buffer `out` of that shape."""
        attention, config = block.self_attn, self.config
        kind = attention.layer_type
        self.program.attend(
            q,
            owner,
            self.layer_type(kind),
            config.num_attention_heads,
            config.window(kind) or 0,
            attention.scale,
            out,
        )


def _flat(rows: Rows) -> array[int]:
    """Rows one behind the other, as the program reads them: int64."""
    return array("q", chain.from_iterable(rows))


def packed(module: nn.Module) -> Packed:
    """The matrix of a layer as blocks, quantised or plain float32."""
    weight = module.weight
    if isinstance(weight, Packed):
        return weight
    assert isinstance(weight, Tensor)
    return Packed(weight.detach().view(torch.uint8), FORMATS["f32"])


def is_native(decoder: Decoder) -> bool:
    """Whether every product of a decoder can be native, and its steps fit the program's widths."""
    config = decoder.config
    table = decoder.embed_tokens
    if native.module is None or not isinstance(table, QuantEmbedding):
        return False
    if table.dtype != torch.float32 or table.blocks.device.type != "cpu":
        return False
    if config.head_dim % 64 or config.hidden_size % 32 or any(w % 32 for w in config.ffn_widths):
        return False
    if isinstance(decoder, Gemma3n):
        if config.altup_num_inputs != 4 or config.hidden_size_per_layer_input % 32:
            return False
    modules = [
        *decoder.layers.modules(),
        *([] if config.tie_word_embeddings else [decoder.lm_head]),
    ]
    matrices = [table, *(m for m in modules if isinstance(m, QuantLinear))]
    plain = [m for m in modules if type(m) is Linear]
    return all(packed(m).format.name in cpu.FORMATS for m in matrices) and all(
        isinstance(m.weight, Tensor) and m.weight.dtype == torch.float32 for m in plain
    )


# ---- the forwards --------------------------------------------------------------------------------


def _write_gemma3(target: NativeProgram, decoder: Gemma3) -> None:
    """`Gemma3.forward`, and `Block.forward` for every layer."""
    config, p = decoder.config, target.program
    width, d = config.hidden_size, config.head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    ffn = config.intermediate_size
    x, h, y = p.buffer(width), p.buffer(width), p.buffer(width)
    q, a = p.buffer(heads * d), p.buffer(heads * d)
    k, v = p.buffer(kv_heads * d), p.buffer(kv_heads * d)
    gate, up = p.buffer(ffn), p.buffer(ffn)
    table = target.matrix(decoder.embed_tokens)
    p.embed(table, config.embed_scale, x)
    target.angles()
    blocks = [block for block in decoder.layers if isinstance(block, Gemma3Block)]
    p.norm(x, target.norm(blocks[0].input_layernorm), h)
    for index, block in enumerate(blocks):
        attention, mlp = block.self_attn, block.mlp
        kind = target.layer_type(attention.layer_type)
        is_last = index == len(blocks) - 1
        keys = [(target.matrix(attention.k_proj), k), (target.matrix(attention.v_proj), v)]
        queries = [(target.matrix(attention.q_proj), q)]
        target.product(h, keys if is_last else keys + queries)
        p.norm_rope_heads(k, d, target.norm(attention.k_norm), kind)
        p.store_kv(k, v, index, kind)
        if is_last:
            p.keep_last_tokens([x, h])
            target.product(h, queries)
        p.norm_rope_heads(q, d, target.norm(attention.q_norm), kind)
        target.attend(block, q, index, a)
        p.product(a, [target.matrix(attention.o_proj)], [y])
        before, after = block.pre_feedforward_layernorm, block.post_feedforward_layernorm
        p.add_norm(x, y, target.norm(block.post_attention_layernorm), target.norm(before), h)
        p.geglu(h, target.matrix(mlp.gate_proj), target.matrix(mlp.up_proj), gate, up)
        p.product(gate, [target.matrix(mlp.down_proj)], [y])
        following = decoder.norm if is_last else blocks[index + 1].input_layernorm
        p.add_norm(x, y, target.norm(after), target.norm(following), h)
    p.logits(h, target.head(decoder, table), config.final_logit_softcapping or 0.0)


def _write_gemma3n(target: NativeProgram, decoder: Gemma3n) -> None:
    """`Gemma3n.forward`, and `Block.forward` for every layer."""
    config, p = decoder.config, target.program
    width, d, per_layer_width = (
        config.hidden_size,
        config.head_dim,
        config.hidden_size_per_layer_input,
    )
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    streams = [p.buffer(width) for _ in range(config.altup_num_inputs)]
    predicted = [p.buffer(width) for _ in streams]
    h, g, m, y, detour = (p.buffer(width) for _ in range(5))
    q, a = p.buffer(heads * d), p.buffer(heads * d)
    k, v = p.buffer(kv_heads * d), p.buffer(kv_heads * d)
    low, gates = p.buffer(config.laurel_rank), p.buffer(per_layer_width)
    hidden = {w: (p.buffer(w), p.buffer(w)) for w in sorted(set(config.ffn_widths))}
    per_layer_inputs = p.buffer(per_layer_width * len(decoder.layer_indices))
    table = target.matrix(decoder.embed_tokens)

    p.embed(table, config.embed_scale, streams[0])
    target.angles()
    projection = decoder.per_layer_model_projection
    every = torch.arange(packed(projection).shape[0]).view(-1, per_layer_width)
    rows = (
        None
        if len(every) == len(decoder.layer_indices)
        else every[list(decoder.layer_indices)].flatten()
    )
    p.product(streams[0], [target.matrix(projection, index=rows)], [per_layer_inputs])
    projection_norm = target.norm(decoder.per_layer_projection_norm)
    scales = config.per_layer_projection_scale, config.per_layer_embed_scale
    p.per_layer_inputs(per_layer_inputs, len(decoder.layer_indices), projection_norm, *scales)
    for stream, project in zip(streams[1:], decoder.altup_projections, strict=True):
        p.product(streams[0], [target.matrix(project)], [stream])
        p.match_magnitude(stream, streams[0], 1.0, False, stream)

    owners: dict[LayerType, int] = {}
    last_owner = len(config.kv_layers) - 1
    for index, block in enumerate(decoder.layers):
        assert isinstance(block, Gemma3nBlock)
        attention, kind = block.self_attn, target.layer_type(block.self_attn.layer_type)
        coefficients = _altup(target, block)
        p.altup_predict(streams, predicted, coefficients)
        p.norm(predicted[0], target.norm(block.input_layernorm), h)
        laurel = block.laurel
        queries = [(target.matrix(attention.q_proj), q), (target.matrix(laurel.linear_left), low)]
        if index <= last_owner:
            owners[attention.layer_type] = index
            keys = [(target.matrix(attention.k_proj), k), (target.matrix(attention.v_proj), v)]
            target.product(h, keys if index == last_owner else keys + queries)
            p.norm_rope_heads(k, d, target.norm(attention.k_norm), kind)
            p.norm_rope_heads(v, d, target.norm(attention.v_norm), None)
            p.store_kv(k, v, index, kind)
        if index == last_owner:
            p.keep_last_tokens([*predicted, h, per_layer_inputs])
        if index >= last_owner:
            target.product(h, queries)
        p.norm_rope_heads(q, d, target.norm(attention.q_norm), kind)
        target.attend(block, q, owners[attention.layer_type], a)
        p.product(a, [target.matrix(attention.o_proj)], [y])
        p.product(low, [target.matrix(laurel.linear_right)], [detour])
        p.laurel_residual(
            predicted[0], y, target.norm(block.post_attention_layernorm),
            h, detour, target.norm(laurel.post_laurel_norm),
            target.norm(block.pre_feedforward_layernorm), g, m,
        )  # fmt: skip
        _write_nested_mlp(target, block.mlp, config.ffn_widths[index], m, hidden, y)
        p.add_norm(g, y, target.norm(block.post_feedforward_layernorm), None, h)
        p.altup_correct(streams, predicted, g, coefficients, m)
        p.product(m, [target.matrix(block.per_layer_input_gate)], [gates])
        p.gate_per_layer_input(gates, per_layer_inputs, index)
        p.product(gates, [target.matrix(block.per_layer_projection)], [y])
        p.add_to_others(streams, y, target.norm(block.post_per_layer_input_norm))

    share = 1 / len(streams)
    p.match_magnitude(streams[0], streams[0], share, False, g)
    for stream, project in zip(streams[1:], decoder.altup_unembed_projections, strict=True):
        p.product(stream, [target.matrix(project)], [y])
        p.match_magnitude(y, streams[0], share, True, g)
    p.norm(g, target.norm(decoder.norm), h)
    p.logits(h, target.head(decoder, table), config.final_logit_softcapping or 0.0)


def _write_nested_mlp(
    target: NativeProgram,
    mlp: NestedMLP,
    width: int,
    x: int,
    hidden: dict[int, tuple[int, int]],
    out: int,
) -> None:
    """`NestedMLP.forward` through the first `width` neurons; one token reads only live rows."""
    p, (gates, ups) = target.program, hidden[width]
    gate, up = target.matrix(mlp.gate_proj, width), target.matrix(mlp.up_proj, width)
    if mlp.std_multiplier is None:
        p.geglu(x, gate, up, gates, ups)
    else:
        p.sparse_geglu(x, gate, up, mlp.std_multiplier, gates, ups)
    p.product(gates, [target.matrix(mlp.down_proj, columns=width)], [out])


def _altup(target: NativeProgram, block: Gemma3nBlock) -> _native.AltUp:
    altup = block.altup
    return native.extension.AltUp(
        target.norm(altup.router_norm),
        modality_router=target.address(_floats(altup.modality_router)),
        prediction_coefs=target.address(_floats(altup.prediction_coefs)),
        correction_coefs=target.address(_floats(altup.correction_coefs)),
        correct_output_scale=target.address(altup.correct_output_scale),
    )


def _floats(module: nn.Module) -> Tensor:
    """A small matrix in float32, whatever it is stored as."""
    weight = module.weight
    if isinstance(weight, Packed):
        return unpack(weight)
    assert isinstance(weight, Tensor)
    return weight.float()
