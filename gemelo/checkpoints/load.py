"""Loading a checkpoint: weights checked against the network, and assigned as mapped views.

The network is built on the meta device, which costs nothing; every tensor of the file is checked
against the network's names and shapes, and assigned as a view of the memory map. What is quantised
stays quantised: a plain layer is exchanged for one with the same forward. Names that are missing,
unknown or of the wrong shape are one error that lists them. Nothing is read from disk until it is
used, except norms (a few kilobytes).

Gemma 3n's table of per-layer embeddings is half the file, and a token gathers one row of it: it
stays as the file has it, mapped, whatever format is asked for. The coefficients of its streams are
taken as they are, since the reference clips them (`altup_coef_clip`) only while it trains. Towers
stay as the file has them too, whatever block format is asked for, and run in its bfloat16 or in
float32.

    checkpoint = load_checkpoint(Path("gemma-3-1b-it-q4_0.gguf"), "native")
    checkpoint.decoder, checkpoint.tokenizer, checkpoint.config, checkpoint.notices
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gemelo.checkpoints.companion import with_companion
from gemelo.checkpoints.mmproj import with_mmproj
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.slice import without_padding
from gemelo.checkpoints.source import DECODER, PER_LAYER_EMBEDDING, Source, Weight, listing
from gemelo.config import ModelConfig
from gemelo.config.options import WeightFormat
from gemelo.errors import FileFormatError, GemeloError, InputError
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.inputs.prompt.processor_config import FILES, Preprocessor, read_preprocessor
from gemelo.kernels.linear import QuantEmbedding, QuantLinear, as_blocks, module_bytes
from gemelo.kernels.native import missing_kernels_notice
from gemelo.kernels.quants import FORMATS, Packed, pack, unpack
from gemelo.models.decoder import Decoder
from gemelo.models.layers import Embedding, Linear
from gemelo.models.multimodal import Tree, tree_of
from gemelo.models.siglip import Affine
from gemelo.text_files import read_object
from gemelo.weights.gguf import GGUFFile

# Few and sensitive weights that "q4_0" gives 8 bits: the embedding, which is the head too, and what
# all streams of Gemma 3n go through.
_EIGHT_BITS = ("embed_tokens.", "altup_", ".laurel.", "per_layer_model_projection.")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: its network, its tokenizer, and where they came from.

    `notices` says, a sentence each, what of the files was left out or put right, where a person can
    act on it; `details` what is usual in such files.
    """

    path: Path
    config: ModelConfig
    tree: Tree
    tokenizer: PreTrainedTokenizer
    format: WeightFormat
    notices: tuple[str, ...] = ()
    preprocessor: Preprocessor = Preprocessor()
    details: tuple[str, ...] = ()

    @property
    def decoder(self) -> Decoder:
        return self.tree.language_model

    @property
    def weights_bytes(self) -> int:
        """Bytes of all the decoder's weights as they are held."""
        return sum(module_bytes(module) for module in self.decoder.modules())

    @property
    def stored_formats(self) -> tuple[str, ...]:
        """Formats that the decoder's matrices are held in, most bytes first."""
        sizes: Counter[str] = Counter()
        for module in self.decoder.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Packed):
                sizes[weight.format.name] += module_bytes(module)
            elif isinstance(weight, Tensor) and weight.dim() > 1:
                sizes[str(weight.dtype).removeprefix("torch.")] += weight.nbytes
        return tuple(name for name, _ in sizes.most_common())


