"""Random weights in the real shapes of Gemma 3 and Gemma 3n, as GGUF: for speed, never for quality.

    python benchmarks/random_weights.py 1b q4_0 gemma3-1b-q4_0.gguf

How fast a model runs depends on the bytes of its weights and not on what they say, so files that
nobody may redistribute are replaced by noise of the same layout. Formats follow the mixtures of
llama.cpp's quantiser, since that is what people download: 4 bits everywhere but the embedding,
which is the head too (6 bits where its rows are whole blocks of 256, else 8), and half precision
where all streams of Gemma 3n pass. The tokenizer is the embedded default's. Blocks repeat one
random stretch, so the largest file takes as long as the disk.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemelo.checkpoints.locate import demo
from gemelo.checkpoints.plan import Target, gguf_targets
from gemelo.checkpoints.source import (
    EMBEDDING,
    PER_LAYER_EMBEDDING,
    Source,
    architecture,
)
from gemelo.cli.terminal import Bar
from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig
from gemelo.config.parameters import parameter_shapes
from gemelo.errors import GemeloError
from gemelo.kernels.quants import FORMATS, Format, Packed
from gemelo.weights import metadata, names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import TensorToWrite, write_gguf

VOCABULARY, CONTEXT = 262144, 32768
SHAPES: dict[str, ModelConfig] = {
    "270m": Gemma3Config(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        max_position_embeddings=CONTEXT,
    ),
    "1b": Gemma3Config(
        vocab_size=VOCABULARY,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        max_position_embeddings=CONTEXT,
    ),
    "4b": Gemma3Config(
        vocab_size=VOCABULARY,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        sliding_window=1024,
        rope_scaling_factor=8.0,
    ),
    "e2b": Gemma3nConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=30,
        num_kv_shared_layers=10,
        intermediate_size=(8192,) * 30,
    ),
    "e4b": Gemma3nConfig(vocab_size=VOCABULARY),
}
MIXTURES = ("q4_0", "q8_0", "bf16")
_FILE_TYPES = {"q4_0": 2, "q8_0": 7, "bf16": 32}
_HALF = ("altup_", ".laurel.", "per_layer_model_projection.")  # what a quantiser leaves alone
_STRETCH_BLOCKS, _STRETCH_FLOATS = 1 << 16, 1 << 20  # of noise that a matrix repeats
# Where a block's scale is, and the root mean square of its integers, which the scale divides.
_SCALES = {"q4_0": (0, 4.6), "q8_0": (0, 74.0), "q6_k": (208, 18.5 * 74.0)}


def write(shape: str, mixture: str, path: Path, progress: Callable[[int], None]) -> None:
    """Write a file of random weights. shape is a key of SHAPES, mixture one of MIXTURES."""
    config = SHAPES[shape]
    kind = architecture(config)
    tokens = {k: v for k, v in GGUFFile(demo()).metadata.items() if k.startswith("tokenizer.")}
    values = {
        "general.architecture": kind,
        "general.type": "model",
        "general.name": f"random {shape}",
        "general.quantization_version": 2,
        "general.file_type": _FILE_TYPES[mixture],
    }
    values |= metadata.config_to_gguf(config.to_hf()) | tokens
    write_gguf(path, values, list(tensors(config, mixture, kind)), progress)


def tensors(config: ModelConfig, mixture: str, kind: str) -> Iterator[TensorToWrite]:
    """Every tensor of the file, made when its turn comes."""
    for target in gguf_targets(plan(config), "f32"):
        chosen = format_of(target, mixture, config)
        yield names.to_gguf(target.name, kind), target.shape, chosen, maker(target, chosen)


def plan(config: ModelConfig) -> Source:
    """Names and shapes of a decoder, as if there were a file of it whose norms change nothing."""
    shapes = parameter_shapes(config)
    neutral = 1.0 if isinstance(config, Gemma3nConfig) else 0.0  # Gemma 3's norms are 1 + weight

    def tensor(name: str) -> Packed:
        if len(shapes[name]) == 1:
            return Packed.of(np.full(shapes[name], neutral, np.float32))
        return Packed.of(np.zeros(1, np.float32))  # of a matrix only the format is looked at

    return Source(Path("random.gguf"), config, shapes, tensor)


def format_of(target: Target, mixture: str, config: ModelConfig) -> Format:
    """The format of one tensor in a mixture."""
    if len(target.shape) == 1 or ".altup." in target.name:
        return FORMATS["f32"]
    if any(part in target.name for part in _HALF):
        return FORMATS["f16"]
    if mixture == "q4_0" and target.name == EMBEDDING:
        return FORMATS["q8_0" if config.hidden_size % FORMATS["q6_k"].block else "q6_k"]
    return FORMATS[mixture]


def maker(target: Target, format: Format) -> Callable[[], Packed]:
    """How to make a tensor: norms are given, matrices are noise that keeps a vector's length."""
    if len(target.shape) == 1:
        return target.weight
    spread = target.shape[-1] ** -0.5
    if target.name == PER_LAYER_EMBEDDING:
        spread = 1 / 16  # a layer's part of a row has 256 columns
    # Every matrix differs: some runtimes keep equal ones once, and would read less than they must.
    generator = np.random.default_rng(zlib.crc32(target.name.encode()))
    if format.block == 1:
        return lambda: floats(target.shape, spread, generator)
    return lambda: blocks(target.shape, format, spread, generator)


