"""Tensor names: Hugging Face's, GGUF's, Ollama's and the canonical ones, in both directions.

Inside gemelo a tensor has one name, whatever file it comes from: `language_model.X`,
`vision_tower.Y`, `multi_modal_projector.Z` and so on, where X, Y and Z are the left column of the
tables below. Checkpoints call them by six spellings that changed with the transformers release, and
GGUF by the right column. A new model is new rows and an entry in `ARCHITECTURES`. A name that no
row knows raises; none is guessed or dropped.

    from_hf("model.layers.0.mlp.up_proj.weight")     # language_model.layers.0.mlp.up_proj.weight
    from_gguf("blk.0.ffn_up.weight", "gemma3")       # the same
"""

import re

from gemelo.errors import UnsupportedError

# (suffix after the part's prefix, name in GGUF); every `{n}` stands for a number.
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
# What a Gemma 3n decoder has besides.
TEXT_3N = (
    ("embed_tokens_per_layer.weight", "per_layer_token_embd.weight"),
    ("per_layer_model_projection.weight", "per_layer_model_proj.weight"),
    ("per_layer_projection_norm.weight", "per_layer_proj_norm.weight"),
    ("layers.{n}.altup.correct_output_scale", "blk.{n}.altup_correct_scale.weight"),
    ("layers.{n}.altup.correction_coefs.weight", "blk.{n}.altup_correct_coef.weight"),
    ("layers.{n}.altup.prediction_coefs.weight", "blk.{n}.altup_predict_coef.weight"),
    ("layers.{n}.altup.modality_router.weight", "blk.{n}.altup_router.weight"),
    ("layers.{n}.altup.router_norm.weight", "blk.{n}.altup_router_norm.weight"),
    ("layers.{n}.laurel.linear_left.weight", "blk.{n}.laurel_l.weight"),
    ("layers.{n}.laurel.linear_right.weight", "blk.{n}.laurel_r.weight"),
    ("layers.{n}.laurel.post_laurel_norm.weight", "blk.{n}.laurel_post_norm.weight"),
    ("layers.{n}.per_layer_input_gate.weight", "blk.{n}.inp_gate.weight"),
    ("layers.{n}.per_layer_projection.weight", "blk.{n}.proj.weight"),
    ("layers.{n}.post_per_layer_input_norm.weight", "blk.{n}.post_norm.weight"),
)
# Matrices that GGUF keeps as one tensor, (count, rows, columns): `X.weight` here is the whole,
# `X.0.weight` and so on are its parts, which is what checkpoints hold.
STACKS_3N = (
    ("altup_projections.weight", "altup_proj.weight"),
    ("altup_unembed_projections.weight", "altup_unembd_proj.weight"),
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
# What Ollama's files, which hold the vision tower too, call its parts; and llama.cpp's.
OLLAMA = {
    "v.patch_embedding": "v.patch_embd",
    "v.position_embedding": "v.position_embd",
    "v.post_layernorm": "v.post_ln",
    "v.blk.{n}.layer_norm1": "v.blk.{n}.ln1",
    "v.blk.{n}.layer_norm2": "v.blk.{n}.ln2",
    "v.blk.{n}.attn_output": "v.blk.{n}.attn_out",
    "v.blk.{n}.mlp.fc1": "v.blk.{n}.ffn_up",
    "v.blk.{n}.mlp.fc2": "v.blk.{n}.ffn_down",
    "mm.mm_input_projection": "mm.input_projection",
    "mm.mm_soft_emb_norm": "mm.soft_emb_norm",
}
OF_TOWERS = ("v.", "a.", "mm.")  # in GGUF
# Gemma 3n's towers, by their names in checkpoints.
MOBILENET = (
    *("conv_stem.conv.weight", "conv_stem.conv.bias", "conv_stem.bn.weight"),
    *(f"blocks.{{n}}.{{n}}.{x}.weight" for x in ("conv_exp", "bn1", "conv_pwl", "bn2", "norm")),
    *(
        f"blocks.{{n}}.{{n}}.{conv}.{leaf}.weight"
        for conv in ("dw_start", "pw_exp", "dw_mid", "pw_proj")
        for leaf in ("conv", "bn")
    ),
    "blocks.{n}.{n}.layer_scale.gamma",
    *(f"blocks.{{n}}.{{n}}.attn.{x}.proj.weight" for x in ("query", "key", "value", "output")),
    *(
        f"blocks.{{n}}.{{n}}.attn.{x}.{leaf}.weight"
        for x in ("key", "value")
        for leaf in ("down_conv", "norm")
    ),
    *(f"msfa.ffn.{x}.{leaf}.weight" for x in ("pw_exp", "pw_proj") for leaf in ("conv", "bn")),
    "msfa.norm.weight",
)
CONFORMER = (
    *(
        f"subsample_conv_projection.conv_{n}.{leaf}.weight"
        for n in (0, 1)
        for leaf in ("conv", "norm")
    ),
    "subsample_conv_projection.input_proj_linear.weight",
    *(
        f"conformer.{{n}}.ffw_layer_{end}.{leaf}.weight"
        for end in ("start", "end")
        for leaf in ("pre_layer_norm", "ffw_layer_1", "ffw_layer_2", "post_layer_norm")
    ),
    *(f"conformer.{{n}}.attention.{x}.weight" for x in ("pre_attn_norm", "post", "post_norm")),
    *(f"conformer.{{n}}.attention.attn.{x}_proj.weight" for x in ("q", "k", "v")),
    "conformer.{n}.attention.attn.relative_position_embedding.pos_proj.weight",
    "conformer.{n}.attention.attn.per_dim_scale",
    *(
        f"conformer.{{n}}.lconv1d.{x}.weight"
        for x in ("pre_layer_norm", "linear_start", "depthwise_conv1d", "conv_norm", "linear_end")
    ),
    "conformer.{n}.norm.weight",
)
EMBEDDER = tuple(
    f"{x}.weight"
    for x in ("embedding", "hard_embedding_norm", "soft_embedding_norm", "embedding_projection")
)
TOWERS_3N = {
    "vision_tower.timm_model": MOBILENET,
    "audio_tower": CONFORMER,
    "embed_vision": EMBEDDER,
    "embed_audio": EMBEDDER,
}
Rows = tuple[tuple[str, str], ...]
# The same in GGUF: the vision tower keeps its names, the audio encoder and embedders get others.
MOBILENET_IN_GGUF: Rows = tuple((x, f"v.{x.replace('blocks.', 'blk.')}") for x in MOBILENET)
CONFORMER_IN_GGUF: Rows = (
    ("subsample_conv_projection.input_proj_linear.weight", "a.pre_encode.out.weight"),
    *(
        (f"subsample_conv_projection.conv_{n}.{leaf}.weight", f"a.conv1d.{n}.{gguf}")
        for n in (0, 1)
        for leaf, gguf in (("conv", "weight"), ("norm", "norm.weight"))
    ),
    *(
        (f"conformer.{{n}}.ffw_layer_{end}.{leaf}.weight", f"a.blk.{{n}}.{gguf}{suffix}.weight")
        for end, suffix in (("start", ""), ("end", "_1"))
        for leaf, gguf in (
            ("pre_layer_norm", "ffn_norm"),
            ("ffw_layer_1", "ffn_up"),
            ("ffw_layer_2", "ffn_down"),
            ("post_layer_norm", "ffn_post_norm"),
        )
    ),
    *(
        (f"conformer.{{n}}.{hf}.weight", f"a.blk.{{n}}.{gguf}.weight")
        for hf, gguf in (
            ("attention.pre_attn_norm", "ln1"),
            ("attention.attn.q_proj", "attn_q"),
            ("attention.attn.k_proj", "attn_k"),
            ("attention.attn.v_proj", "attn_v"),
            ("attention.attn.relative_position_embedding.pos_proj", "linear_pos"),
            ("attention.post", "attn_out"),
            ("attention.post_norm", "ln2"),
            ("lconv1d.pre_layer_norm", "conv_norm"),
            ("lconv1d.linear_start", "conv_pw1"),
            ("lconv1d.depthwise_conv1d", "conv_dw"),
            ("lconv1d.conv_norm", "norm_conv"),
            ("lconv1d.linear_end", "conv_pw2"),
            ("norm", "layer_pre_norm"),
        )
    ),
    ("conformer.{n}.attention.attn.per_dim_scale", "a.blk.{n}.per_dim_scale"),
)
EMBEDDER_IN_GGUF = ("embedding", "hard_emb_norm", "soft_emb_norm", "input_projection")
# An mmproj file calls itself "clip" whichever towers it holds, and some names mean one thing for
# Gemma 3 and another for Gemma 3n: who opens one says which it is.
ARCHITECTURES: dict[str, dict[str, Rows]] = {
    "gemma3": {"language_model": TEXT},
    "gemma3n": {"language_model": TEXT + TEXT_3N + STACKS_3N},
    "clip": {"vision_tower": VISION, "multi_modal_projector": PROJECTOR},
    "clip-gemma3n": {
        "vision_tower.timm_model": MOBILENET_IN_GGUF,
        "audio_tower": CONFORMER_IN_GGUF,
        "embed_vision": tuple(
            (hf, f"mm.{x}.weight") for hf, x in zip(EMBEDDER, EMBEDDER_IN_GGUF, strict=True)
        ),
        "embed_audio": tuple(
            (hf, f"mm.a.{x}.weight") for hf, x in zip(EMBEDDER, EMBEDDER_IN_GGUF, strict=True)
        ),
    },
}

NORM_SHIFTS = {"gemma3": 1.0, "gemma3n": 0.0, "clip": 1.0, "clip-gemma3n": 0.0}

# Prefixes in Hugging Face files, after an optional leading `model.`; the first that fits counts.
HF_PREFIXES = (
    ("language_model.model.", "language_model."),
    ("language_model.", "language_model."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
    ("multi_modal_projector.", "multi_modal_projector."),
    ("audio_tower.", "audio_tower."),
    ("embed_vision.", "embed_vision."),
    ("embed_audio.", "embed_audio."),
    ("", "language_model."),
)
HF_WRITTEN = {
    "text": {"language_model": "model."},
    "multimodal": {
        "language_model": "language_model.model.",
        "vision_tower": "vision_tower.vision_model.",
        "multi_modal_projector": "multi_modal_projector.",
    },
    "multimodal-3n": {
        part: f"model.{part}."
        for part in ("language_model", "vision_tower", "audio_tower", "embed_vision", "embed_audio")
    },
}
HEAD = "language_model.lm_head.weight"
HEAD_WRITTEN = {"text": "lm_head.weight", "multimodal": HEAD, "multimodal-3n": "lm_head.weight"}

NUMBER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,3})(?=\.)")
GGUF_TO_CANONICAL = {
    architecture: {gguf: f"{part}.{hf}" for part, rows in parts.items() for hf, gguf in rows}
    for architecture, parts in ARCHITECTURES.items()
}
CANONICAL_TO_GGUF = {
    canonical: gguf for rows in GGUF_TO_CANONICAL.values() for gguf, canonical in rows.items()
}
STACKS = {f"language_model.{stack}" for stack, _ in STACKS_3N}
PARTS_OF_STACKS = {f"{stack.removesuffix('weight')}{{n}}.weight": stack for stack in STACKS}
TOWER_NAMES_3N = {f"{part}.{name}" for part, rows in TOWERS_3N.items() for name in rows}
CANONICAL = CANONICAL_TO_GGUF.keys() - STACKS | PARTS_OF_STACKS.keys() | TOWER_NAMES_3N


