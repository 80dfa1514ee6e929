"""Names of tensors: one table, and the ways from and to it.

Inside gemelo a tensor has one name, whatever file it comes from: `language_model.X`,
`vision_tower.Y` or `multi_modal_projector.Z`, where X, Y and Z are the left column of the table
below. Checkpoints call them by five spellings that changed with the transformers release, and GGUF
by the right column. A new model is new rows and an entry in `ARCHITECTURES`. A name that no row
knows raises; none is guessed or dropped.

    from_hf("model.layers.0.mlp.up_proj.weight")     # language_model.layers.0.mlp.up_proj.weight
    from_gguf("blk.0.ffn_up.weight", "gemma3")       # the same
"""

import re

from gemelo.errors import UnsupportedError

# (suffix after the part's prefix, name in GGUF); `{n}` stands for the number of a layer.
TEXT = (
    ("embed_tokens.weight", "token_embd.weight"),
    ("norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
    ("layers.{n}.input_layernorm.weight", "blk.{n}.attn_norm.weight"),
    ("layers.{n}.self_attn.q_proj.weight", "blk.{n}.attn_q.weight"),
    ("layers.{n}.self_attn.k_proj.weight", "blk.{n}.attn_k.weight"),
    ("layers.{n}.self_attn.v_proj.weight", "blk.{n}.attn_v.weight"),
    ("layers.{n}.self_attn.o_proj.weight", "blk.{n}.attn_output.weight"),
    ("layers.{n}.self_attn.q_norm.weight", "blk.{n}.attn_q_norm.weight"),
    ("layers.{n}.self_attn.k_norm.weight", "blk.{n}.attn_k_norm.weight"),
    ("layers.{n}.post_attention_layernorm.weight", "blk.{n}.post_attention_norm.weight"),
    ("layers.{n}.pre_feedforward_layernorm.weight", "blk.{n}.ffn_norm.weight"),
    ("layers.{n}.mlp.gate_proj.weight", "blk.{n}.ffn_gate.weight"),
    ("layers.{n}.mlp.up_proj.weight", "blk.{n}.ffn_up.weight"),
    ("layers.{n}.mlp.down_proj.weight", "blk.{n}.ffn_down.weight"),
    ("layers.{n}.post_feedforward_layernorm.weight", "blk.{n}.post_ffw_norm.weight"),
)
VISION_WITH_BIAS = (
    ("embeddings.patch_embedding", "v.patch_embd"),
    ("encoder.layers.{n}.layer_norm1", "v.blk.{n}.ln1"),
    ("encoder.layers.{n}.layer_norm2", "v.blk.{n}.ln2"),
    ("encoder.layers.{n}.self_attn.q_proj", "v.blk.{n}.attn_q"),
    ("encoder.layers.{n}.self_attn.k_proj", "v.blk.{n}.attn_k"),
    ("encoder.layers.{n}.self_attn.v_proj", "v.blk.{n}.attn_v"),
    ("encoder.layers.{n}.self_attn.out_proj", "v.blk.{n}.attn_out"),
    ("encoder.layers.{n}.mlp.fc1", "v.blk.{n}.ffn_up"),
    ("encoder.layers.{n}.mlp.fc2", "v.blk.{n}.ffn_down"),
    ("post_layernorm", "v.post_ln"),
)
VISION = (
    ("embeddings.position_embedding.weight", "v.position_embd.weight"),
    *(
        (f"{hf}.{kind}", f"{gguf}.{kind}")
        for hf, gguf in VISION_WITH_BIAS
        for kind in ("weight", "bias")
    ),
)
PROJECTOR = (
    ("mm_input_projection_weight", "mm.input_projection.weight"),
    ("mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight"),
)
PARTS = {"language_model": TEXT, "vision_tower": VISION, "multi_modal_projector": PROJECTOR}
ARCHITECTURES = {"gemma3": ("language_model",), "clip": ("vision_tower", "multi_modal_projector")}

NORM_SHIFTS = {"gemma3": 1.0, "clip": 1.0}

# Prefixes in Hugging Face files, after an optional leading `model.`; the first that fits counts.
HF_PREFIXES = (
    ("language_model.model.", "language_model."),
    ("language_model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("", "language_model."),
)
HF_WRITTEN = {
    "text": {"language_model": "model."},
    "multimodal": {
        "language_model": "language_model.model.",
        "vision_tower": "vision_tower.vision_model.",
        "multi_modal_projector": "multi_modal_projector.",
    },
}
HEAD = "language_model.lm_head.weight"
HEAD_WRITTEN = {"text": "lm_head.weight", "multimodal": HEAD}

LAYER = re.compile(r"\.(0|[1-9][0-9]{0,3})\.")
CANONICAL_TO_GGUF = {f"{part}.{hf}": gguf for part, rows in PARTS.items() for hf, gguf in rows}
GGUF_TO_CANONICAL = {
    architecture: {gguf: f"{part}.{hf}" for part in parts for hf, gguf in PARTS[part]}
    for architecture, parts in ARCHITECTURES.items()
}


def from_hf(name: str) -> str:
    """The canonical name of a tensor in a checkpoint of any layout; UnsupportedError if unknown."""
    suffix = name.removeprefix("model.")
    for prefix, part in HF_PREFIXES:
        if suffix.startswith(prefix):
            canonical = part + suffix.removeprefix(prefix)
            if _pattern(canonical)[0] in CANONICAL_TO_GGUF:
                return canonical
    raise UnsupportedError(f"the checkpoint holds a tensor {name!r} that no supported model has")


def to_hf(name: str, layout: str) -> str:
    """The name to write for a canonical one: layout "text" (Gemma3ForCausalLM) or "multimodal".

    These are the oldest spellings, which every release and every converter reads.
    """
    part, _, suffix = name.partition(".")
    prefixes = HF_WRITTEN.get(layout)
    if prefixes is None:
        raise UnsupportedError(f"unknown layout {layout!r}; choose one of {', '.join(HF_WRITTEN)}")
    if part not in prefixes or _pattern(name)[0] not in CANONICAL_TO_GGUF:
        raise UnsupportedError(f"a {layout} checkpoint has no place for tensor {name!r}")
    return HEAD_WRITTEN[layout] if name == HEAD else prefixes[part] + suffix


def from_gguf(name: str, architecture: str) -> str:
    """The canonical name of a tensor in a GGUF file; UnsupportedError if unknown there."""
    pattern, layer = _pattern(name)
    canonical = _rows(architecture).get(pattern)
    if canonical is None:
        raise UnsupportedError(
            f"the file holds a tensor {name!r} that {architecture} does not have"
        )
    return canonical.replace("{n}", layer)


def to_gguf(name: str, architecture: str) -> str:
    """The GGUF name of a canonical one; UnsupportedError if the architecture has none."""
    pattern, layer = _pattern(name)
    gguf = CANONICAL_TO_GGUF.get(pattern)
    if gguf is None or gguf not in _rows(architecture):
        raise UnsupportedError(f"GGUF files of {architecture} have no place for tensor {name!r}")
    return gguf.replace("{n}", layer)


def norm_shift(name: str, architecture: str) -> float:
    """What GGUF adds to this weight, to be taken back in float32: w_gguf = w + shift.

    Gemma 3 multiplies by 1 + w; converters store the sum, so that runtimes need no special norm.
    The vision tower's LayerNorms are plain, and nothing but norms is shifted.
    """
    _rows(architecture)
    plain = name.startswith("vision_tower.") or not name.endswith("norm.weight")
    return 0.0 if plain else NORM_SHIFTS[architecture]


def _pattern(name: str) -> tuple[str, str]:
    """A name with its layer number replaced by {n}, and that number ("" without)."""
    if "{" in name:
        return "", ""
    found = LAYER.search(name)
    if found is None:
        return name, ""
    return f"{name[: found.start(1)]}{{n}}{name[found.end(1) :]}", found.group(1)


def _rows(architecture: str) -> dict[str, str]:
    rows = GGUF_TO_CANONICAL.get(architecture)
    if rows is None:
        raise UnsupportedError(
            f"unknown architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}"
        )
    return rows