def floats(shape: tuple[int, ...], spread: float, generator: np.random.Generator) -> Packed:
    """Random numbers with a standard deviation of `spread`."""
    stretch = generator.standard_normal(_STRETCH_FLOATS, np.float32) * np.float32(spread)
    return Packed.of(repeated(stretch, shape))


def blocks(
    shape: tuple[int, ...], format: Format, spread: float, generator: np.random.Generator
) -> Packed:
    """Random blocks whose numbers have a standard deviation of about `spread`."""
    size = (_STRETCH_BLOCKS, format.block_bytes)
    stretch = generator.integers(0, 256, size, np.uint8)
    place, root_mean_square = _SCALES[format.name]
    factors = generator.uniform(0.8, 1.2, (_STRETCH_BLOCKS, 1))
    scales = (factors * spread / root_mean_square).astype(np.float16)
    stretch[:, place : place + 2] = scales.view(np.uint8)
    return Packed(repeated(stretch.reshape(-1), (shape[0], format.row_bytes(shape[-1]))), format)


def repeated(stretch: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of `shape` that repeats `stretch` (N,) from its first element to its last."""
    out = np.empty(math.prod(shape), stretch.dtype)
    for start in range(0, len(out), len(stretch)):
        out[start : start + len(stretch)] = stretch[: len(out) - start]
    return out.reshape(shape)


def size_bytes(shape: str, mixture: str) -> int:
    """Bytes of all tensors of a file, its header left out."""
    config = SHAPES[shape]
    found = tensors(config, mixture, architecture(config))
    return sum(f.row_bytes(s[-1]) * math.prod(s[:-1]) for _, s, f, _ in found)


def write_with_bar(shape: str, mixture: str, path: Path) -> None:
    """`write`, with a progress bar on a terminal."""
    total, written = size_bytes(shape, mixture), 0

    def more(count: int) -> None:
        nonlocal written
        written += count
        bar(written, total)

    path.parent.mkdir(parents=True, exist_ok=True)
    with Bar(f"writing {path.name}") as bar:
        write(shape, mixture, path, more)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("mixture", choices=MIXTURES)
    parser.add_argument("file", type=Path)
    options = parser.parse_args()
    try:
        write_with_bar(options.shape, options.mixture, options.file)
    except GemeloError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # the writer leaves nothing half written
    return 0


if __name__ == "__main__":
    sys.exit(main())
