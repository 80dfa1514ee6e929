"""Where a prompt comes from: words, --prompt, a file, a pipe; and what a prompt is taken for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gemelo.cli import prompt_text as prompts
from gemelo.cli.prompt_text import PromptSource, prompt_text
from gemelo.errors import InputError
from tests.cli.conftest import Command
from tests.multimodal import photograph

SHORT = ("--temperature", "0", "--ignore-eos", "--max-tokens", "3", "--json")


def ids(gemelo: Command, *words: str, stdin: bytes = b"") -> list[int]:
    ran = gemelo(*words, *SHORT, stdin=stdin)
    assert ran.code == 0, ran.err
    said: list[int] = json.loads(ran.out)["prompt_token_ids"]
    return said


def test_every_source_is_the_same_prompt(gemelo: Command, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffthe\r\ncapital\r\n".encode("utf-16-le"))
    text = "the\ncapital"
    wanted = ids(gemelo, "generate", text)
    assert ids(gemelo, "generate", "-p", text) == wanted
    assert ids(gemelo, "generate", "--file", str(file)) == wanted
    assert ids(gemelo, "generate", "-f", "-", stdin=b"the\ncapital\n") == wanted
    assert ids(gemelo, "generate", stdin=b"the\r\ncapital\r\n") == wanted
    assert ids(gemelo, "generate", "-", stdin=b"the\ncapital\n") == wanted
    assert ids(gemelo, "generate", text, stdin=b"not read") == wanted


def test_a_prompt_option_is_text_whatever_it_is(gemelo: Command) -> None:
    assert ids(gemelo, "generate", "-p", "-") == ids(gemelo, "generate", "-", stdin=b"-")
    assert "--prompt" not in gemelo("generate", "--help").out, "PROMPT is its name here"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (PromptSource("a", option="b"), "both PROMPT and --prompt are given; give one of them"),
        (PromptSource("a", file="b"), "both PROMPT and --file are given"),
        (PromptSource("-", option="b"), "both PROMPT and --prompt are given"),
        (PromptSource(option="a", file="b"), "both --prompt and --file are given"),
        (PromptSource(file=""), "--file is empty: name a file"),
        (PromptSource(file="~nobody-here/a"), "there is no such home directory"),
        (PromptSource(file="~\0"), "there is no such home directory"),
        (PromptSource(file="gone.txt"), "cannot read gone.txt: No such file"),
        (PromptSource(file="/dev/null"), "cannot read /dev/null: it is not a regular file"),
        (PromptSource(option="x\udcff"), "--prompt is not valid text"),
    ],
)
def test_sources_that_are_refused(
    source: PromptSource, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=error):
        prompt_text(source)


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "p.txt"
    for content, error in ((b"", "holds no text"), (b"a\xff", "p.txt is not UTF-8: byte 0xff")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=error):
            prompt_text(PromptSource(file=str(file)))
    monkeypatch.setattr(prompts, "MAX_TEXT_BYTES", 3)
    file.write_bytes(b"abcd")
    with pytest.raises(Exception, match="larger than 3 bytes"):
        prompt_text(PromptSource(file=str(file)))


def test_a_terminal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    for stdin in (Terminal(), None):
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match='there is no PROMPT: .* gemelo generate "The'):
            prompt_text(PromptSource())


def test_an_empty_prompt_is_run_as_the_library_runs_it_and_noted(gemelo: Command) -> None:
    assert ids(gemelo, "generate", "") == ids(gemelo, "generate", "-p", "") == [2]
    assert "note: the prompt is empty" in gemelo("generate", "", *SHORT).err
    assert "prompt is empty" not in gemelo("generate", "", *SHORT, "-q").err
    ran = gemelo("generate", stdin=b"\n")
    assert ran.code == 2 and "the prompt is empty: stdin holds no text" in ran.err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["generate", "The", "capital", "of"], 'gemelo generate "The capital of"'),
        (
            ["generate", "The", "--temp", "0", "capital", "of"],
            'gemelo generate --temp 0 "The capital of"',
        ),
        (["generate", "It", "costs", "$5"], "gemelo generate 'It costs $5'"),
        (["run", "demo", "The", "capital", "of"], 'gemelo run demo "The capital of"'),
        (["generate", "-p", "The", "capital", "of"], 'gemelo generate -p "The capital of"'),
        (["generate", "--prompt=The", "capital", "of"], 'gemelo generate "The capital of"'),
        (["generate", "-pThe", "capital", "of"], 'gemelo generate "The capital of"'),
        (["generate", "-p", "a", "-n", "2", "b", "c"], 'gemelo generate -n 2 "a b c"'),
    ],
)
def test_a_prompt_without_quotes_is_told_what_works(
    gemelo: Command, words: list[str], command: str
) -> None:
    ran = gemelo(*words)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: a prompt of several words needs quotes: {command}\n"


def test_a_file_in_the_prompt_or_behind_it(
    gemelo: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photograph(20, 20).save("a.png")
    ran = gemelo("generate", "what is in './a.png'?", *SHORT)
    assert ran.code == 0 and "--image ./a.png attaches it" in ran.err
    assert "attaches" not in gemelo("generate", "what is in b.png?", *SHORT).err
    assert "attaches" not in gemelo("generate", "what is in a.png?", *SHORT, "-q").err
    behind = gemelo("generate", "what is this?", "./a.png")
    assert behind.code == 2
    assert behind.err == "error: ./a.png stands behind the prompt: --image ./a.png attaches it\n"


def test_tokenize_reads_a_pipe(gemelo: Command) -> None:
    assert gemelo("tokenize", stdin=b"a\n").out == gemelo("tokenize", "a\n").out


def test_a_pipe_is_bounded_as_a_file_is(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemelo.cli.terminal.MAX_TEXT_BYTES", 3)
    assert gemelo("tokenize", stdin=b"abc").code == 0
    for words in (("tokenize",), ("generate",), ("generate", "-"), ("run", "demo", "x")):
        ran = gemelo(*words, stdin=b"abcd")
        assert ran.code == 2 and ran.err.startswith("error: stdin holds more than 3 B, "), ran.err
