"""The forward of Gemma 3n as a program: `models/gemma3n` and `models/altup`, step by step.

    write(Writer(config, weights, layer_indices, backend))

Names of buffers: streams and predicted are AltUp's, h what a block reads of the first, m what the
feed-forward reads, g what the block found, y what is added, q, k, v, a the attention's, low and
detour LAuReL's, hidden the feed-forward's by width, gates and per_layer_inputs the per-layer
embeddings'.
"""

from __future__ import annotations

from typing import NamedTuple

from gemelo.config import Gemma3nConfig, ModelConfig
from gemelo.engine.programs import gemma3
from gemelo.engine.programs.writer import Layer, Writer, rows_of_layers


class Buffers(NamedTuple):
    """Numbers of the buffers of a step."""

    streams: list[int]
    predicted: list[int]
    h: int
    g: int
    m: int
    y: int
    detour: int
    q: int
    a: int
    k: int
    v: int
    low: int
    gates: int
    per_layer_inputs: int
    hidden: dict[int, tuple[int, int]]

    @classmethod
    def of(cls, p: Writer) -> Buffers:
        """New ones, as wide as the config says."""
        config = p.config
        width, streams = config.hidden_size, config.altup_num_inputs
        per_layer = config.hidden_size_per_layer_input
        h, g, m, y, detour = p.buffers(width, 5)
        q, a = p.buffers(config.num_attention_heads * config.head_dim, 2)
        k, v = p.buffers(config.num_key_value_heads * config.head_dim, 2)
        return cls(
            streams=p.buffers(width, streams),
            predicted=p.buffers(width, streams),
            h=h, g=g, m=m, y=y, detour=detour, q=q, a=a, k=k, v=v,
            low=p.program.buffer(config.laurel_rank),
            gates=p.program.buffer(per_layer),
            per_layer_inputs=p.program.buffer(per_layer * config.num_hidden_layers),
            hidden={w: (p.program.buffer(w), p.program.buffer(w)) for w in {*config.ffn_widths}},
        )  # fmt: skip


def write(p: Writer) -> None:
    """`Gemma3n.forward` and the head."""
    config, buffers = p.config, Buffers.of(p)
    p.program.embed(p.matrix("embed_tokens"), config.embed_scale, buffers.streams[0])
    p.rotary_embedding()
    write_per_layer_inputs(p, buffers)
    write_expand(p, buffers)
    for index in config.layers:
        write_block(p, index, buffers)
    write_merge(p, buffers)
    p.program.norm(buffers.g, p.norm("norm"), buffers.h)
    p.program.logits(buffers.h, p.head(), config.final_logit_softcapping or 0.0)


def write_per_layer_inputs(p: Writer, buffers: Buffers) -> None:
    """`project_per_layer_inputs`: every layer's own embedding of a token."""
    config, name = p.config, "per_layer_model_projection"
    assert isinstance(config, Gemma3nConfig)
    width = config.hidden_size_per_layer_input
    layers = p.weights[f"{name}.weight"].rows // width  # of the whole
    projection = p.matrix(name, index=rows_of_layers(p.layer_indices, layers, width))
    p.program.product(buffers.streams[0], [projection], [buffers.per_layer_inputs])
    p.program.per_layer_inputs(
        buffers.per_layer_inputs,
        config.num_hidden_layers,
        p.norm("per_layer_projection_norm"),
        config.per_layer_projection_scale,
        config.per_layer_embed_scale,
    )


def write_expand(p: Writer, buffers: Buffers) -> None:
    """`expand`: one stream to all of them, equally loud."""
    first, *others = buffers.streams
    for index, stream in enumerate(others):
        p.program.product(first, [p.matrix(f"altup_projections.{index}")], [stream])
        p.program.match_magnitude(stream, first, 1.0, False, stream)


