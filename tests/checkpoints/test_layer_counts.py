"""Counts in a config against what the tensors show, and every number of a config spoilt in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.layer_counts import MOST_MISSING, check_counts
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.modules import decoder_module
from gemelo.config.gemma3 import VisionConfig
from gemelo.errors import FileFormatError, GemeloError
from gemelo.weights.gguf import GGUFFile
from tests.conftest import TINY, tiny_model, write_checkpoint
from tests.gemma3n import write_3n
from tests.multimodal import AWAKE, EYED, write

# Where a count stands, and how many the tiny models have.
COUNTS = [
    ("eyed", ("text_config", "num_hidden_layers"), 7),
    ("eyed", ("vision_config", "num_hidden_layers"), 2),
    ("awake", ("text_config", "num_hidden_layers"), 12),
    ("awake", ("text_config", "altup_num_inputs"), 4),
    ("awake", ("audio_config", "conf_num_hidden_layers"), 2),
    ("text", ("num_hidden_layers",), 7),
    ("3n", ("num_hidden_layers",), 12),
    ("3n", ("altup_num_inputs",), 4),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("counted")
    return {
        "text": write_checkpoint(base / "text", tiny_model(TINY["blocks-of-32"])),
        "3n": write_3n(base / "3n"),
        "eyed": write(base / "eyed", EYED),
        "awake": write(base / "awake", AWAKE),
    }


def spoilt(raw: dict[str, Any], keys: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A config with one value changed, however deep it lies."""
    changed = json.loads(json.dumps(raw))
    inner = changed
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return changed  # type: ignore[no-any-return]


