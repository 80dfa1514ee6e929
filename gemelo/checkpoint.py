"""From a path to a model: the one place that knows every file format and every network.

The network is built on the meta device, which costs nothing; every tensor of the file is given its
canonical name, checked against the network's names and shapes, and assigned as a view of the memory
map. What is quantised stays quantised: a plain layer is exchanged for one with the same forward.
Names that are missing, unknown or of the wrong shape are one error that lists them. Nothing is read
from disk until it is used, except norms (a few kilobytes).

    checkpoint = read(Path("gemma-3-1b-it-q4_0.gguf"), "native")
    checkpoint.decoder, checkpoint.tokenizer, checkpoint.config
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gemelo.config import Gemma3Config, ModelConfig, read_config
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.inputs.tokenizer import Tokenizer
from gemelo.kernels.formats import FORMATS, Packed, pack, unpack
from gemelo.kernels.linear import QuantEmbedding, QuantLinear
from gemelo.models.gemma3 import Gemma3
from gemelo.models.layers import Embedding, Linear
from gemelo.models.multimodal import Gemma3Tree
from gemelo.weights import metadata, names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.safetensors import Safetensors

WeightFormat = Literal["native", "bf16", "f32", "q8_0", "q4_0"]
Weight = Tensor | Packed
_LISTED = 8  # names in an error message before "and n more"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: its network, its tokenizer, and where they came from."""

    path: Path
    config: ModelConfig
    tree: Gemma3Tree
    tokenizer: Tokenizer
    format: WeightFormat

    @property
    def decoder(self) -> Gemma3:
        return self.tree.language_model

    @property
    def weights_bytes(self) -> int:
        """Bytes of all the decoder's weights as they are held."""
        return sum(module_bytes(module) for module in self.decoder.modules())


@dataclass(frozen=True)
class Source:
    """An open file, its names made canonical: what to build, and a way to each tensor."""

    path: Path
    config: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    tensor: Callable[[str], Weight]