def write_merge(p: Writer, buffers: Buffers) -> None:
    """`merge`: all streams back to one, their mean, in buffer g."""
    first, *others = buffers.streams
    share = 1 / len(buffers.streams)
    p.program.match_magnitude(first, first, share, False, buffers.g)
    for index, stream in enumerate(others):
        p.program.product(stream, [p.matrix(f"altup_unembed_projections.{index}")], [buffers.y])
        p.program.match_magnitude(buffers.y, first, share, True, buffers.g)


def write_block(p: Writer, index: int, buffers: Buffers) -> None:
    """`Block.forward`, on the first stream; the others are predicted, corrected and informed."""
    layer, d, program = p.layer(index), p.config.head_dim, p.program
    b, altup = buffers, layer.altup()
    last_owner = len(p.config.kv_layers) - 1
    program.altup_predict(b.streams, b.predicted, altup)
    program.norm(b.predicted[0], layer.norm("input_layernorm"), b.h)
    queries = [layer.matrix("self_attn.q_proj"), layer.matrix("laurel.linear_left")]
    if layer.facts.owns_keys:
        # Tokens that nobody asks for stop when the last keys are written.
        keys = [layer.matrix("self_attn.k_proj"), layer.matrix("self_attn.v_proj")]
        both = index < last_owner
        program.product(
            b.h, [*keys, *queries] if both else keys, [b.k, b.v, b.q, b.low] if both else [b.k, b.v]
        )
        program.norm_rope_heads(b.k, d, layer.norm("self_attn.k_norm"), layer.type)
        program.norm_rope_heads(b.v, d, p.plain_norm(), None)
        program.store_kv(b.k, b.v, index, layer.type)
    if index == last_owner:
        program.keep_last_tokens([*b.predicted, b.h, b.per_layer_inputs])
    if index >= last_owner:
        program.product(b.h, queries, [b.q, b.low])
    program.norm_rope_heads(b.q, d, layer.norm("self_attn.q_norm"), layer.type)
    layer.attend(b.q, owner_of(p, index), b.a)
    program.product(b.a, [layer.matrix("self_attn.o_proj")], [b.y])
    program.product(b.low, [layer.matrix("laurel.linear_right")], [b.detour])
    program.laurel_residual(
        b.predicted[0], b.y, layer.norm("post_attention_layernorm"),
        b.h, b.detour, layer.norm("laurel.post_laurel_norm"),
        layer.norm("pre_feedforward_layernorm"), b.g, b.m,
    )  # fmt: skip
    write_mlp(layer, buffers)
    program.add_norm(b.g, b.y, layer.norm("post_feedforward_layernorm"), None, b.h)
    program.altup_correct(b.streams, b.predicted, b.g, altup, b.m)
    program.product(b.m, [layer.matrix("per_layer_input_gate")], [b.gates])
    program.gate_per_layer_input(b.gates, b.per_layer_inputs, index)
    program.product(b.gates, [layer.matrix("per_layer_projection")], [b.y])
    program.add_to_others(b.streams, b.y, layer.norm("post_per_layer_input_norm"))


def write_mlp(layer: Layer, buffers: Buffers) -> None:
    """`NestedMLP.forward` through the first neurons; one token reads only live rows."""
    facts, program = layer.facts, layer.writer.program
    width = facts.intermediate_size
    gates, ups = buffers.hidden[width]
    gate, up = layer.matrix("mlp.gate_proj", width), layer.matrix("mlp.up_proj", width)
    if facts.std_multiplier is None:
        program.geglu(buffers.m, gate, up, gates, ups)
    else:
        program.sparse_geglu(buffers.m, gate, up, facts.std_multiplier, gates, ups)
    program.product(gates, [layer.matrix("mlp.down_proj", columns=width)], [buffers.y])


def owner_of(p: Writer, index: int) -> int:
    """The layer whose keys and values a layer attends over."""
    donor = p.config.layer(index).kv_donor
    return index if donor is None else donor


def fits(config: ModelConfig) -> bool:
    """Whether the native kernels take the widths: whole registers, whole blocks, four streams."""
    narrow = config.hidden_size_per_layer_input % 32 or config.altup_num_inputs != 4
    return gemma3.fits(config) and not narrow
