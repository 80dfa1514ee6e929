"""Commands on the pages: gemelo takes every one as it stands, and those on small models run.

A command is a line of a block, or a piece of code in the text, that begins with `gemelo`. All are
parsed by the command line's own parser, for which no model is needed. Those on the demo run, with
few tokens, and the others of a page run on a tiny Gemma 3n in the place of its model. Scripts that
a page names exist, and those that take options say so.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.main import get_command

from gemelo.cli import app, run
from tests.multimodal import AWAKE, write

ROOT = Path(__file__).parent.parent
WRITTEN = {"cli.md", "api.md"}  # by scripts, from what the code has
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in WRITTEN),
]
_FILES = {".gguf", ".jpg", ".png", ".wav", ".mp3", ".mp4", ".m4a"}
_SHELL = {"<", ">", ">>", "|", "&&", "||", ";"}
_BENCH = ["--prompt-tokens", "8", "--new-tokens", "2", "--repeat", "1"]
_SHORT = {"generate": ["--max-tokens", "2"], "bench": _BENCH}
_ON_DEMO = ("generate", "tokenize", "bench", "list")  # without -m, or with `-m demo`


class Written(NamedTuple):
    """A command as a page has it: its words after `gemelo`, and the exit code that is shown."""

    page: str
    words: tuple[str, ...]
    code: int


def blocks(page: str) -> Iterator[str]:
    """Fenced blocks that are no program of another language, and indented ones."""
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", page, re.S | re.M):
        if language in ("", "sh", "bash", "text", "console"):
            yield text
    yield from re.findall(
        r"(?:^(?: {4}.*)?\n)+", re.sub(r"^```.*?^```", "", page, flags=re.S | re.M), re.M
    )


def in_text(page: str) -> Iterator[str]:
    """Pieces of code in the text that are a whole command: one option or argument at least."""
    text = re.sub(r"^```.*?^```|^#.*?$", "", page, flags=re.S | re.M)  # nor headings
    for piece in re.findall(r"`(gemelo [^`]+)`", text):
        line = " ".join(piece.split())
        if len(line.split()) > 2 and "..." not in line:
            yield line


def commands(path: Path) -> Iterator[Written]:
    """Every command of a page, in order."""
    page, name = path.read_text(encoding="utf-8"), path.name
    for block in blocks(page):
        lines = re.sub(r"\\\n\s*", " ", block).splitlines()
        for place, line in enumerate(lines):
            fails = any(one.strip().startswith("error:") for one in lines[place + 1 : place + 2])
            yield from (Written(name, words, 2 if fails else 0) for words in _words(line))
    for line in in_text(page):
        yield from (Written(name, words, 0) for words in _words(line))


def _words(line: str) -> Iterator[tuple[str, ...]]:
    """The commands of a line of a shell, without prompt, comment, variables and pipes."""
    if "gemelo" not in line:
        return
    try:
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # prose in an indented block, with an apostrophe
        return
    while words:
        end = next((at for at, word in enumerate(words) if word in _SHELL), len(words))
        one, words = words[:end], words[end + 1 :]
        while one and re.match(r"[A-Z_]+=", one[0]):
            one = one[1:]
        if one[:1] == ["gemelo"]:
            yield tuple(one[1:])


ALL = list(dict.fromkeys(one for path in PAGES for one in commands(path)))


def parse(words: tuple[str, ...]) -> None:
    """Let the command line's own parser read the words; nothing is run."""
    command: Any = get_command(app)
    context = command.make_context("gemelo", list(words))
    while hasattr(command, "resolve_command") and context._protected_args:
        left = [*context._protected_args, *context.args]
        name, command, left = command.resolve_command(context, left)
        context = command.make_context(name, left, parent=context)


def _id(one: Written) -> str:
    return f"{one.page}: {' '.join(one.words)[:60]}"


