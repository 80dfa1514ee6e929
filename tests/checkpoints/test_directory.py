"""Directories: what is no model is said to be what it is, and what is not read is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gemelo
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.errors import FileFormatError, GemeloError, InputError, UnsupportedError
from gemelo.weights.safetensors import MAX_HEADER_BYTES, Safetensors
from tests import tensors as weights
from tests.gemma3n import write_3n, write_tensors
from tests.multimodal import AWAKE, EYED, write


@pytest.fixture
def folder(tiny_directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_directory, tmp_path / "model")


def held(folder: Path) -> dict[str, Tensor]:
    source = Safetensors(folder)
    return {name: weights.held(source.tensor(name)).clone() for name in source.names()}


def refused(folder: Path, error: type[GemeloError] = UnsupportedError) -> str:
    with pytest.raises(error) as caught:
        load_checkpoint(folder)
    with pytest.raises(error):
        convert(folder, folder.parent / "out.gguf", "f32")
    assert str(caught.value).count(str(folder)) == 1
    return str(caught.value)


# ---- types ---------------------------------------------------------------------------------------

TYPES = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I64": torch.int64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F64": torch.float64,
}
PLACES = ("model.norm.weight", "model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", PLACES)
def test_weights_that_are_no_floats_are_refused_by_name(
    folder: Path, name: str, dtype: str
) -> None:
    tensors = held(folder)
    tensors[name] = (tensors[name] * 50).to(TYPES[dtype])
    write_tensors(folder, tensors)
    assert f"{name} ({dtype}); weights are read as BF16, F16, F32" in refused(folder)


@pytest.mark.parametrize(
    ("config", "end"),
    [
        (EYED, "vision_tower.vision_model.post_layernorm.bias"),
        (EYED, "mm_input_projection_weight"),
        (AWAKE, "per_dim_scale"),
        (AWAKE, "altup.correct_output_scale"),
        (AWAKE, "layer_scale.gamma"),
        (AWAKE, "embed_audio.embedding.weight"),
    ],
)
def test_so_are_those_of_towers_and_scalars(tmp_path: Path, config: object, end: str) -> None:
    folder = write(tmp_path / "m", config)  # type: ignore[arg-type]
    tensors = held(folder)
    name = next(name for name in tensors if name.endswith(end))
    tensors[name] = tensors[name].to(torch.int8)
    write_tensors(folder, tensors)
    with pytest.raises(UnsupportedError, match=r"\(I8\); weights are read as"):
        load_checkpoint(folder, "f32")


# ---- packed weights, adapters --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "whose"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("g_idx", "GPTQ or AWQ"),
        ("weight.absmax", "bitsandbytes"),
        ("weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("SCB", "bitsandbytes"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale_inv", "FP8"),
        ("scales", "MLX"),
    ],
)
def test_packed_weights_are_told_by_their_names(folder: Path, ending: str, whose: str) -> None:
    name = f"model.layers.0.mlp.up_proj.{ending}"
    write_tensors(folder, held(folder) | {name: torch.zeros(4, dtype=torch.uint8)})
    message = refused(folder)
    assert repr(name) in message and whose in message and "GGUF" in message


def test_weights_of_an_adapter_are_told(folder: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    write_tensors(folder, {name: torch.zeros(8, 64)})
    assert "of an adapter; merge it" in refused(folder)


def test_an_adapters_directory_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "google/gemma-3"}')
    write_tensors(folder, {"x.lora_A.weight": torch.zeros(2, 2)})
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    assert "an adapter for google/gemma-3 and no model; merge" in refused(folder, InputError)
    (folder / "adapter_config.json").write_text("{")
    assert "an adapter and no model" in refused(folder, InputError)


# ---- files ---------------------------------------------------------------------------------------


def renamed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pytorch_model.bin", "a pickle, which runs code"),
        ("model.pth", "a pickle, which runs code"),
        ("flax_model.msgpack", "save the model as safetensors"),
        ("tf_model.h5", "save the model as safetensors"),
        ("gemma.gguf", "give the GGUF file itself"),
        ("consolidated.safetensors", "rename it"),
        ("model-00001-of-00002.safetensors", "give the index too"),
    ],
)
def test_weights_in_other_files_are_told_with_the_cure(folder: Path, name: str, said: str) -> None:
    renamed(name)(folder)
    message = refused(folder, InputError)
    assert name in message and said in message


def test_a_directory_of_gguf_files_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "ggufs"
    folder.mkdir()
    (folder / "a-q4_0.gguf").touch()
    assert "give one of them: a-q4_0.gguf" in refused(folder, InputError)


@pytest.mark.parametrize(
    "name", ["model-00002-of-00002.safetensors", "consolidated.safetensors", "adapter_config.json"]
)
def test_what_lies_beside_a_model_and_is_not_read_is_a_notice(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"anything")
    (notice,) = load_checkpoint(folder).notices
    assert notice == f"{name} beside model.safetensors: not read"


def test_a_file_that_no_index_names_is_a_notice(folder: Path) -> None:
    tensors = held(folder)
    renamed("model-00001-of-00001.safetensors")(folder)
    index = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert not load_checkpoint(folder).notices
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"")
    assert "model-00003-of-00003.safetensors beside" in load_checkpoint(folder).notices[0]


@pytest.mark.parametrize("shard", ["x" * 300, "é" * 200, "\ud800.safetensors", "a/b", "..", ""])
def test_names_of_shards_that_no_file_has(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").unlink()
    index = json.dumps({"weight_map": {"model.norm.weight": shard}})
    (folder / "model.safetensors.index.json").write_text(index)
    assert "is not the name of a file" in refused(folder, FileFormatError)


def test_embedding_models_are_told(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "modules.json").write_text("[]")
    assert not load_checkpoint(folder).notices  # a model that writes may have been tuned to embed
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma3TextModel"]}))
    assert "an embedding model, which writes no text" in refused(folder)


def test_an_unknown_setting_is_told_of_a_loaded_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_windw": 4}))
    assert "did you mean sliding_window" in load_checkpoint(folder).notices[0]
    assert "did you mean sliding_window" in convert(folder, folder.parent / "o.gguf").notices[0]


# ---- headers -------------------------------------------------------------------------------------


def header(folder: Path, raw: bytes, data: int = 0) -> None:
    content = len(raw).to_bytes(8, "little") + raw + bytes(data)
    (folder / "model.safetensors").write_bytes(content)


def test_headers_beyond_honest_ones_are_refused(tmp_path: Path) -> None:
    folder = write_3n(tmp_path / "m")
    header(folder, b"{" + b" " * MAX_HEADER_BYTES + b"}")
    assert f"{MAX_HEADER_BYTES:,} are read" in refused(folder, FileFormatError)
    entry = b'"%x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header(folder, b"{" + b",".join(entry % i for i in range(70_000)) + b"}")
    assert "70,000 tensors; 65,536 are read" in refused(folder, FileFormatError)
    header(folder, b'{"a":' + b"[" * 1_000_000)
    assert "not valid JSON" in refused(folder, FileFormatError)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "git lfs pull"),
        (b"<!DOCTYPE html><html><head>", "a web page"),
        (b"GGUF\3\0\0\0" + bytes(60), "but a GGUF; .* ends in .gguf"),
        (b"PK\3\4" + bytes(60), "zip archive"),
        (b"\x80\2ccollections\n" + bytes(60), "a pickle"),
    ],
)
def test_other_files_by_its_name_are_told_what_they_are(
    tmp_path: Path, content: bytes, words: str
) -> None:
    folder = write_3n(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    assert re.search(words, refused(folder, FileFormatError))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "generation_config.json"])
def test_what_git_did_not_fetch_is_told(tmp_path: Path, name: str) -> None:
    folder = write_3n(tmp_path / "m")
    (folder / name).write_bytes(LFS)
    with pytest.raises(FileFormatError, match=f"{name} is a pointer of Git LFS"):
        gemelo.load(folder)