def from_hf(name: str) -> str:
    """The canonical name of a tensor in a checkpoint of any layout; UnsupportedError if unknown."""
    suffix = name.removeprefix("model.")
    for prefix, part in HF_PREFIXES:
        if suffix.startswith(prefix):
            canonical = part + suffix.removeprefix(prefix)
            if _pattern(canonical)[0] in CANONICAL:
                return canonical
    raise UnsupportedError(f"the checkpoint holds a tensor {name!r} that no supported model has")


def to_hf(name: str, layout: str) -> str:
    """The name to write for a canonical one. Layouts: "text" (Gemma3ForCausalLM and Gemma 3n's),
    "multimodal" and "multimodal-3n" (their ForConditionalGeneration).

    These are the oldest spellings, which every release and every converter reads.
    """
    part, _, suffix = name.partition(".")
    prefixes = HF_WRITTEN.get(layout)
    if prefixes is None:
        raise UnsupportedError(f"unknown layout {layout!r}; choose one of {', '.join(HF_WRITTEN)}")
    if part not in prefixes or _pattern(name)[0] not in CANONICAL:
        raise UnsupportedError(f"a {layout} checkpoint has no place for tensor {name!r}")
    return HEAD_WRITTEN[layout] if name == HEAD else prefixes[part] + suffix