@pytest.mark.parametrize("one", ALL, ids=_id)
def test_every_command_is_one(
    one: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder where the files that it names are, since their absence is looked for first."""
    monkeypatch.chdir(tmp_path)
    for word in one.words:
        if Path(word).suffix in _FILES:
            Path(word).touch()
    parse(one.words)


def test_pages_with_commands_have_them() -> None:
    pages = {one.page for one in ALL}
    assert {"README.md", "media.md", "elastic.md", "models.md", "performance.md"} <= pages
    assert len(ALL) > 40


@pytest.mark.parametrize("words", [("generate", "--no-such", "x"), ("generate", "--top-k", "many")])
def test_a_command_that_is_none_is_found(words: tuple[str, ...]) -> None:
    with pytest.raises(typer.TyperException):
        parse(words)


def runnable(one: Written) -> bool:
    """Whether a command needs nothing but the demo."""
    model = one.words[one.words.index("-m") + 1] if "-m" in one.words else "demo"
    return bool(one.words) and one.words[0] in _ON_DEMO and model == "demo" and not media(one)


def media(one: Written) -> bool:
    return any(word in ("--image", "--audio", "--video", "--mmproj") for word in one.words)


def on_random(one: Written) -> bool:
    """Whether a command is of the model that an example writes, on which test_examples runs it."""
    return "random3n" in one.words


def short(words: tuple[str, ...]) -> list[str]:
    """The command with few tokens: the last of an option's values counts."""
    return [*words, *_SHORT.get(words[0], [])]


def by_speed(one: Written) -> Any:
    """Formats that are widened, and benchmarks, are slow ones."""
    is_slow = one.words[0] == "bench" or "--format" in one.words
    return pytest.param(one, id=_id(one), marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("one", [by_speed(one) for one in ALL if runnable(one)])
def test_those_on_the_demo_run(
    one: Written,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEMELO_MODEL", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    code = run(short(one.words))
    assert code == one.code, capsys.readouterr().err


ELASTIC = (ROOT / "docs" / "elastic.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tiny_3n(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3n, which has none of the published sizes, but its half and its whole."""
    return write(tmp_path_factory.mktemp("pages") / "tiny-3n", AWAKE)


@pytest.mark.parametrize(
    "one",
    [one for one in ALL if one.page == "elastic.md" and "-m" in one.words and not on_random(one)],
    ids=_id,
)
def test_those_on_sub_models_run_on_a_tiny_one(
    one: Written, tiny_3n: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {"gemma3n:e4b": str(tiny_3n), "E2B": "half", "E4B": "whole"}
    words = [ours.get(word, word) for word in one.words]
    assert run(short(tuple(words))) == 0, capsys.readouterr().err


def test_the_python_of_sub_models_runs(tiny_3n: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```py\n(.*?)^```", ELASTIC, re.S | re.M)
    names, sessions = dict[str, Any](), []
    for block in blocks:
        text = block.replace("gemma3n:e4b", str(tiny_3n)).replace("E2B", "half")
        exec(compile(text.replace('"E4B"', '"whole"'), "docs/elastic.md", "exec"), names)
        sessions.append(names["session"])
    changed, chosen = sessions
    assert changed.stats.switches == 2 and set(changed.written_by) <= {"half", "whole"}
    assert chosen.policy.__name__ == "latency 20 tokens/s" and len(names["sizes"]) == 2
    assert sum(chosen.stats.answered.values()) == 16
    assert names["model"].release("half") >= 0


def scripts() -> Iterator[tuple[str, str]]:
    """Scripts of this repository that a page says to run, and the page."""
    for path in [*PAGES, ROOT / "docs" / "api.md", ROOT / "docs" / "cli.md"]:
        page = path.read_text(encoding="utf-8")
        for script in re.findall(r"python[\s]+((?:benchmarks|dev|docs|examples)/[\w/]+\.py)", page):
            yield path.name, script
        for script in re.findall(r"(?:^    |`)(\.ci/\w+)", page, re.M):
            yield path.name, script


SCRIPTS = sorted({script for _, script in scripts()})


def test_scripts_exist() -> None:
    missing = [(page, script) for page, script in scripts() if not (ROOT / script).is_file()]
    assert not missing and len(SCRIPTS) > 10


def takes_options(script: str) -> bool:
    """Whether a script has a parser of options, and imports nothing that is not installed here."""
    path = ROOT / script
    text = path.read_text(encoding="utf-8")
    return path.suffix == ".py" and "argparse" in text and "import llama_cpp\n" not in text


@pytest.mark.slow
@pytest.mark.parametrize("script", [script for script in SCRIPTS if takes_options(script)])
def test_scripts_say_what_they_take(script: str) -> None:
    done = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
    for page, line in _lines_with(script):
        for option in re.findall(r"(--[a-z][\w-]*)", line):
            assert option in done.stdout, f"{page}: {line}"


def _lines_with(script: str) -> Iterator[tuple[str, str]]:
    for path in PAGES:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("    ") and f"python {script}" in line:
                yield path.name, line.partition("#")[0]
