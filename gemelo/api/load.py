"""Loading a model: from a path, a hub id, or the embedded default, as a `Model`.

Weights stay as their file has them, mapped, unless a format is asked for; what moves, moves once.

    model = load("gemma-3n-E4B-it-Q4_K_M.gguf", submodel="E2B", threads=4)
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

from gemelo.api.model import Model
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.locate import expanded, resolve
from gemelo.checkpoints.modality_embeddings import ModalityEmbeddings
from gemelo.checkpoints.source import Source
from gemelo.config import Submodel
from gemelo.config.absent_arguments import LOADING, refusing
from gemelo.config.options import KVFormat, TablePlacement, WeightFormat
from gemelo.engine.decoder import Decoder
from gemelo.engine.device import decoder_on, gpu_notices, place, set_threads
from gemelo.engine.engine import Engine
from gemelo.engine.session import Progress
from gemelo.errors import InputError
from gemelo.weights.tensors import Weights


@refusing(LOADING)
def load(
    model: str | Path | None = None,
    *,
    submodel: str | Submodel | None = None,
    format: WeightFormat = "native",
    device: str = "auto",
    threads: int | None = None,
    context: int | None = None,
    kv_format: KVFormat | None = None,
    ple: TablePlacement | None = None,
    mmproj: str | Path | None = None,
    repack: bool = True,
    kv_limit_bytes: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model from a path, a hub id, or the embedded default.

    The defaults are the fastest: quantised weights stay as their file has them, and the kernels
    compute on them. Widening them ("bf16", "f32") runs slower, in more memory.

    - submodel: run a part of a Gemma 3n: a published name, a file, or a `Submodel`.
    - format: "native" keeps weights as the file has them; "bf16" and "f32" widen them at load,
      "q8_0" and "q4_0" quantise them.
    - device: "auto" is CUDA where there is one (a notice says that it is not tested), else the CPU.
    - threads: for the whole process; no more than it has cores.
    - context: the most tokens that a session may hold.
    - kv_format: "plain" keeps keys and values in float32 (on CUDA in the model's dtype), "bf16" and
      "int8" in 16 and 8 bits; None is "bf16", beside float32 weights "plain".
    - ple: where Gemma 3n's per-layer embeddings lie: "disk" (the file), "ram", "device".
    - mmproj: the vision tower and audio encoder of a GGUF, if they do not lie beside it.
    - repack: move quantised weights out of the file's pages into an order that the native kernels
      read faster, where memory has room for it; a small Gemma 3 does so after its first token, if
      the first prompt is short. Without it they stay mapped.
    - kv_limit_bytes: what the KV caches of all requests may take, those that ended included; None
      is half of what is free after loading, and 256 MiB for those that ended.
    - progress: gets how much is done and how much there is: bytes while files are fetched, then
      tensors.

    Raises `GemeloError` for what cannot be loaded, with the cure.
    """
    started = time.perf_counter()
    where = place(device)
    notices = [] if threads is None else set_threads(threads)
    path = resolve(None if model is None else str(model), progress, notices.append)
    towers = None if mmproj is None else expanded(str(mmproj))
    if ple is not None and ple not in get_args(TablePlacement):
        raise InputError(f"ple = {ple!r:.80}; not one of {', '.join(get_args(TablePlacement))}")

    made: list[Decoder] = []

    def finish(source: Source, weights: Weights) -> None:
        special = ModalityEmbeddings.of(source)
        made.append(decoder_on(where, source.config, weights, special, ple, repack))

    checkpoint = load_checkpoint(path, format, progress, towers, finish)
    notices += gpu_notices(device)
    checkpoint = replace(checkpoint, notices=(*checkpoint.notices, *notices))
    engine = Engine(
        made[0],
        checkpoint.tokenizer,
        context,
        kv_format=kv_format,
        kv_limit_bytes=kv_limit_bytes,
    )
    loaded = Model(checkpoint, engine, time.perf_counter() - started)
    return loaded if submodel is None else loaded.submodel(submodel)
