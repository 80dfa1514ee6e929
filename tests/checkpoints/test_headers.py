"""Whether a model runs, told from headers alone; held against what loading it looks at."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from gemelo.checkpoints import headers
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.headers import runs
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.parameter_check import check_parameters
from gemelo.checkpoints.slice import without_padding
from gemelo.errors import GemeloError
from gemelo.kernels.quants import FORMATS_BY_ID, unpack
from gemelo.weights.safetensors import Safetensors
from tests.multimodal import EYED, write


def really_runs(path: Path) -> bool:
    """The slow way: all that is known of a model is looked at, every name, shape and type."""
    try:
        source = without_padding(open_source(path))
        check_parameters(source)
        for name in source.shapes:
            source.tensor(name)
    except GemeloError:
        return False
    if source.gguf_metadata is not None:
        return "tokenizer.ggml.tokens" in source.gguf_metadata
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


@pytest.fixture
def places(tiny_directory: Path, tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Path]:
    """Models and what looks like one, by what they are."""
    eyed = write(tmp_path / "eyed", EYED)
    found = {"directory": tiny_directory, "gguf": tiny_checkpoint, "eyed": eyed}
    found["q4_0"] = convert(tiny_directory, tmp_path / "q4_0.gguf", "q4_0").path
    found["mmproj"] = convert(eyed, tmp_path / "mmproj.gguf", "f16", mmproj=True).path
    whole = tiny_checkpoint.read_bytes()
    for name, raw in {
        "half": whole[: len(whole) // 2],
        "header": whole[:5000],
        "last byte": whole[:-40],
        "empty": b"",
        "text": b"hello",
        "llama": whole.replace(b"gemma3", b"llama3"),
        "type": whole.replace(b"blk.0.attn_q.weight", b"blk.0.attn_z.weight"),
    }.items():
        found[name] = tmp_path / f"{name}.gguf"
        found[name].write_bytes(raw)
    for name, change in {
        "other kind": ("config.json", '{"model_type": "llama"}'),
        "no config": ("config.json", None),
        "no words": ("tokenizer.model", None),
        "no weights": ("model.safetensors", None),
        "cut weights": ("model.safetensors", "x" * 50),
        "embedder": ("modules.json", "[]"),
    }.items():
        found[name] = changed(tiny_directory, tmp_path / name, *change)
    found["int8"] = as_integers(tiny_directory, tmp_path / "int8")
    found["nowhere"] = tmp_path / "nowhere"
    return found


def changed(source: Path, target: Path, file: str, text: str | None) -> Path:
    shutil.copytree(source, target)
    if text is None:
        (target / file).unlink()
    else:
        (target / file).write_text(text)
    return target


def as_integers(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    file = Safetensors(source)
    small = {name: unpack(file.tensor(name)).astype(np.int8) for name in file}
    safetensors.numpy.save_file(small, target / "model.safetensors")
    return target


def test_the_word_of_the_headers_is_that_of_the_network(places: dict[str, Path]) -> None:
    said = {name: runs(path) for name, path in places.items()}
    assert {name for name, good in said.items() if good} >= {"directory", "gguf", "eyed", "q4_0"}
    told = {name: really_runs(path) for name, path in places.items()}
    told["type"] = True  # a tensor of another name: only the loader knows all of them
    assert said == told


def test_more_layers_than_there_are(tiny_directory: Path, tmp_path: Path) -> None:
    raw = json.loads((tiny_directory / "config.json").read_text())
    deep = json.dumps(raw | {"num_hidden_layers": raw["num_hidden_layers"] + 6})
    path = changed(tiny_directory, tmp_path / "deep", "config.json", deep)
    assert not runs(path) and not really_runs(path)


def test_types_of_tensors_are_those_that_are_read() -> None:
    blocks = {id: (format.block, format.block_bytes) for id, format in FORMATS_BY_ID.items()}
    assert blocks == headers.BLOCKS


@pytest.mark.parametrize("seed", range(40))
def test_damaged_headers_are_no_models(seed: int, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """They may still run, but raise nothing and take no time."""
    generator = torch.Generator().manual_seed(seed)
    raw = bytearray(tiny_checkpoint.read_bytes())
    for place in torch.randint(0, 9000, (6,), generator=generator).tolist():
        raw[place] = 0xFF
    (tmp_path / "damaged.gguf").write_bytes(raw)
    runs(tmp_path / "damaged.gguf")


def test_a_pipe_among_the_files_is_not_waited_for(tiny_directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_directory, folder)
    assert runs(folder)
    weights = folder / "model.safetensors"
    weights.unlink()
    os.mkfifo(weights)
    looker = threading.Thread(target=runs, args=(folder,), daemon=True)
    looker.start()
    looker.join(10)
    assert not looker.is_alive() and not runs(folder)


def test_torch_is_not_loaded(tiny_checkpoint: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gemelo.checkpoints.headers import runs; "
        f"print(runs(Path({str(tiny_checkpoint)!r})), 'torch' in sys.modules, "
        "'numpy' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False", "False"]
