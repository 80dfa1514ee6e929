"""What stays in memory of an E4B in 4 bits with its per-layer embeddings on disk.

    python benchmarks/resident.py FOLDER > benchmarks/results/resident.json

Writes a GGUF in E4B's real shapes to FOLDER (random scales are not needed for memory: all blocks
are zero; about 7 GB, kept for the next run), loads it as `gemelo generate --ple disk` does, reads
2,048 tokens and decodes a few, and prints what the process holds beside the sum of what must be
held.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gemelo.api import load
from gemelo.checkpoints.locate import demo
from gemelo.checkpoints.plan import gguf_targets
from gemelo.checkpoints.source import Source
from gemelo.config import Gemma3nConfig, Submodel, kv_bytes
from gemelo.config.parameters import parameter_shapes
from gemelo.engine.memory.process import process_bytes
from gemelo.engine.memory.residency import resident_bytes
from gemelo.evals.machine import cpu_name
from gemelo.kernels.packed import FORMATS, Format, Packed, matrix_shape, own_dims
from gemelo.weights import metadata, names
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf

CONTEXT = 2048
KV_BYTES = {"plain": 4, "bf16": 2, "int8": 1}  # of a number; scales are left out
E4B = Gemma3nConfig(vocab_size=262144)


def zeros(shape: tuple[int, ...], format: Format) -> Callable[[], Packed]:
    """A tensor of nothing, in the format it will have."""
    rows, columns = matrix_shape(shape)
    size = rows, format.row_bytes(columns)
    return lambda: Packed(np.zeros(size, np.uint8), format, own_dims(shape))


def write(path: Path) -> None:
    """E4B as `gemelo convert --format q4_0` lays it out, its table in 8 bits."""
    nothing = Packed.of(np.zeros(1, np.float32))
    plan = Source(path, E4B, parameter_shapes(E4B), lambda name: nothing)
    tensors = []
    for target in gguf_targets(plan, "q4_0"):
        table = target.name.endswith("embed_tokens_per_layer.weight")
        format = FORMATS["q8_0"] if table else target.format
        name = names.to_gguf(target.name, "gemma3n")
        tensors.append((name, target.shape, format, zeros(target.shape, format)))
    tokens = {k: v for k, v in GGUFFile(demo()).metadata.items() if k.startswith("tokenizer.")}
    values = {"general.architecture": "gemma3n"} | metadata.config_to_gguf(E4B.to_hf()) | tokens
    write_gguf(path, values, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    path = parser.parse_args().folder / "e4b-q4_0-zeros.gguf"
    if not path.exists():
        write(path)
    before = process_bytes()
    model = load(path, ple="disk", context=CONTEXT + 16)
    ids = [2] + [(i * 7919) % 260000 + 300 for i in range(1, CONTEXT)]
    started = time.perf_counter()
    for _ in model.stream(ids, temperature=0, max_tokens=3, ignore_eos=True):
        pass
    seconds = time.perf_counter() - started
    decoder, whole = model.engine.decoder, model.engine.views.whole
    assert whole is not None
    weights = resident_bytes(decoder, whole, on_disk=True)
    kv = kv_bytes(decoder.config, CONTEXT, model.engine.chunk, KV_BYTES[model.engine.kv_format])
    table = path.stat().st_size - weights
    held = process_bytes() - before
    e2b = Submodel.named("E2B", decoder.config)
    print(
        json.dumps(
            {
                "cpu": cpu_name(),
                "file_bytes": path.stat().st_size,
                "table_and_header_bytes": table,
                "python_bytes": before,
                "core_head_norms_bytes": weights,
                "kv_bytes": kv,
                "sum_bytes": weights + kv,
                "held_bytes": held,
                "held / sum": held / (weights + kv),
                "of which E2B would need": resident_bytes(decoder, e2b, on_disk=True),
                "seconds": seconds,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
