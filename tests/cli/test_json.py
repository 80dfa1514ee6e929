"""docs/json.md names every field of every JSON that a command prints, and no other."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import gemelo as library
from gemelo.cli import app, shows
from gemelo.cli.conversation import Conversation, as_turns
from tests.cli.conftest import Command
from tests.multimodal import recording, write_wave

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
FILE = "The file of /save"
KNOWN = "gemelo list --known"  # of another shape than `gemelo list`
SAME = re.compile(r"^The fields of \[`(gemelo [\w ]+)`\]", re.M)
TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),  # whose own fields have rows
    "null": (type(None),),
}
Steps = tuple[str, ...]  # to a field: names, [] into a list; * on the page is any name


def fields_of(value: Any, path: Steps = ()) -> Iterator[tuple[Steps, type]]:
    """Every field with its type; of a list of objects, those of the objects."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fields_of(inner, (*path, name))
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        for one in value:
            yield from fields_of(one, (*path, "[]"))
    else:
        yield path, type(value)


def described() -> dict[str, dict[Steps, set[str]]]:
    """The page: what it says the type of each field is, by section; of a section that refers to one
    above, the fields of that."""
    page: dict[str, dict[Steps, set[str]]] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        same = SAME.search(body)
        fields = page[title.strip("`")] = dict(page[same[1]]) if same else {}
        for line in body.splitlines():
            if line.startswith("| `"):
                field, kind, _, meaning = (cell.strip() for cell in line.strip("|").split("|"))
                steps = field.strip("`").replace("[]", ".[]").strip(".").split(".")
                assert tuple(steps) not in fields and meaning, line
                fields[tuple(steps)] = set(kind.split(" or "))
    return page


def matches(pattern: Steps, path: Steps) -> bool:
    return len(pattern) == len(path) and all(
        part in ("*", name) for part, name in zip(pattern, path, strict=True)
    )


def test_every_command_that_prints_json_is_described() -> None:
    """A command that is new needs a section on the page, and a line in RUNS."""
    printing = {FILE, KNOWN, "gemelo transcribe"}  # whose --format has json among others
    for group, prefix in ((app, "gemelo "), (shows, "gemelo show ")):
        for command in group.registered_commands:
            if command.callback and "json" in command.callback.__annotations__:
                printing.add(f"{prefix}{command.name}")
    assert printing - set(described()) == set(), "docs/json.md has no section of these"
    assert printing == set(described()) == set(RUNS)


# ---- what comes out ------------------------------------------------------------------------------


class Desk:
    """The commands, and the tiny models and files that they are given."""

    def __init__(self, gemelo: Command, text: Path, awake: Path, folder: Path) -> None:
        self._gemelo, self.text, self.awake, self.folder = gemelo, str(text), str(awake), folder

    def __call__(self, *words: str) -> Any:
        ran = self._gemelo(*words)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)


def answered(desk: Desk, *command: str) -> list[Any]:
    """Answers with the options that add fields; the model is the word after `command`."""
    words = ("the", "--raw", "--json", "--ignore-eos", "--max-tokens")
    return [
        desk(*command, desk.text, *words, "3"),
        desk(*command, desk.text, *words, "3", "--n", "2", "--logprobs", "2"),
        desk(*command, desk.awake, *words, "3"),
        desk(*command, desk.awake, *words, "3", "--policy", "difficulty:1.5"),
        desk(*command, desk.awake, *words, "1", "--speculate", "half"),  # before any guess
        desk(*command, desk.awake, *words, "12", "--speculate", "half"),
    ]


def transcribed(desk: Desk) -> list[Any]:
    write_wave(desk.folder / "talk.wav", recording(1.0))
    words = ("transcribe", str(desk.folder / "talk.wav"), "-m", desk.awake, "--max-tokens", "3")
    return [desk(*words, "--format", "json")]


def written(desk: Desk) -> list[Any]:
    return [desk("convert", desk.text, str(desk.folder / "out.gguf"), "--json")]