def load_checkpoint(
    path: Path,
    format: WeightFormat = "native",
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    mmproj: Path | None = None,
    finish: Callable[[Decoder], None] = lambda decoder: None,
) -> Checkpoint:
    """Load a GGUF file or a directory with config.json and safetensors.

    format "native" keeps every matrix as the file has it. Raises `GemeloError` for a file that is
    broken or is not a model that gemelo runs. `progress` gets tensors done and tensors in all.
    mmproj has the towers of a GGUF; not given, one that lies beside it is taken. `finish` is what
    else is to be done to the decoder; like all that concerns weights, it happens while the
    tokenizer is made in a thread, which has ended when this returns or raises.
    """
    if format not in get_args(WeightFormat):
        raise InputError(f"format {format!r} is not one of {', '.join(get_args(WeightFormat))}")
    opened = open_source(path)
    opened = with_companion(opened) if mmproj is None else with_mmproj(opened, mmproj)
    source = without_padding(opened)
    preprocessor = preprocessor_of(source)
    with ThreadPoolExecutor(1, "tokenizer") as beside:
        tokenizer = beside.submit(tokenizer_of, source)
        tree = assemble(source, format, activation_dtype(source, format), device, progress)
        finish(tree.language_model)
    lost = missing_kernels_notice() if is_quantised(tree) else None
    spelling = tokenizer.result()
    of_kernels = () if lost is None else (lost,)
    notices = (*source.notices, *preprocessor.notices, *spelling.notices, *of_kernels)
    return Checkpoint(
        path, source.config, tree, spelling, format, notices, preprocessor, source.details
    )


def is_quantised(tree: nn.Module) -> bool:
    """Whether any matrix of a network is kept in blocks."""
    return any(isinstance(module, QuantLinear) for module in tree.modules())