def read(
    path: Path,
    format: WeightFormat = "native",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Load a GGUF file or a directory with config.json and safetensors.

    format "native" keeps every matrix as the file has it. Raises `GemeloError` for a file that is
    broken or is not a model that gemelo runs. `progress` gets tensors done and tensors in all.
    """
    if format not in get_args(WeightFormat):
        raise InputError(f"format {format!r} is not one of {', '.join(get_args(WeightFormat))}")
    source = open_source(path)
    tree = build(source)
    dtype = activation_dtype(source, format)
    shapes = source.shapes
    for done, name in enumerate(shapes):
        try:
            assign(tree, name, source.tensor(name), format, dtype, device)
        except GemeloError as error:
            raise type(error)(f"{path}: {name}: {error}") from None
        if progress is not None:
            progress(done + 1, len(shapes))
    return Checkpoint(path, source.config, tree.eval(), read_tokenizer(path), format)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model file or directory, without its weights."""
    if path.is_dir():
        return Tokenizer.from_file(path)
    return Tokenizer.from_gguf(GGUFFile(path).metadata)


def open_source(path: Path) -> Source:
    """Open a model's files and read its config; no tensor is touched."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.is_dir():
        config_file = path / "config.json"
        if not config_file.is_file():
            raise InputError(f"{path}: a model directory needs a config.json and safetensors files")
        config = read_config(read_json(config_file))
        return Source(path, config, *_tied(path, config, *_canonical(Safetensors(path))))
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: give the directory that holds this file and its config.json")
    file = GGUFFile(path)
    try:
        raw = metadata.config_from_gguf(file.metadata)
    except GemeloError as error:
        raise type(error)(f"{path}: {error}") from None
    architecture = str(file.metadata["general.architecture"])
    shapes, tensor = _canonical(file)
    embedding = shapes.get("language_model.embed_tokens.weight")
    if embedding is not None and embedding[0] != raw["vocab_size"] and len(embedding) == 2:
        raw["vocab_size"] = embedding[0]  # rows may be padded past the tokenizer's last id
    config = read_config(raw | {"tie_word_embeddings": _HEAD not in shapes})

    def unshifted(name: str) -> Weight:
        weight, shift = tensor(name), names.norm_shift(name, architecture)
        if shift and isinstance(weight, Tensor):
            return weight.float() - shift  # GGUF stores 1 + w
        return weight

    return Source(path, config, shapes, unshifted)


_HEAD = "language_model.lm_head.weight"


Named = tuple[dict[str, tuple[int, ...]], Callable[[str], Weight]]


def _canonical(file: GGUFFile | Safetensors) -> Named:
    """Shapes by canonical name, and the way to each tensor. Names nobody knows are one error."""
    original: dict[str, str] = {}
    unknown: list[str] = []
    for name in file.names():
        try:
            canonical = _rename(file, name)
        except UnsupportedError:
            unknown.append(name)
            continue
        if canonical in original:
            raise FileFormatError(
                f"{file.path}: {name} and {original[canonical]} are the same weight"
            )
        original[canonical] = name
    if unknown:
        raise FileFormatError(f"{file.path}: {_listing('unknown', unknown)}")
    shapes = {canonical: file.shape(name) for canonical, name in original.items()}
    return shapes, lambda canonical: file.tensor(original[canonical])


def _rename(file: GGUFFile | Safetensors, name: str) -> str:
    if isinstance(file, GGUFFile):
        return names.from_gguf(name, str(file.metadata["general.architecture"]))
    return names.from_hf(name)


def _tied(
    path: Path,
    config: ModelConfig,
    shapes: dict[str, tuple[int, ...]],
    tensor: Callable[[str], Weight],
) -> Named:
    """Drop a head that only repeats the embedding it is tied to; refuse one that does not."""
    if config.tie_word_embeddings and _HEAD in shapes:
        head, embedding = tensor(_HEAD), tensor("language_model.embed_tokens.weight")
        if not (isinstance(head, Tensor) and torch.equal(head, embedding)):  # type: ignore[arg-type]
            raise FileFormatError(
                f"{path}: lm_head.weight differs from embed_tokens.weight, but config.json ties "
                "them; set tie_word_embeddings to false there to use it"
            )
        del shapes[_HEAD]
    return shapes, tensor


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or one clear line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: expected a JSON object")
    return value


# ---- building ------------------------------------------------------------------------------------


def build(source: Source) -> Gemma3Tree:
    """The network on the meta device, once the file's names and shapes are found to fit it."""
    if not isinstance(source.config, Gemma3Config):
        raise UnsupportedError(f"{source.path}: {source.config.model_type} cannot be loaded yet")
    with torch.device("meta"):
        tree = Gemma3Tree(source.config)
    wanted = {name: tuple(p.shape) for name, p in tree.named_parameters()}
    found = dict(source.shapes)
    problems = [
        _listing("missing", [name for name in wanted if name not in found]),
        _listing("unknown", [name for name in found if name not in wanted]),
        _listing(
            "of the wrong shape",
            [
                f"{name} {found[name]} instead of {shape}"
                for name, shape in wanted.items()
                if name in found and found[name] != shape
            ],
        ),
    ]
    if any(problems):
        raise FileFormatError(f"{source.path}: " + "; ".join(filter(None, problems)))
    return tree


def _listing(what: str, found: list[str]) -> str:
    if not found:
        return ""
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return f"{len(found)} weights {what}: {', '.join(found[:_LISTED])}{more}"


def activation_dtype(source: Source, format: WeightFormat) -> torch.dtype:
    """bfloat16 if asked for or if all the decoder's matrices are that; else float32.

    float16 is never computed in: Gemma 3's residual stream passes its largest number, 65504.
    """
    if format in ("f32", "q8_0", "q4_0"):
        return torch.float32
    if format == "bf16":
        return torch.bfloat16
    matrices = [
        source.tensor(name)
        for name, shape in source.shapes.items()
        if name.startswith("language_model.") and len(shape) == 2
    ]
    whole = all(isinstance(m, Tensor) and m.dtype == torch.bfloat16 for m in matrices)
    return torch.bfloat16 if whole else torch.float32


def assign(
    tree: nn.Module,
    name: str,
    weight: Weight,
    format: WeightFormat,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Put one weight in its place; a quantised one brings its own layer."""
    owner_name, _, leaf = name.rpartition(".")
    owner = tree.get_submodule(owner_name)
    if isinstance(owner, Linear | Embedding):
        weight = as_format(weight, format, dtype, isinstance(owner, Embedding))
    if isinstance(weight, Packed):
        weight = Packed(weight.blocks.to(device), weight.format)
        layer = (
            QuantEmbedding(weight, dtype) if isinstance(owner, Embedding) else QuantLinear(weight)
        )
        parent, _, attribute = owner_name.rpartition(".")
        setattr(tree.get_submodule(parent), attribute, layer)
    else:
        owner.register_parameter(leaf, nn.Parameter(weight.to(device), requires_grad=False))


def as_format(weight: Weight, format: WeightFormat, dtype: torch.dtype, embedding: bool) -> Weight:
    """A matrix in the format asked for; itself, untouched, where it is in it already.

    The embedding is the head too, so that "q4_0" gives it 8 bits, as llama.cpp's mixtures do.
    """
    if format == "native":
        if isinstance(weight, Packed) or weight.dtype == dtype:
            return weight
        return as_blocks(weight)
    if format in ("bf16", "f32"):
        return unpack(weight, dtype) if isinstance(weight, Packed) else weight.to(dtype)
    wanted = FORMATS["q8_0" if embedding else format]
    if isinstance(weight, Packed):
        if weight.format == wanted:
            return weight
        weight = unpack(weight)
    return pack(weight, wanted)


def as_blocks(weight: Tensor) -> Packed:
    """A float matrix as blocks of one: it stays mapped, and is widened as it is used."""
    kinds = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}
    return Packed(weight.view(torch.uint8), FORMATS[kinds[weight.dtype]])


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's own weights, quantised or not, children left out."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return sum(tensor.nbytes for tensor in own)
