"""Readers of weights and of what describes them: GGUF, safetensors, configs, mmproj, sub-models."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.mutations import (
    gguf_seed,
    mutated_bytes,
    mutated_gguf,
    mutated_json,
)
from fuzzing.readers import TEXT, Reader
from fuzzing.seeds import HEARS, PREPROCESSOR, SEES, SIZE, Seeds
from gemelo.checkpoints import headers
from gemelo.checkpoints.mmproj import with_mmproj
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.source import Source
from gemelo.config import Submodel
from gemelo.errors import FileFormatError
from gemelo.inputs.prompt.processor_config import read_preprocessor
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels.quants import Packed
from gemelo.text_files import read_object
from gemelo.weights.safetensors import Safetensors

_INDEX = "model.safetensors.index.json"


def weight_readers(seeds: Seeds) -> list[Reader]:
    index = json.loads((seeds.reads / _INDEX).read_text())
    homes = [seeds.sees, seeds.hears, seeds.reads]
    configs = [json.loads((home / "config.json").read_text()) for home in homes]
    return [
        Reader("gguf", broken_gguf(seeds.gguf), _take_source),
        Reader("headers", broken_gguf(seeds.gguf), _take_headers),
        Reader("safetensors", lambda rng: _shard(rng, seeds.sees), _take_shard),
        Reader("index", lambda rng: mutated_json(rng, index), _index_taker(seeds)),
        Reader("config", lambda rng: _config(rng, configs), _config_taker(homes)),
        Reader("mmproj", broken_gguf(seeds.mmproj), _mmproj_taker(seeds.gguf)),
        Reader("mmproj-3n", broken_gguf(seeds.mmproj_3n), _mmproj_taker(seeds.gguf_3n)),
        Reader("preprocessor", lambda rng: mutated_json(rng, PREPROCESSOR), _take_preprocessor),
        Reader("submodel", _size, _take_size),
    ]


def broken_gguf(path: Path) -> Callable[[Random], bytes]:
    seed = gguf_seed(path.read_bytes())
    return lambda rng: mutated_gguf(rng, seed)


def linked(folder: Path, source: Path, names: Iterable[str]) -> None:
    """Make `folder` hold these files of another."""
    folder.mkdir(exist_ok=True)
    for name in names:
        if not (folder / name).exists():
            os.link(source / name, folder / name)


def shards(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.safetensors*")]


def _use(source: Source) -> None:
    """Check an open source against its config, and touch every tensor's first and last byte."""
    check_parameters(source)
    for name in source.shapes:
        _touch(source.tensor(name))


def _touch(weight: Packed) -> None:
    assert weight.rows * weight.columns == math.prod(weight.shape)
    if weight.blocks.size:
        weight.blocks[0, 0].item(), weight.blocks[-1, -1].item()


def _take_headers(content: bytes, folder: Path) -> None:
    """What `gemelo list` looks at; it raises nothing, so that what does not run counts here."""
    path = folder / "m.gguf"
    path.write_bytes(content)
    if not headers.runs(path):
        raise FileFormatError(f"{path} is no model by its headers")


def _take_source(content: bytes, folder: Path) -> None:
    path = folder / "m.gguf"
    path.write_bytes(content)
    source = open_source(path)
    _use(source)
    Tokenizer.from_gguf(source.gguf_metadata or {}).encode(TEXT)


def _shard(rng: Random, folder: Path) -> bytes:
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.3:
        return mutated_bytes(rng, raw, until=size + 8)
    header = mutated_json(rng, json.loads(raw[8 : 8 + size]))
    told = len(header) if rng.random() < 0.9 else rng.choice((0, size, 1 << 40, len(header) - 1))
    return struct.pack("<Q", told) + header + raw[8 + size :]


def _take_shard(content: bytes, folder: Path) -> None:
    (folder / "shard").mkdir(exist_ok=True)
    (folder / "shard/model.safetensors").write_bytes(content)
    file = Safetensors(folder / "shard")
    for name in file.names():
        _touch(file.tensor(name))


def _index_taker(seeds: Seeds) -> Callable[[bytes, Path], None]:
    def take(content: bytes, folder: Path) -> None:
        home = folder / "sharded"
        linked(home, seeds.reads, {*shards(seeds.reads)} - {_INDEX})
        (home / _INDEX).write_bytes(content)
        for name in (file := Safetensors(home)).names():
            file.tensor(name)

    return take


def _config(rng: Random, configs: list[dict[str, Any]]) -> tuple[int, bytes]:
    which = rng.randrange(len(configs))
    return which, mutated_json(rng, configs[which])


def _config_taker(homes: list[Path]) -> Callable[[tuple[int, bytes], Path], None]:
    def take(case: tuple[int, bytes], folder: Path) -> None:
        which, content = case
        home = folder / f"config-{which}"
        linked(home, homes[which], shards(homes[which]))
        (home / "config.json").write_bytes(content)
        _use(open_source(home))

    return take


def _mmproj_taker(model: Path) -> Callable[[bytes, Path], None]:
    def take(content: bytes, folder: Path) -> None:
        path = folder / "mmproj.gguf"
        path.write_bytes(content)
        _use(with_mmproj(open_source(model), path))

    return take


def _take_preprocessor(content: bytes, folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    path.write_bytes(content)
    read_preprocessor([(path, read_object(path))], SEES)


def _size(rng: Random) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        return "json", mutated_json(rng, SIZE)
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SIZE.items())
    return "toml", mutated_bytes(rng, lines.encode())


def _take_size(case: tuple[str, bytes], folder: Path) -> None:
    suffix, content = case
    path = folder / f"size.{suffix}"
    path.write_bytes(content)
    size = Submodel.read(path, HEARS)
    size.config(HEARS).to_hf()
    size.same_keys(Submodel.whole(HEARS), HEARS)
