"""The forward of Gemma 3 as a program: `models/gemma3` and `models/layers`, step by step.

    write(Writer(config, weights, config.layers, backend))

Names of buffers: x the residual, h what a block reads of it, y what a block adds, q, k, v, a the
attention's, gate and up the feed-forward's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gemelo.config import ModelConfig
from gemelo.engine.programs.writer import Writer


class Buffers(NamedTuple):
    """Numbers of the buffers of a step."""

    x: int
    h: int
    y: int
    q: int
    a: int
    k: int
    v: int
    gate: int
    up: int

    @classmethod
    def of(cls, p: Writer) -> Buffers:
        """New ones, as wide as the config says."""
        config = p.config
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        return cls(
            *p.buffers(config.hidden_size, 3),
            *p.buffers(queries, 2),
            *p.buffers(keys, 2),
            *p.buffers(max(config.ffn_widths), 2),
        )


def write(p: Writer) -> None:
    """`Gemma3.forward` and the head."""
    config, buffers = p.config, Buffers.of(p)
    p.program.embed(p.matrix("embed_tokens"), config.embed_scale, buffers.x)
    p.rotary_embedding()
    p.program.norm(buffers.x, p.layer(0).norm("input_layernorm"), buffers.h)
    for index in config.layers:
        write_block(p, index, buffers, following(p, index))
    p.program.logits(buffers.h, p.head(), config.final_logit_softcapping or 0.0)


def following(p: Writer, index: int) -> Any:
    """The norm of what reads the residual after a block."""
    is_last = index == p.config.num_hidden_layers - 1
    return p.norm("norm") if is_last else p.layer(index + 1).norm("input_layernorm")


def write_block(p: Writer, index: int, buffers: Buffers, following: Any) -> None:
    """`Block.forward`: from the residual x and its norm h to the next ones."""
    layer, d, program = p.layer(index), p.config.head_dim, p.program
    x, h, y, q, a, k, v, gate, up = buffers
    is_last = index == p.config.num_hidden_layers - 1
    keys = [layer.matrix("self_attn.k_proj"), layer.matrix("self_attn.v_proj")]
    query = layer.matrix("self_attn.q_proj")
    # Tokens that nobody asks for stop when their last keys are written.
    program.product(h, keys if is_last else [*keys, query], [k, v] if is_last else [k, v, q])
    program.norm_rope_heads(k, d, layer.norm("self_attn.k_norm"), layer.type)
    program.store_kv(k, v, index, layer.type)
    if is_last:
        program.keep_last_tokens([x, h])
        program.product(h, [query], [q])
    program.norm_rope_heads(q, d, layer.norm("self_attn.q_norm"), layer.type)
    layer.attend(q, index, a)
    program.product(a, [layer.matrix("self_attn.o_proj")], [y])
    before = layer.norm("pre_feedforward_layernorm")
    program.add_norm(x, y, layer.norm("post_attention_layernorm"), before, h)
    program.geglu(h, layer.matrix("mlp.gate_proj"), layer.matrix("mlp.up_proj"), gate, up)
    program.product(gate, [layer.matrix("mlp.down_proj")], [y])
    program.add_norm(x, y, layer.norm("post_feedforward_layernorm"), following, h)


def fits(config: ModelConfig) -> bool:
    """Whether the native kernels take the widths: whole registers, whole blocks."""
    return not (
        config.head_dim % 64
        or config.hidden_size % 32
        or any(width % 32 for width in config.ffn_widths)
    )
