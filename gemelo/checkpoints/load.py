"""Loading a checkpoint: weights checked against the config, and kept as mapped views.

Every tensor of the file is checked by name and shape (`parameter_check`), and is a view of the
memory map from then on. What is quantised stays quantised, what is half precision stays that. Names
that are missing, unknown or of the wrong shape are one error that lists them. Nothing is read from
disk until it is used. Towers are checked with the rest, and made when the first picture or sound
asks for them (`modules`), which needs PyTorch.

Gemma 3n's table of per-layer embeddings is half the file, and a token gathers one row of it: it
stays as the file has it, mapped, whatever format is asked for. The coefficients of its streams are
taken as they are, since the reference clips them (`altup_coef_clip`) only while it trains. Towers
stay as the file has them too, whatever block format is asked for.

    checkpoint = load_checkpoint(Path("gemma-3-1b-it-q4_0.gguf"), "native")
    checkpoint.weights, checkpoint.tokenizer, checkpoint.config, checkpoint.notices
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from gemelo.checkpoints.companion import with_companion
from gemelo.checkpoints.formats import as_format, format_of
from gemelo.checkpoints.mmproj import with_mmproj
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.slice import without_padding
from gemelo.checkpoints.source import DECODER, PER_LAYER_EMBEDDING, Source
from gemelo.checkpoints.tokenizers import tokenizer_of
from gemelo.config import ModelConfig
from gemelo.config.options import WeightFormat
from gemelo.errors import GemeloError, InputError
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.inputs.prompt.processor_config import FILES, Preprocessor, read_preprocessor
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Packed, converted
from gemelo.text_files import read_object
from gemelo.weights.tensors import Weights


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: its decoder's weights, its tokenizer, and where they came from.

    `source` has the towers' weights. `notices` says, a sentence each, what of the files was left
    out or put right, where a person can act on it; `details` what is usual in such files.
    """

    path: Path
    config: ModelConfig
    weights: Weights
    source: Source = field(repr=False)
    tokenizer: PreTrainedTokenizer
    format: WeightFormat
    notices: tuple[str, ...] = ()
    preprocessor: Preprocessor = Preprocessor()
    details: tuple[str, ...] = ()

    @property
    def tower_weights(self) -> dict[str, Packed]:
        """The towers' weights by their canonical names; none of a text model."""
        names = (name for name in self.source.shapes if not name.startswith(DECODER))
        return {name: self.source.tensor(name) for name in names}


def load_checkpoint(
    path: Path,
    format: WeightFormat = "native",
    progress: Callable[[int, int], None] | None = None,
    mmproj: Path | None = None,
    finish: Callable[[Source, Weights], None] = lambda source, weights: None,
) -> Checkpoint:
    """Load a GGUF file or a directory with config.json and safetensors.

    format "native" keeps every matrix as the file has it. Raises `GemeloError` for a file that is
    broken or is not a model that gemelo runs. `progress` gets tensors done and tensors in all.
    mmproj has the towers of a GGUF; not given, one that lies beside it is taken. `finish` is what
    else is to be done with the weights; like all that concerns weights, it happens while the
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
        weights, widened = decoder_weights(source, format, progress)
        finish(source, weights)
    spelling = tokenizer.result()
    lost = native.missing_kernels_notice()
    of_kernels = () if lost is None else (lost,)
    notices = (*source.notices, *preprocessor.notices, *spelling.notices, *of_kernels, *widened)
    return Checkpoint(
        path, source.config, weights, source, spelling, format, notices, preprocessor,
        source.details,
    )  # fmt: skip


def decoder_weights(
    source: Source,
    format: WeightFormat,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Weights, tuple[str, ...]]:
    """The weights of an open source's decoder in the format asked for, and what is to be said of
    them. Names and shapes are checked, the towers' too."""
    check_parameters(source)
    tensors: dict[str, Packed] = {}
    unread: dict[str, list[Packed]] = {}
    names = [name for name in source.shapes if name.startswith(DECODER)]
    for done, name in enumerate(names):
        try:
            weight = source.tensor(name)
            if len(weight.shape) == 2:
                weight = as_format(weight, format_of(name, format))
                if _has_no_kernel(name, weight):
                    wide = converted(weight, FORMATS["f16"])
                    unread.setdefault(weight.format.name, []).append(wide)
                    weight = wide
        except GemeloError as error:
            raise type(error)(f"{source.path}: {name}: {error}") from None
        tensors[name.removeprefix(DECODER)] = weight
        if progress is not None:
            progress(done + 1, len(names))
    return Weights(tensors), tuple(_widened_notice(*entry) for entry in unread.items())


def _has_no_kernel(name: str, weight: Packed) -> bool:
    """Whether the native kernels, where there are some, do not multiply with a weight's format."""
    is_read = name == PER_LAYER_EMBEDDING or weight.format.name in cpu.FORMATS
    return native.module is not None and not is_read


def _widened_notice(format: str, wide: list[Packed]) -> str:
    nbytes = sum(weight.nbytes for weight in wide)
    return (
        f"{len(wide)} matrices in {format.upper()}, for which there are no kernels, are widened to "
        f"f16 in memory: {nbytes / 1e9:.1f} GB; a file in Q4_K_M or Q8_0 needs none of it"
    )


def preprocessor_of(source: Source) -> Preprocessor:
    """What a directory's files say of pictures and sound; a GGUF has no such files."""
    files = [source.path / name for name in FILES if source.gguf_metadata is None]
    said = [(file, read_object(file)) for file in files if file.is_file()]
    return read_preprocessor(said, source.config)
