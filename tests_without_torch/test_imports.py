"""Every module but those that run modules of PyTorch is imported without it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import gemelo

# As tests/test_floors.py has it.
TORCH = (
    "gemelo.models.",
    "gemelo.checkpoints.modules",
    "gemelo.engine.modules.",
    "gemelo.engine.media.audio_stream",
)
MODULES = [
    found.name
    for found in pkgutil.walk_packages(gemelo.__path__, "gemelo.")
    if found.name != "gemelo.__main__"
]
OF_TORCH = [name for name in MODULES if name.startswith(TORCH)]


@pytest.mark.parametrize("name", sorted({*MODULES} - {*OF_TORCH}))
def test_it_is_imported(name: str) -> None:
    assert importlib.import_module(name)


@pytest.mark.parametrize("name", OF_TORCH)
def test_the_others_are_not(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="torch"):
        importlib.import_module(name)


@pytest.mark.parametrize("name", sorted({*gemelo.__all__} - {"AudioStream", "CausalLMOutput"}))
def test_public_names_are_there(name: str) -> None:
    assert getattr(gemelo, name) is not None
