"""A package of an extra that is missing, too old or broken is one line with the command."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from gemelo import extras
from gemelo.engine.device import set_threads
from gemelo.errors import MissingExtraError
from gemelo.extras import REQUIREMENTS, check_installed, is_found, require
from gemelo.inputs.media.audio_channels import is_tensor

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
HEAVY = {requirement.distribution for requirement in REQUIREMENTS.values()}


def test_what_is_there_is_imported() -> None:
    require("torch", "torch", what="logits as tensors")
    require("PIL", "media", what="pictures")
    assert {"torch", "PIL"} <= sys.modules.keys()


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # as Python itself marks what is not to be had
    with pytest.raises(MissingExtraError) as caught:
        require("PIL", "media", what="pictures")
    wanted = "pictures need the extra media (pillow is not installed): pip install 'gemelo[media]'"
    assert str(caught.value) == wanted and caught.value.exit_code == 2
    with pytest.raises(MissingExtraError) as caught:
        check_installed("PIL", "media", what="pictures")
    assert str(caught.value) == wanted


def test_what_is_installed_is_told_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "av" or name.startswith("av.")]:
        monkeypatch.delitem(sys.modules, name)
    check_installed("av", "media", what="recordings")
    assert "av" not in sys.modules
    monkeypatch.setattr(extras, "installed_version", lambda name: "13.1.0")
    with pytest.raises(MissingExtraError, match="need av >= 14, and 13.1.0 is installed: pip inst"):
        check_installed("av", "media", what="recordings")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="av is not installed"):
        check_installed("av", "media", what="recordings")


@pytest.mark.parametrize(
    ("version", "is_new"),
    [("2.6.0+cpu", True), ("2.10.1", True), ("2.5.1+cu124", False), ("1.13", False), ("x", False)],
)
def test_versions_are_numbers(monkeypatch: pytest.MonkeyPatch, version: str, is_new: bool) -> None:
    found = ModuleType("torch")
    found.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", found)
    if is_new:
        require("torch", "torch", what="CUDA devices")
        return
    with pytest.raises(MissingExtraError) as caught:
        require("torch", "torch", what="CUDA devices")
    assert str(caught.value) == (
        f"CUDA devices need torch >= 2.6, and {version} is installed: pip install 'gemelo[torch]'"
    )


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('libavcodec.so: not found')", "OSError: libavcodec.so: not found"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing"),
        ("import av.gone", "ModuleNotFoundError: No module named 'av.gone'"),
        ("raise RuntimeError('a\\nb' * 1000)", "RuntimeError: a b"),
    ],
)
def test_what_is_broken_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, reason: str
) -> None:
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "__init__.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name == "av" or name.startswith("av.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError) as caught:
        require("av", "media", what="recordings")
    said = str(caught.value)
    assert said.startswith(f"recordings need av, which cannot be imported ({reason}")
    assert said.endswith("): pip install --force-reinstall 'av>=14'") and len(said) < 300


def test_a_mere_folder_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What an uninstallation left, or a folder of that name beside the program: Python imports it,
    empty."""
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch-2.9.0.dist-info").mkdir()  # without its METADATA
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch")
    wanted = "logits need the extra torch (torch is not installed): pip install 'gemelo[torch]'"
    for ask in (check_installed, require, check_installed):  # the second leaves it loaded
        with pytest.raises(MissingExtraError) as caught:
            ask("torch", "torch", what="logits")
        assert str(caught.value) == wanted
    assert sys.modules["torch"].__file__ is None
    assert not is_found("torch")
    assert set_threads(1) == [] and not is_tensor([1.0])


def test_a_version_that_nobody_wrote_down_is_not_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "av.py").touch()
    (tmp_path / "av-14.0.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name == "av" or name.startswith("av.")]:
        monkeypatch.delitem(sys.modules, name)
    check_installed("av", "media", what="recordings")


def test_the_least_versions_are_those_of_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = {line for name in ("torch", "media", "microphone") for line in extras[name]}
    told = {f"{r.distribution}>={r.least}" for r in REQUIREMENTS.values()}
    assert asked - {"gemelo[torch]"} == told


def test_text_needs_nothing_heavy() -> None:
    assert not [line for line in PROJECT["dependencies"] if line.split(">")[0] in HEAVY]
