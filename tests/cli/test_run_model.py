"""`gemelo run MODEL`: generate with a prompt or a pipe, a chat without; and models by position."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from gemelo.cli import run
from gemelo.cli.run_model import run_model
from tests.cli.conftest import Command

GREEDY = ("--temperature", "0", "--ignore-eos", "--max-tokens", "4")


def test_a_prompt_is_generated_from(gemelo: Command, tiny_checkpoint: Path) -> None:
    model = str(tiny_checkpoint)
    wanted = gemelo("generate", "-m", model, "the", *GREEDY, "--json")
    said = json.loads(wanted.out)
    for words, stdin in (
        ((model, "the"), b""),
        ((model, "-p", "the"), b""),
        ((model,), b"the\n"),
        (("-m", model), b"the\n"),
        ((model, "-"), b"the"),
    ):
        ran = gemelo("run", *words, *GREEDY, "--json", stdin=stdin)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["token_ids"] == said["token_ids"]
        assert json.loads(ran.out)["model"] == model


def test_a_pipe_stands_before_a_prompt(gemelo: Command, tiny_checkpoint: Path) -> None:
    joined = gemelo("generate", "of\nit\n\nthe", *GREEDY, "--json")
    ran = gemelo("run", str(tiny_checkpoint), "the", *GREEDY, "--json", stdin=b"of\r\nit\r\n")
    told = [json.loads(one.out)["prompt_token_ids"] for one in (joined, ran)]
    assert told[0] == told[1]
    hyphen = gemelo("run", str(tiny_checkpoint), *GREEDY, "--json", stdin=b"-\n")
    alone = gemelo("generate", "-p", "-", *GREEDY, "--json")
    assert json.loads(hyphen.out)["token_ids"] == json.loads(alone.out)["token_ids"]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_without_a_prompt_it_is_a_chat(
    gemelo: Command,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: dict[str, object] = {}

    def chat(**values: object) -> None:
        given.update(values)

    from gemelo.cli.chat import chat as real

    chat.__dict__["__signature__"] = real.__dict__["__signature__"]
    monkeypatch.setattr("gemelo.cli.run_model.chat", chat)
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"")))
    words = ["run", str(tiny_checkpoint), "--temp", "0.5", "-q"]
    assert run(words) == 0, capsys.readouterr().err
    assert given["model"] == str(tiny_checkpoint)
    assert (given["temperature"], given["quiet"], given["verbose"]) == (0.5, True, False)
    assert given["top_k"] == real.__dict__["__signature__"].parameters["top_k"].default
    assert "prompt" not in given and "n" not in given
    assert run([*words, "--json"]) == 2
    assert "--json is of `gemelo generate`: give a PROMPT too" in capsys.readouterr().err


def test_run_has_every_option_of_generate() -> None:
    from gemelo.cli.generate import generate

    assert run_model.__dict__["__signature__"] == generate.__dict__["__signature__"]


def test_a_model_by_position(gemelo: Command, tiny_checkpoint: Path, chat_directory: Path) -> None:
    model = str(tiny_checkpoint)
    assert gemelo("chat", model, stdin=b"the\n").code == 0
    shown = gemelo("show", "model", "-m", model, "--json")
    for words in (("show", "model", model), ("show", model)):
        assert gemelo(*words, "--json").out == shown.out
    assert gemelo("show", "-m", model, "--json").out == shown.out
    for command in (("chat",), ("show", "model"), ("show",), ("bench",), ("run",)):
        ran = gemelo(*command, model, "-m", str(chat_directory))
        assert ran.code == 2 and ran.err.startswith(f"error: both MODEL {model} and --model "), ran
        assert len(ran.err.splitlines()) == 1
