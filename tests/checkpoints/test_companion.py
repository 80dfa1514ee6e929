"""Which mmproj beside a GGUF is taken: by fit, precision and name; and what is said of others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import gemelo
from gemelo.checkpoints.companion import companions, with_companion
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.checkpoints.open import open_source
from gemelo.errors import UnsupportedError
from tests.multimodal import EYED, photograph, write

MODEL = "my-model-it-Q8_0.gguf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a text model; its mmproj waits in another."""
    hub = write(tmp_path / "hub", EYED)
    (tmp_path / "here").mkdir()
    convert(hub, tmp_path / "here" / MODEL, text_only=True)
    convert(hub, tmp_path / "elsewhere.gguf", "f16", mmproj=True)
    return tmp_path / "here"


def taken(folder: Path, *names: str) -> str:
    """The mmproj that is taken where files of these names are put beside the model."""
    for name in names:
        shutil.copy(folder.parent / "elsewhere.gguf", folder / name)
    source = with_companion(open_source(folder / MODEL))
    assert source.config.is_multimodal == (source.mmproj is not None)
    return "" if source.mmproj is None else source.mmproj.name


def test_one_of_any_name(folder: Path) -> None:
    assert taken(folder) == ""
    assert taken(folder, "MMPROJ-model-f16.GGUF") == "MMPROJ-model-f16.GGUF"


def test_precisions_of_one(folder: Path) -> None:
    names = [f"mmproj-{precision}.gguf" for precision in ("F16", "BF16", "Q8_0", "F32", "Q4_0")]
    taken(folder, *names)
    for name in names:
        assert taken(folder) == name
        (folder / name).unlink()


def test_several_that_fit(folder: Path) -> None:
    own, other = "my-model-it.mmproj-f16.gguf", "mmproj-another-f16.gguf"
    assert taken(folder, own, other) == own
    (folder / own).rename(folder / "mmproj-third-f16.gguf")
    assert taken(folder) == ""
    (notice,) = load_checkpoint(folder / MODEL).notices
    assert "mmproj-another-f16.gguf, mmproj-third-f16.gguf lie beside" in notice
    assert "--mmproj FILE" in notice


def test_a_broken_one_is_told(folder: Path) -> None:
    whole = (folder.parent / "elsewhere.gguf").read_bytes()
    (folder / "mmproj-f16.gguf").write_bytes(whole[: len(whole) // 2])
    (notice,) = load_checkpoint(folder / MODEL).notices
    assert "mmproj-f16.gguf" in notice and "is left out" in notice
    assert taken(folder, "mmproj-bf16.gguf") == "mmproj-bf16.gguf"
    assert load_checkpoint(folder / MODEL).notices == ()


def test_in_the_hubs_cache(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123456"
    (snapshot / "Q8_0").mkdir(parents=True)
    model = snapshot / "Q8_0" / "m-Q8_0.gguf"
    shutil.copy(folder / MODEL, model)
    assert companions(model) == [] and companions(model.parent) == []
    shutil.copy(tmp_path / "elsewhere.gguf", snapshot / "mmproj-f16.gguf")
    assert companions(model) == [snapshot / "mmproj-f16.gguf"]
    assert load_checkpoint(model).config.is_multimodal


def test_without_one_that_fits_a_picture_says_where_it_would_be(folder: Path) -> None:
    model = gemelo.load(folder / MODEL)
    message = {"role": "user", "content": [{"type": "image", "image": photograph()}]}
    with pytest.raises(UnsupportedError, match="reads text only.*its own mmproj file"):
        model.chat([message])