def from_gguf(name: str, architecture: str) -> str:
    """The canonical name of a tensor in a GGUF file, possibly that of a stack; UnsupportedError if
    unknown there."""
    pattern, numbers = _pattern(name)
    rows = _rows(architecture)
    if architecture == "clip":
        stem, dot, leaf = pattern.rpartition(".")
        pattern = OLLAMA.get(stem, stem) + dot + leaf
    canonical = rows.get(pattern) or rows.get(name if pattern else "")  # "conv_0" has no {n}
    if canonical is None:
        raise UnsupportedError(
            f"the file holds a tensor {name!r} that {architecture} does not have"
        )
    return _filled(canonical, numbers)


def to_gguf(name: str, architecture: str) -> str:
    """The GGUF name of a canonical one; UnsupportedError if the architecture has none, as for the
    parts of a stack."""
    pattern, numbers = _pattern(name)
    gguf = CANONICAL_TO_GGUF.get(pattern)
    if gguf is None or _rows(architecture).get(gguf) != pattern:
        raise UnsupportedError(f"GGUF files of {architecture} have no place for tensor {name!r}")
    return _filled(gguf, numbers)


def is_of_a_tower(name: str) -> bool:
    """Whether a name in a GGUF file is that of a tower's weight, and not of the decoder's."""
    return name.startswith(OF_TOWERS)


