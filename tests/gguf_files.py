"""GGUF files made of others: with other key-values, in parts, and in the manner of Ollama."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.checkpoints.convert import convert
from gemelo.config import Gemma3Config
from gemelo.kernels.quants import FORMATS
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import TensorToWrite, write_gguf


def tensors_of(file: GGUFFile, names: Sequence[str] | None = None) -> Iterator[TensorToWrite]:
    for name in file.names() if names is None else names:
        yield name, file.shape(name), file.format(name), lambda n=name: file.tensor(n)  # type: ignore[misc]


def rewritten(source: Path, target: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A copy with other key-values; None drops one."""
    file = GGUFFile(source)
    changes = changes or {}
    gone = [key for key, value in changes.items() if value is None]
    kept = {key: value for key, value in changes.items() if value is not None}
    write_gguf(target, file.metadata.changed(kept, gone), tensors_of(file))
    return target


def split(
    source: Path, stem: Path, count: int, *, first_is_empty: bool = False, all_facts: bool = False
) -> list[Path]:
    """The file in parts, as `gguf-split` names and marks them."""
    file = GGUFFile(source)
    names, paths = file.names(), []
    runs: list[Sequence[str]] = [list(run) for run in np.array_split(names, count - first_is_empty)]
    for number, run in enumerate([[], *runs] if first_is_empty else runs):
        facts = {
            "split.no": np.uint16(number),
            "split.count": np.uint16(count),
            "split.tensors.count": np.int32(len(names)),
        }
        if all_facts or number == 0:
            facts = {**{k: file.metadata[k] for k in file.metadata}, **facts}
        paths.append(stem.with_name(f"{stem.name}-{number + 1:05}-of-{count:05}.gguf"))
        write_gguf(paths[-1], facts, tensors_of(file, [str(name) for name in run]))
    return paths


_EYE = (  # llama.cpp's word, Ollama's
    ("v.patch_embd", "v.patch_embedding"),
    ("v.position_embd", "v.position_embedding"),
    ("v.post_ln", "v.post_layernorm"),
    (".ln1.", ".layer_norm1."),
    (".ln2.", ".layer_norm2."),
    (".attn_out.", ".attn_output."),
    (".ffn_up.", ".mlp.fc1."),
    (".ffn_down.", ".mlp.fc2."),
    ("mm.input_projection", "mm.mm_input_projection"),
    ("mm.soft_emb_norm", "mm.mm_soft_emb_norm"),
)


def ollama(directory: Path, target: Path, config: Gemma3Config) -> Path:
    """A model with its eye in one file: Ollama's names and keys, no suffix that tells anything."""
    text, eye = target.with_name("text.gguf"), target.with_name("eye.gguf")
    convert(directory, text, text_only=True)
    convert(directory, eye, mmproj=True)
    decoder, towers = GGUFFile(text), GGUFFile(eye)
    vision = config.vision
    assert vision is not None
    facts = {
        "gemma3.vision.block_count": vision.num_hidden_layers,
        "gemma3.vision.embedding_length": vision.hidden_size,
        "gemma3.vision.feed_forward_length": vision.intermediate_size,
        "gemma3.vision.image_size": vision.image_size,
        "gemma3.vision.patch_size": vision.patch_size,
        "gemma3.vision.num_channels": 3,
        "gemma3.vision.attention.head_count": vision.num_attention_heads,
        "gemma3.vision.attention.layer_norm_epsilon": vision.layer_norm_eps,
        "gemma3.mm.tokens_per_image": config.mm_tokens_per_image,
        "general.parameter_count": np.uint64(12345),
        "tokenizer.ggml.add_padding_token": False,
    }
    # What its converter leaves out.
    gone = ("gemma3.attention.layer_norm_rms_epsilon", "gemma3.rope.freq_base_swa", "general.type")
    entries = [*tensors_of(decoder)]
    for name, shape, format, make in tensors_of(towers):
        for ours, theirs in _EYE:
            name = name.replace(ours, theirs)
        plain = FORMATS["f32"] if "input_projection" not in name else format
        entries.append((name, shape, plain, make))
    write_gguf(target, decoder.metadata.changed(facts, gone), entries)
    text.unlink()
    eye.unlink()
    return target
