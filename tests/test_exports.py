"""The public surface is a list, and the list is true: all that it speaks of is in it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy.typing
import PIL.Image
import pytest
import torch

import gemelo
from gemelo.inputs.media import image, parts

ROOT = Path(__file__).parent.parent
# What a module names for type checkers alone.
NAMES = {
    "AudioStream": gemelo.AudioStream,
    "CausalLMOutput": gemelo.CausalLMOutput,
    "Tensor": torch.Tensor,
    "Image": PIL.Image,
    "NDArray": numpy.typing.NDArray,
    "Source": parts.Source,
    "Picture": image.Picture,
}
# Members that gemelo's own parts need of each other, and the types that only these speak of.
INNER = {
    "Draft.decoder: Decoder",
    "Draft.learn: Guess",
    "Draft.propose: Continuation",
    "Draft.propose: Guess",
    "Draft.propose: Work",
    "KVCache.copy_prefix: Snapshot",
    "KVCache.memory: Memory",
    "KVCache.restore: Snapshot",
    "KVCache.snapshot: Snapshot",
    "KVCache.tables: Table",
    "LayerConfig.rope: Rope",
    "MediaLoader.expand: AudioPlaceholder",
    "MediaLoader.expand: ImagePlaceholder",
    "ModelConfig.rope: Rope",
    "ModelConfig.rope_local_scaling: Linear",
    "ModelConfig.rope_local_scaling: Llama3",
    "ModelConfig.rope_local_scaling: Yarn",
    "ModelConfig.rope_scaling: Linear",
    "ModelConfig.rope_scaling: Llama3",
    "ModelConfig.rope_scaling: Yarn",
    "Session.answer: Turn",
    "Session.task: Work",
    "Session.decoder: Decoder",
    "Tokenizer.added_vocabulary: AddedVocabulary",
    "Tokenizer.backend: TokenizerBackend",
}


@pytest.mark.parametrize("name", gemelo.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(gemelo, name)
    is_alias = not isinstance(value, type) and not inspect.isfunction(value)
    assert get_args(value) if is_alias else value.__doc__


def test_nothing_else_is_promised() -> None:
    assert sorted(gemelo.__all__) == gemelo.__all__
    assert set(dir(gemelo)) == {*gemelo.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'fetch'"):
        gemelo.fetch  # noqa: B018


def test_help_lists_every_name_in_a_group() -> None:
    groups = re.findall(r"^- [\w ,-]+: ((?:.|\n  )+)$", gemelo.__doc__ or "", re.M)
    listed = [name for group in groups for name in re.findall(r"\w+", group)]
    assert sorted(listed) == gemelo.__all__


def test_type_checkers_see_the_same_names() -> None:
    source = ast.parse(Path(gemelo.__file__).read_text(encoding="utf-8"))
    told = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gemelo.")
        for alias in node.names
    }
    assert told == gemelo._HOMES


def test_importing_gemelo_does_not_load_torch() -> None:
    code = "import sys, gemelo, gemelo.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- signatures ----------------------------------------------------------------------------------


def named_in(hint: Any) -> Iterator[type]:
    """The classes that an annotation speaks of."""
    if isinstance(hint, list):  # the arguments of a Callable
        for part in hint:
            yield from named_in(part)
    elif get_origin(hint) is not None:
        if get_origin(hint) is not Literal:
            for part in (get_origin(hint), *get_args(hint)):
                yield from named_in(part)
    elif isinstance(hint, type):
        yield hint


def public_members(value: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Methods and properties that a class itself defines."""
    for name, member in vars(value).items():
        function = member.fget if isinstance(member, property) else member
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def spoken_of(value: Any) -> Iterator[tuple[str, type]]:
    """Where an exported value names a class, and the class."""
    if not isinstance(value, type):
        hints = get_type_hints(value, localns=NAMES) if inspect.isfunction(value) else {"": value}
        name = getattr(value, "__name__", repr(value))
        yield from ((name, one) for hint in hints.values() for one in named_in(hint))
        return
    for home in value.__mro__:
        if not home.__module__.startswith("gemelo."):
            continue
        fields = vars(home).get("__annotations__", {})
        hints = get_type_hints(home, localns=NAMES)
        members = [(name, {"": hints[name]}) for name in fields if not name.startswith("_")]
        members += [(n, get_type_hints(f, localns=NAMES)) for n, f in public_members(home)]
        for member, found in members:
            for hint in found.values():
                yield from ((f"{home.__name__}.{member}", one) for one in named_in(hint))


def test_what_public_signatures_speak_of_is_public() -> None:
    exported = [getattr(gemelo, name) for name in gemelo.__all__]
    bases = gemelo.Tokenizer.__mro__[1:]  # what it inherits is described with it
    assert any(one is gemelo.Submodel for _, one in spoken_of(gemelo.Model)), "it looks inside"
    missing = {
        f"{where}: {one.__name__}"
        for value in exported
        for where, one in spoken_of(value)
        if one.__module__.startswith("gemelo.") and one not in exported and one not in bases
    }
    assert missing == INNER


# ---- what users read -----------------------------------------------------------------------------


def python_for_users() -> Iterator[tuple[str, str]]:
    """The examples, and the Python in the README and in docs/."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            yield path.name, block


def test_examples_and_docs_import_gemelo_alone() -> None:
    inside = [
        f"{name}: {line}"
        for name, source in python_for_users()
        for line in source.splitlines()
        if re.match(r"\s*(from|import) gemelo\.", line)
    ]
    assert not inside and len(list(python_for_users())) >= 7