def stack_of(name: str) -> str | None:
    """The canonical name of the stack that GGUF puts this tensor in; None for most."""
    return PARTS_OF_STACKS.get(_pattern(name)[0])


def parts_of(stack: str, count: int) -> list[str]:
    """The canonical names of the matrices in a stack, in order."""
    return [f"{stack.removesuffix('weight')}{index}.weight" for index in range(count)]


def is_tower_3n(name: str) -> bool:
    """Whether a canonical name is that of a weight of Gemma 3n's towers or their embedders."""
    return _pattern(name)[0] in TOWER_NAMES_3N


def norm_shift(name: str, architecture: str) -> float:
    """What GGUF adds to this weight, to be taken back in float32: w_gguf = w + shift.

    Gemma 3 multiplies by 1 + w; converters store the sum, so that runtimes need no special norm.
    The vision tower's LayerNorms and all of Gemma 3n's are plain, and nothing but norms is shifted.
    """
    _rows(architecture)
    plain = name.startswith("vision_tower.") or not name.endswith("norm.weight")
    return 0.0 if plain else NORM_SHIFTS[architecture]


def _pattern(name: str) -> tuple[str, list[str]]:
    """A name with its numbers replaced by {n}, and those numbers."""
    if "{" in name:
        return "", []
    return NUMBER.sub("{n}", name), NUMBER.findall(name)


def _filled(pattern: str, numbers: list[str]) -> str:
    for number in numbers:
        pattern = pattern.replace("{n}", number, 1)
    return pattern


def _rows(architecture: str) -> dict[str, str]:
    rows = GGUF_TO_CANONICAL.get(architecture)
    if rows is None:
        raise UnsupportedError(
            f"unknown architecture {architecture!r}; known are {', '.join(ARCHITECTURES)}"
        )
    return rows
