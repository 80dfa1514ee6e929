"""Model directories: safetensors checkpoints, adapters and embedding models recognised.

A directory may hold an adapter, a pickle, a GGUF, weights that another program packed, or files
left over from an earlier save. What gemelo does not read is named, with what to do; what lies
beside a model and is not read is a notice.

    check_directory(path);  notices = beside(path, Safetensors(path).files)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from gemelo.config import ModelConfig
from gemelo.config.config_json import eos_ids
from gemelo.errors import GemeloError, InputError, UnsupportedError, listed
from gemelo.text_files import read_object
from gemelo.weights.safetensors import INDEX_NAME, READ, SINGLE_NAME, Safetensors

GENERATION = "generation_config.json"
ADAPTER = "adapter_config.json"
EMBEDDER = ("modules.json", "config_sentence_transformers.json")
# Other ways to keep weights, by their files' endings, and what to do about them.
_ELSEWHERE = (
    ((".gguf",), "give the GGUF file itself"),
    (
        (".bin", ".pt", ".pth", ".ckpt", ".pkl"),
        "that is a pickle, which runs code when it is read: save the model as safetensors "
        "(transformers: save_pretrained), or take another copy of it",
    ),
    ((".h5", ".msgpack", ".onnx", ".npz"), "save the model as safetensors, or take another copy"),
)
_SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")
# How the tensors end that hold what packed weights are unpacked with, and whose they are.
_PACKED = (
    (("qweight", "qzeros", "g_idx"), "GPTQ or AWQ"),
    (("absmax", "quant_map", "nested_absmax", "SCB", "weight_format"), "bitsandbytes"),
    (("weight_packed", "weight_shape", "weight_zero_point"), "compressed-tensors"),
    (("weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale"), "FP8 or the like"),
    (("scales", "biases"), "MLX"),
    (("codebooks", "codes", "weight_qdata", "weight_global_scale"), "another program"),
)


def check_directory(path: Path) -> None:
    """Raise `InputError` for a directory that is no model's, saying what it is if that shows."""
    names = _names(path)
    if ADAPTER in names and not _weights(names):
        raise InputError(
            f"{path} holds an adapter{_base(path / ADAPTER)} and no model; merge the two (peft: "
            "merge_and_unload, then save_pretrained) and give that directory"
        )
    if "config.json" not in names:
        ggufs = [name for name in names if name.endswith(".gguf")]
        if ggufs:
            raise InputError(f"{path} holds GGUF files; give one of them: {_listed(ggufs)}")
        raise InputError(f"{path}: a model directory needs a config.json and safetensors files")


def check_weights(path: Path) -> None:
    """Raise `InputError` where a directory with a config has no weights that would be read."""
    names = _names(path)
    if SINGLE_NAME in names or INDEX_NAME in names:
        return
    lack = f"{path} holds neither {SINGLE_NAME} nor {INDEX_NAME}"
    if weights := _weights(names):
        parts = all(_SHARD.fullmatch(name) for name in weights)
        cure = "give the index too, or" if parts else "rename it, or"
        raise InputError(f"{lack}, but {_listed(weights)}; {cure} fetch the model again")
    for endings, what in _ELSEWHERE:
        if others := [name for name in names if name.endswith(endings)]:
            raise InputError(f"{lack}, but {_listed(others)}; {what}")
    raise InputError(lack)


def _names(path: Path) -> list[str]:
    try:
        return sorted(file.name for file in path.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _weights(names: list[str]) -> list[str]:
    """Files of weights that could be a model's."""
    return [n for n in names if n.endswith(".safetensors") and not n.startswith("adapter_")]


def beside(path: Path, read: Collection[Path]) -> tuple[str, ...]:
    """A sentence on what lies in a directory like a part of the model and is not read."""
    names = {file.name for file in read}
    extra = [file.name for file in path.glob("*.safetensors") if file.name not in names]
    if SINGLE_NAME in names and (path / INDEX_NAME).exists():
        extra.append(INDEX_NAME)
    if (path / ADAPTER).exists():
        extra.append(ADAPTER)
    if not extra:
        return ()
    return (f"{_listed(sorted(extra))} beside {_listed(sorted(names))}: not read",)


def check_embedder(path: Path) -> None:
    """Raise UnsupportedError for a model of sentence-transformers, whose vectors are its answer."""
    for name in EMBEDDER:
        if (path / name).exists():
            raise UnsupportedError(
                f"{path} holds {name}: an embedding model, which writes no text; gemelo runs "
                "models that write"
            )


def generation(path: Path) -> dict[str, Any]:
    """What a directory says of generation; nothing where it has no such file."""
    file = path / GENERATION
    return read_object(file) if file.exists() else {}


def with_ends(path: Path, config: ModelConfig) -> ModelConfig:
    """A config with the ids that end a text by the directory's generation_config.json, whose word
    counts more than config.json's, as in transformers."""
    raw = generation(path)
    if raw.get("eos_token_id") is None:
        return config
    try:
        return dataclasses.replace(config, eos_token_id=eos_ids(raw, raw))
    except GemeloError as error:
        raise type(error)(f"{path / GENERATION}: {error}") from None


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raise UnsupportedError if tensors are called as packed weights or those of an adapter are."""
    for name in names:
        if ".lora_" in name or name.startswith("base_model.model."):
            raise UnsupportedError(
                f"{path} holds {name!r:.80}, a weight of an adapter; merge it into its model first"
            )
        parts = name.split(".")
        for endings, whose in _PACKED:
            if parts[-1] in endings or "quant_state" in parts:
                raise UnsupportedError(
                    f"{path} holds {name!r:.80}: its weights are quantised ({whose}), and gemelo "
                    "reads f32, f16 and bf16 in safetensors; take the model as it was before, or a "
                    "GGUF of it"
                )


def check_types(file: Safetensors) -> None:
    """Raise UnsupportedError for weights that are not plain floats: integers, truth values, floats
    of 8 and of 64 bits."""
    wrong = [name for name in file.names() if file.dtype(name) not in READ]
    if wrong:
        shown = [f"{name[:80]} ({file.dtype(name)})" for name in wrong]
        raise UnsupportedError(
            f"{file.path} holds {_listed(shown)}; weights are read as "
            f"{', '.join(sorted(READ))}: convert the model to one of these"
        )


def _base(path: Path) -> str:
    """The model that an adapter is for, if its file says so."""
    try:
        name = read_object(path).get("base_model_name_or_path")
    except GemeloError:
        return ""
    return f" for {name:.80}" if isinstance(name, str) else ""


def _listed(names: Sequence[str]) -> str:
    return listed(names, most=4, show=lambda name: name[:80])