def sliced(desk: Desk) -> list[Any]:
    part = desk.folder / "part.json"
    part.write_text('{"name": "part", "ffn_widths": 32, "skipped_layers": []}')
    words = ("--submodel", str(part), "--json")
    return [desk("slice", desk.awake, str(desk.folder / "part"), *words)]


def cropped(desk: Desk) -> list[Any]:
    """A picture that is cut, and one that is not."""
    pictures = []
    for name, width in (("wide.png", 1200), ("square.png", 400)):
        Image.new("RGB", (width, 400)).save(desk.folder / name)
        words = (str(desk.folder / name), "--save", str(desk.folder / "crops"))
        pictures.append(desk("show", "crops", *words, "--json"))
    return pictures


def listed(desk: Desk) -> list[Any]:
    """A model with its mmproj, in the working folder, beside what this machine has."""
    desk("convert", desk.awake, str(desk.folder / "awake.gguf"), "--text-only", "--json")
    desk("convert", desk.awake, str(desk.folder / "mmproj-awake.gguf"), "--mmproj", "--json")
    return [desk("list", "--json")]


def looked_into(desk: Desk) -> list[Any]:
    words = ("show", "model", "--json", "-m")
    small = ("--submodel", "half")
    return [desk(*words, desk.text), desk(*words, desk.awake), desk(*words, desk.awake, *small)]


def benched(desk: Desk) -> list[Any]:
    words = ("--prompt-tokens", "4", "--new-tokens", "2", "--repeat", "1", "--json")
    return [desk("bench", "-m", desk.text, *words)]


def saved(desk: Desk) -> list[Any]:
    talk = Conversation(as_turns)
    talk.system = "be brief"
    talk.attach("image", desk.folder / "cat.png")
    talk.ask("who is it?")
    talk.answer("a cat")
    talk.save(desk.folder / "talk.json")
    return [json.loads((desk.folder / "talk.json").read_text())]


RUNS: dict[str, Callable[[Desk], list[Any]]] = {
    "gemelo generate": lambda desk: answered(desk, "generate", "-m"),
    "gemelo run": lambda desk: answered(desk, "run"),
    "gemelo tokenize": lambda desk: [desk("tokenize", "the", "--json")],
    "gemelo transcribe": transcribed,
    "gemelo pull": lambda desk: [desk("pull", "owner/name", "--json")],
    "gemelo list": listed,
    KNOWN: lambda desk: [desk("list", "--known", "--json")],
    "gemelo convert": written,
    "gemelo slice": sliced,
    "gemelo bench": benched,
    "gemelo show model": looked_into,
    "gemelo show sizes": lambda desk: [
        desk("show", "sizes", "-m", model, "--json") for model in (desk.text, desk.awake)
    ],
    "gemelo show crops": cropped,
    FILE: saved,
}


@pytest.mark.parametrize("section", RUNS)
def test_the_page_names_the_fields_that_come_out(
    section: str,
    gemelo: Command,
    tiny_checkpoint: Path,
    awake_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gemelo.evals.machine.memory_bandwidth", lambda: 1e10)
    monkeypatch.setattr(library, "pull", lambda name, revision, progress: Path("/hub/it"))
    monkeypatch.chdir(tmp_path)
    desk = Desk(gemelo, tiny_checkpoint, awake_directory, tmp_path)
    found: dict[Steps, set[type]] = {}
    for value in RUNS[section](desk):
        for path, kind in fields_of(value):
            found.setdefault(path, set()).add(kind)
    page = described()[section]
    for path, kinds in found.items():
        types = [words for pattern, words in page.items() if matches(pattern, path)]
        assert types, f"docs/json.md does not describe {'.'.join(path)} of {section}"
        allowed = {kind for word in types[0] for kind in TYPES[word]}
        assert kinds <= allowed, f"docs/json.md has another type of {'.'.join(path)} of {section}"
    for pattern in page:
        name = ".".join(pattern)
        assert any(matches(pattern, path) for path in found), f"no {name} comes of {section}"
