"""Download size and resident memory of every published model, by format: docs/models.md's tables.

Computed, not measured: shapes follow from the published configs (`gemelo.config.parameters`), bytes
from the block formats, the KV cache from `gemelo.config.kv_bytes`. Which matrix has which format in
a Q4_K_M file is the rule of llama.cpp's quantiser, by which the files on the hub were made; a test
holds the results against those files, and against the memory that the benchmarks measured. Speed is
theirs too.

    python dev/model_sizes.py            # writes the tables of docs/models.md
    python dev/model_sizes.py --check    # exit code 1 where they are not what the sizes say
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemelo.checkpoints.known import KNOWN
from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig, VisionConfig, kv_bytes
from gemelo.config.parameters import decoder_shapes, parameter_shapes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
sys.path.insert(0, str(ROOT / "benchmarks"))

from markdown_tables import MISSING, filled, significant, table  # noqa: E402
from peer_tables import best, runs  # noqa: E402

VOCABULARY, GIB = 262144, 1 << 30
CONFIGS: dict[str, ModelConfig] = {
    "Gemma 3 270M": Gemma3Config(
        vocab_size=VOCABULARY,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        max_position_embeddings=32768,
    ),
    "Gemma 3 1B": Gemma3Config(
        vocab_size=VOCABULARY,
        hidden_size=1152,
        intermediate_size=6912,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=1,
        sliding_window=512,
        max_position_embeddings=32768,
    ),
    "Gemma 3 4B": Gemma3Config(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=34,
        sliding_window=1024,
        vision=VisionConfig(),
    ),
    "Gemma 3 12B": Gemma3Config(
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        sliding_window=1024,
        vision=VisionConfig(),
    ),
    "Gemma 3 27B": Gemma3Config(
        hidden_size=5376,
        intermediate_size=21504,
        num_hidden_layers=62,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=168,
        sliding_window=1024,
        vision=VisionConfig(),
    ),
    "Gemma 3n E2B": Gemma3nConfig(
        num_hidden_layers=30,
        num_kv_shared_layers=10,
        intermediate_size=(8192,) * 30,
        vision_config={},
        audio_config={},
    ),
    "Gemma 3n E4B": Gemma3nConfig(vision_config={}, audio_config={}),
}
NAMES = {
    "Gemma 3 270M": ("gemma3:270m", "gemma-3-270m-it"),
    "Gemma 3 1B": ("gemma3:1b", "gemma-3-1b-it"),
    "Gemma 3 4B": ("gemma3:4b", "gemma-3-4b-it"),
    "Gemma 3 12B": ("gemma3:12b", "gemma-3-12b-it"),
    "Gemma 3 27B": ("gemma3:27b", "gemma-3-27b-it"),
    "Gemma 3n E2B": ("gemma3n:e2b", "gemma-3n-E2B-it"),
    "Gemma 3n E4B": ("gemma3n:e4b", "gemma-3n-E4B-it"),
}
SEES = {0: "text", 1: "text, pictures", 2: "text, pictures, sound"}
_MEASURED = {  # files of the benchmarks: their bytes are those of the 4-bit files, nearly
    "Gemma 3 270M": "270m",
    "Gemma 3 1B": "1b-q4_0",
    "Gemma 3 4B": "4b-q4_0",
    "Gemma 3n E2B": "e2b-q4_0",
    "Gemma 3n E4B": "e4b-q4_0",
}
BITS = {"q4_0": 4.5, "q4_k": 4.5, "q5_0": 5.5, "q5_k": 5.5, "q6_k": 6.5625, "q8_0": 8.5, "f16": 16}
# Matrices that stay in 16 bits: what the streams of a Gemma 3n go through.
_PROJECTIONS = ("altup_", "per_layer_model_projection", "laurel.")
_FALLBACK = {"q4_k": "q5_0", "q6_k": "q8_0"}  # where rows are no whole blocks of 256
PER_LAYER_EMBEDDING = "embed_tokens_per_layer"
_HEADER_BYTES = 6_500_000  # of a GGUF: the vocabulary, mostly
_PROCESS_BYTES = 350_000_000  # Python, PyTorch, tokenizer and buffers
_CHUNK, _KV_ELEMENT_BYTES = 512, 2
_MEMORIES = (2, 4, 8, 16, 24, 32, 48, 64)  # GiB that machines have
_FREE = 0.75  # of a machine's memory that a model may fill


@dataclass(frozen=True)
class Matrix:
    """One matrix of a decoder: its name, its elements, the width of its rows, and its layer."""

    name: str
    elements: int
    columns: int
    layer: int = 0
    is_dead: bool = False  # in files, and of no use to anybody


def matrices(config: ModelConfig) -> Iterator[Matrix]:
    """Every matrix of a decoder; norms and AltUp's coefficients are left out, they are small."""
    for name, shape in decoder_shapes(config).items():
        if len(shape) == 2 and ".altup." not in name:
            layer = int(name.split(".")[1]) if name.startswith("layers.") else 0
            yield Matrix(name.removesuffix(".weight"), shape[0] * shape[1], shape[1], layer)
    width, keys = config.hidden_size, config.num_key_value_heads * config.head_dim
    for layer in config.layers[len(config.kv_layers) :]:  # they borrow keys; files have some
        for leaf in ("k_proj", "v_proj"):
            name = f"layers.{layer}.self_attn.{leaf}"
            yield Matrix(name, keys * width, width, layer, is_dead=True)