def assemble(
    source: Source,
    format: WeightFormat,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Tree:
    """The network of an open source with its weights in it; dtype is the activations'."""
    tree = build(source)
    towers = tower_dtype(source, format)
    for done, name in enumerate(source.shapes):
        target = "cpu" if name == PER_LAYER_EMBEDDING else device  # only rows of it ever travel
        try:
            if name.startswith(DECODER):
                assign(tree, name, source.tensor(name), format, dtype, target)
            else:
                assign_to_tower(tree, name, source.tensor(name), towers, target)
        except GemeloError as error:
            raise type(error)(f"{source.path}: {name}: {error}") from None
        if progress is not None:
            progress(done + 1, len(source.shapes))
    return tree.eval()


def tokenizer_of(source: Source) -> PreTrainedTokenizer:
    """The tokenizer that came with an open source; what its config says ends a text does."""
    if source.gguf_metadata is not None:
        return _tokenizer_of_gguf(source.path, source.gguf_metadata)
    tokenizer = PreTrainedTokenizer.from_file(source.path)
    ends = {id for id in source.config.eos_token_id if id < tokenizer.vocab_size}
    stops = tuple(sorted({*tokenizer.stop_ids, *ends}))
    return dataclasses.replace(tokenizer, stop_ids=stops)


def _tokenizer_of_gguf(path: Path, facts: Mapping[str, Any]) -> PreTrainedTokenizer:
    try:
        return PreTrainedTokenizer.from_gguf(facts)
    except GemeloError as error:
        raise type(error)(f"{path}: {error}") from None


def preprocessor_of(source: Source) -> Preprocessor:
    """What a directory's files say of pictures and sound; a GGUF has no such files."""
    files = [source.path / name for name in FILES if source.gguf_metadata is None]
    said = [(file, read_object(file)) for file in files if file.is_file()]
    return read_preprocessor(said, source.config)


def read_tokenizer(path: Path) -> PreTrainedTokenizer:
    """The tokenizer of a model file or directory, without its weights."""
    if path.is_dir():
        return PreTrainedTokenizer.from_file(path)
    return _tokenizer_of_gguf(path, GGUFFile(path).metadata)


# ---- building ------------------------------------------------------------------------------------


def build(source: Source) -> Tree:
    """The network on the meta device, once the file's names and shapes are found to fit it."""
    tree = _network(source)
    expected = {name: tuple(p.shape) for name, p in tree.named_parameters()}
    shapes = source.shapes
    problems = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "of the wrong shape": [
            f"{name} {shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    wrong = [name for names in problems.values() for name in names]
    if wrong:
        of_towers = not any(name.startswith(DECODER) for name in wrong)
        file = source.mmproj if source.mmproj and of_towers else source.path
        lists = (listing(what, names) for what, names in problems.items())
        raise FileFormatError(f"{file}: " + "; ".join(filter(None, lists)))
    return tree


def _network(source: Source) -> Tree:
    """The network without weights, which has no place for more numbers than can be counted."""
    try:
        with torch.device("meta"):
            return tree_of(source.config)
    except (RuntimeError, OverflowError):
        raise FileFormatError(
            f"{source.path}: its config describes weights of more numbers than can be counted; its "
            "sizes are broken"
        ) from None


def activation_dtype(source: Source, format: WeightFormat) -> torch.dtype:
    """bfloat16 if asked for or if all the decoder's matrices are that; else float32.

    The per-layer table, which is only gathered from, and the streams' coefficients, which some
    converters widen, have no say. float16 is never computed in: Gemma 3's residual stream passes
    its largest number, 65504.
    """
    if format in ("f32", "q8_0", "q4_0"):
        return torch.float32
    if format == "bf16":
        return torch.bfloat16
    return held_dtype(
        source.tensor(name)
        for name, shape in source.shapes.items()
        if name.startswith(DECODER)
        and len(shape) == 2
        and not (name == PER_LAYER_EMBEDDING or is_tiny(name))
    )


def tower_dtype(source: Source, format: WeightFormat) -> torch.dtype:
    """What towers compute in: bfloat16 or float32 if asked for, else what all their weights are
    stored as; float32 for a mixture."""
    if format in ("bf16", "f32"):
        return torch.bfloat16 if format == "bf16" else torch.float32
    return held_dtype(source.tensor(name) for name in source.shapes if not name.startswith(DECODER))


def held_dtype(weights: Iterable[Weight]) -> torch.dtype:
    """bfloat16 where all weights are stored as that, else float32."""
    whole = all(isinstance(w, Tensor) and w.dtype == torch.bfloat16 for w in weights)
    return torch.bfloat16 if whole else torch.float32


def is_tiny(name: str) -> bool:
    """Whether a weight is one of AltUp's coefficients, a few kilobytes a layer: such are held in
    the activations' dtype."""
    return ".altup." in name


# ---- assigning -----------------------------------------------------------------------------------


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
    if isinstance(owner, Linear | Embedding) or is_tiny(name):
        weight = as_format(weight, format_of(name, format, dtype), dtype)
    if isinstance(weight, Packed):
        weight = Packed(weight.blocks.to(device), weight.format)
        layer = (
            QuantEmbedding(weight, dtype) if isinstance(owner, Embedding) else QuantLinear(weight)
        )
        parent, _, attribute = owner_name.rpartition(".")
        setattr(tree.get_submodule(parent), attribute, layer)
    else:
        owner.register_parameter(leaf, nn.Parameter(weight.to(device), requires_grad=False))


def assign_to_tower(
    tree: nn.Module, name: str, weight: Weight, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Put a tower's weight in its place, as the file has it wherever `dtype` can use it so."""
    owner_name, _, leaf = name.rpartition(".")
    owner = tree.get_submodule(owner_name)
    if isinstance(weight, Packed):
        weight = unpack(weight, dtype)
    if not isinstance(owner, Affine):
        weight = weight.to(dtype)
    owner.register_parameter(leaf, nn.Parameter(weight.to(device), requires_grad=False))


def format_of(name: str, format: WeightFormat, dtype: torch.dtype) -> WeightFormat:
    """The format of one matrix, given that of the whole and the activations' dtype."""
    if name == PER_LAYER_EMBEDDING:
        return "native"
    if is_tiny(name):
        return "bf16" if dtype == torch.bfloat16 else "f32"
    return "q8_0" if format == "q4_0" and keeps_eight_bits(name) else format


def keeps_eight_bits(name: str) -> bool:
    """Whether "q4_0" leaves a matrix 8 bits, as llama.cpp's mixtures do."""
    return any(part in name for part in _EIGHT_BITS)


def as_format(weight: Weight, format: WeightFormat, dtype: torch.dtype) -> Weight:
    """A matrix in the format asked for; itself, untouched, where it is in it already."""
    if format == "native":
        if isinstance(weight, Packed) or weight.dtype == dtype:
            return weight
        return as_blocks(weight)
    if format in ("bf16", "f32"):
        return unpack(weight, dtype) if isinstance(weight, Packed) else weight.to(dtype)
    wanted = FORMATS[format]
    if isinstance(weight, Packed):
        if weight.format == wanted:
            return weight
        weight = unpack(weight)
    return pack(weight, wanted)