def places(raw: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a config; of lists to the first."""
    entries = raw.items() if isinstance(raw, dict) else enumerate(raw[:1])
    for key, value in entries:
        yield (*keys, key)
        if isinstance(value, dict | list):
            yield from places(value, (*keys, key))


@pytest.mark.parametrize("claimed", [100_000, 1 << 24, 1 << 62])
@pytest.mark.parametrize(("kind", "keys", "shown"), COUNTS)
def test_a_count_beyond_the_tensors_names_both(
    folders: dict[str, Path], kind: str, keys: tuple[str, ...], shown: int, claimed: int
) -> None:
    file = folders[kind] / "config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(spoilt(json.loads(before), keys, claimed)))
        with pytest.raises(FileFormatError, match=f"{keys[-1]} is {claimed}, for {shown} that the"):
            load_checkpoint(folders[kind])
    finally:
        file.write_text(before)


def test_what_lacks_little_is_listed_by_its_names() -> None:
    names = ["language_model.layers.0.mlp.up_proj.weight"] * 3
    check_counts({"num_hidden_layers": 1 + MOST_MISSING}, names)
    with pytest.raises(FileFormatError):
        check_counts({"num_hidden_layers": 2 + MOST_MISSING}, names)
    check_counts({"vision_config": {"num_hidden_layers": 27}}, names)  # a tower that is not there
    check_counts({"num_hidden_layers": "7", "vision_config": None}, names)


@pytest.mark.parametrize("blocks", [1_000_000, 4_000_000_000])
def test_layers_of_an_mmproj_file_are_held_against_it(
    folders: dict[str, Path], tmp_path: Path, blocks: int
) -> None:
    convert(folders["eyed"], tmp_path / "a.gguf", text_only=True)
    convert(folders["eyed"], tmp_path / "mmproj-a.gguf", mmproj=True)
    assert load_checkpoint(tmp_path / "a.gguf").config.is_multimodal
    reader = gguf.GGUFReader(tmp_path / "mmproj-a.gguf", "r+")
    field = reader.get_field("clip.vision.block_count")
    assert field is not None
    field.parts[field.data[0]][0] = blocks
    reader.data.flush()
    del reader
    assert GGUFFile(tmp_path / "mmproj-a.gguf").metadata["clip.vision.block_count"] == blocks
    with pytest.raises(FileFormatError, match=f"block_count is {blocks}, for 2 that the tensors"):
        load_checkpoint(tmp_path / "a.gguf", mmproj=tmp_path / "mmproj-a.gguf")
    checkpoint = load_checkpoint(tmp_path / "a.gguf")
    assert not checkpoint.config.is_multimodal and str(blocks) in checkpoint.notices[0]


def test_sizes_that_cannot_be_multiplied_are_an_error(folders: dict[str, Path]) -> None:
    file = folders["eyed"] / "config.json"
    before = file.read_text()
    raw = json.loads(before)
    raw["vision_config"] |= {"hidden_size": 1 << 24, "patch_size": 1 << 23, "image_size": 1 << 23}
    raw["vision_config"]["num_attention_heads"] = raw["mm_tokens_per_image"] = 1
    VisionConfig.from_hf(raw["vision_config"])  # each of them may be
    try:
        file.write_text(json.dumps(raw))
        with pytest.raises(FileFormatError, match="more numbers than can be counted"):
            load_checkpoint(folders["eyed"])
    finally:
        file.write_text(before)


@pytest.mark.parametrize("left", [0, 1 << 24, 1025])
def test_an_ears_context_is_bounded(left: int) -> None:
    raw = spoilt(AWAKE.to_hf(), ("audio_config", "conf_attention_context_left"), left)
    with pytest.raises(FileFormatError, match=f"context_left = {left}; expected 1 to 1024"):
        type(AWAKE).from_hf(raw)


VALUES = (0, -1, 1 << 24, 1 << 63, 1e308, True, None, "7", [], {}, float("nan"))


@pytest.mark.parametrize("kind", ["text", pytest.param("3n", marks=pytest.mark.slow)])
def test_every_number_may_be_spoilt(folders: dict[str, Path], kind: str) -> None:
    """Loaded and run, or one clear line; nothing else."""
    file = folders[kind] / "config.json"
    before = file.read_text()
    raw = json.loads(before)
    ran = 0
    try:
        for keys in places(raw):
            for value in VALUES[:: 1 if len(keys) == 1 else 4]:
                file.write_text(json.dumps(spoilt(raw, keys, value)))
                try:
                    loaded = load_checkpoint(folders[kind])
                    decoder = decoder_module(loaded.config, loaded.weights)
                    with torch.inference_mode():
                        hidden = decoder(torch.tensor([[2, 300]]), torch.tensor([[0, 1]]))
                        assert decoder.logits(hidden).shape == (1, 2, 512)
                    ran += 1
                except GemeloError as error:
                    assert len(str(error)) <= 500
    finally:
        file.write_text(before)
    assert ran > 20


LIMITED = """
import json, resource, sys, time
from pathlib import Path
from gemelo.checkpoints.load import load_checkpoint
from gemelo.errors import GemeloError
folder = Path(sys.argv[1])
raw = (folder / "config.json").read_text()
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for keys in json.loads(sys.argv[2]):
    for value in (1000, 100_000, (1 << 24) - 1, 1 << 24, 1 << 40):
        changed = json.loads(raw)
        inner = changed
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / "config.json").write_text(json.dumps(changed))
        begun = time.process_time()
        try:
            load_checkpoint(folder)
        except GemeloError:
            pass
        took = time.process_time() - begun
        assert took < 2, (keys, value, took)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held
assert grown < 200_000, grown
print("well")
"""


def limited(folder: Path, copy: Path, numbers: list[tuple[Any, ...]]) -> str:
    """Configs with each of these numbers too large, read in a process of its own: "well"."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    words = [sys.executable, "-c", LIMITED, str(copy), json.dumps(numbers)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    return ran.stdout.strip() or ran.stderr[-500:]


@pytest.mark.parametrize("kind", ["eyed", "awake"])
def test_no_count_takes_time_or_memory(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    counts = [keys for name, keys, _ in COUNTS if name == kind]
    left = [("audio_config", "conf_attention_context_left")] if kind == "awake" else []
    assert limited(folders[kind], tmp_path / "m", [*counts, *left]) == "well"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "3n", "eyed", "awake"])
def test_nor_does_any_other_number(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    raw = json.loads((folders[kind] / "config.json").read_text())
    numbers = [keys for keys in places(raw) if isinstance(_at(raw, keys), int)]
    assert limited(folders[kind], tmp_path / "m", numbers) == "well"


def _at(raw: Any, keys: tuple[Any, ...]) -> Any:
    for key in keys:
        raw = raw[key]
    return raw