def block_format(matrix: Matrix, mixture: str, num_layers: int) -> str:
    """The block format of a matrix in a file, by the rule of llama.cpp's quantiser."""
    if mixture == "bf16" or any(part in matrix.name for part in _PROJECTIONS):
        return "f16"
    if mixture == "q8_0":
        return "q8_0"
    if matrix.name == PER_LAYER_EMBEDDING:
        return "q5_k"
    is_sensitive = matrix.name.endswith(("v_proj", "down_proj"))
    has_more = matrix.name == "embed_tokens" or (
        is_sensitive and not matrix.is_dead and _has_more_bits(matrix.layer, num_layers)
    )
    chosen = "q6_k" if has_more else "q4_k"
    return _FALLBACK[chosen] if matrix.columns % 256 else chosen


def _has_more_bits(layer: int, num_layers: int) -> bool:
    """Whether a Q4_K_M file gives this layer's values and down projections six bits."""
    eighth = num_layers // 8
    return layer < eighth or layer >= 7 * num_layers // 8 or (layer - eighth) % 3 == 2


def weight_bytes(config: ModelConfig, mixture: str, in_memory: bool = False) -> int:
    """Bytes of a decoder's matrices in a mixture: of those in the file, or of those in memory."""
    bits = sum(
        matrix.elements * BITS[block_format(matrix, mixture, config.num_hidden_layers)]
        for matrix in matrices(config)
        if not in_memory or not (matrix.is_dead or matrix.name == PER_LAYER_EMBEDDING)
    )
    return int(bits / 8)


def download_bytes(config: ModelConfig, mixture: str) -> int:
    """Bytes of the GGUF of the text model."""
    return weight_bytes(config, mixture) + _HEADER_BYTES


def resident_bytes(config: ModelConfig, mixture: str, context: int) -> int:
    """What a process holds: the weights once, the KV cache of a full context in 16 bits, and
    itself. Per-layer embeddings stay in the file."""
    cache = kv_bytes(config, context, _CHUNK, _KV_ELEMENT_BYTES)
    return weight_bytes(config, mixture, in_memory=True) + cache + _PROCESS_BYTES


def num_towers(config: ModelConfig) -> int:
    """How many kinds of media a model takes in beside text."""
    return sum(tower is not None for tower in (config.vision, config.audio))


def tower_parameters(config: ModelConfig) -> int:
    """Parameters of a model's vision tower and audio encoder, and of what joins them to it."""
    shapes = parameter_shapes(config)
    beside = [name for name in shapes if not name.startswith("language_model.")]
    return sum(math.prod(shapes[name]) for name in beside)


def gigabytes(size: float) -> str:
    """In GB, as download pages write them."""
    return significant(size / 1e9)


def sizes() -> str:
    """Parameters and downloads."""
    body = []
    for name, config in CONFIGS.items():
        towers = tower_parameters(config)
        total = sum(matrix.elements for matrix in matrices(config)) + towers
        count = f"{total / 1e9:.2f} B" if total >= 0.995e9 else f"{total / 1e6:.0f} M"
        downloads = [gigabytes(download_bytes(config, one)) for one in ("q4_k_m", "q8_0", "bf16")]
        mmproj = gigabytes(2 * towers) if towers else MISSING
        body.append([name, SEES[num_towers(config)], count, *downloads, mmproj])
    heads = ["model", "reads", "parameters", "Q4_K_M, GB", "Q8_0, GB", "BF16, GB"]
    return table([*heads, "vision tower and audio encoder in 16 bits, GB"], body)


def memory() -> str:
    """Memory of a running model in 4 bits, and the machine that it fits."""
    body = []
    for name, config in CONFIGS.items():
        held = [resident_bytes(config, "q4_k_m", context) for context in (4096, 32768)]
        machines = [smallest_machine(size) for size in held]
        body.append([name, *(gigabytes(size) for size in held), *machines])
    heads = ["model, Q4_K_M", "4,096 tokens, GB", "32,768 tokens, GB"]
    return table([*heads, "machine for the first", "for the second"], body)


def smallest_machine(size: float) -> str:
    """The least memory that machines have of which three quarters hold a process."""
    return next(f"{one} GB" for one in _MEMORIES if one * GIB * _FREE >= size)


def speed() -> str:
    """Tokens a second where the benchmarks have them."""
    machines = {"Xeon": runs("cpu_peers.json"), "Zen 4": runs("cpu_peers_zen4.json")}
    body = []
    for name, file in _MEASURED.items():
        cells = [
            _measured(known, file, row)
            for known in machines.values()
            for row in ("prefill_512", "decode_32")
        ]
        body.append([name, *cells])
    heads = [f"{place}: {what}" for place in machines for what in ("prompt", "answer")]
    return table(["model, 4 bits", *heads], body)


def _measured(known: list[dict[str, Any]], file: str, row: str) -> str:
    run = best(known, file, row)
    return significant(run["files"][file]["medians"]["gemelo"][row]) if run else MISSING


def commands() -> str:
    """What to type for each model."""
    body = [
        [name, f"`gemelo chat -m {short}`{_less(short)}", f"`gemelo chat -m google/{plain}`"]
        for name, (short, plain) in NAMES.items()
    ]
    return table(
        ["model", "without an account", "Google's own, after consent to its licence"], body
    )


def _less(short: str) -> str:
    """What a short name fetches less than Google's own, which has all that the model reads."""
    reads = {model.name: model.reads for model in KNOWN}[short]
    return ", text alone" if reads == ("text",) and "3n" in short else ""


TABLES = {"sizes": sizes, "memory": memory, "speed": speed, "commands": commands}


def main(words: list[str]) -> int:
    """Write the tables of the page, or with --check say whether they are up to date."""
    if words and words != ["--check"]:
        print(__doc__)
        return 0 if words == ["--help"] else 2
    page = PAGE.read_text(encoding="utf-8")
    written = filled(page, TABLES)
    if words == ["--check"] and written != page:
        print(f"{PAGE.name} is not what the sizes say: run python dev/model_sizes.py")
        return 1
    if written != page:
        PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
