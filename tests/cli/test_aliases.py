"""Aliases: every name of other programs is taken where we have the option, or says what is here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from gemelo.cli import absent, aliases, app
from gemelo.cli.parsing import close
from tests.cli.conftest import Command

GREEDY = ("--ignore-eos", "--json", "--raw")


def commands(command: Any = None) -> Iterator[Any]:
    """Every command of the app, those of its groups included."""
    for one in (command or get_command(app)).commands.values():
        yield from commands(one) if hasattr(one, "commands") else (one,)


def own_options(command: Any) -> set[str]:
    return {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def test_every_alias_is_of_an_option_and_every_command_takes_those_of_its_options() -> None:
    everywhere = set().union(*map(own_options, commands()))
    assert set(aliases.OPTIONS) <= everywhere
    assert set(aliases.COMMANDS.values()) <= {one.name for one in commands()}
    for command in commands():
        parser = command.make_parser(typer.Context(command))
        taken = {**parser._long_opt, **parser._short_opt}
        names: dict[str, str] = {}
        for option in own_options(command):
            for alias in aliases.OPTIONS.get(option, ()):
                assert alias not in names, f"{alias} is {option} and {names[alias]}"
                names[alias] = option
                if alias not in own_options(command):
                    assert taken[alias].dest == taken[option].dest, f"{command.name} {alias}"


def test_what_is_absent_is_neither_an_option_nor_an_alias() -> None:
    everywhere = set().union(*map(own_options, commands())) - {"--stream"}  # transcribe's
    others = {alias for names in aliases.OPTIONS.values() for alias in names}
    assert not set(absent.OPTIONS) & (everywhere | others)
    for command in commands():
        there = own_options(command)
        assert not set(absent.OF_COMMAND.get(command.name, {})) & set(there), command.name
    assert set(absent.OF_COMMAND) <= {one.name for one in commands()}
    known = {one.name for one in commands()} | {"show", "help", "version"}
    assert not set(absent.COMMANDS) & (known | set(aliases.COMMANDS))


@pytest.mark.parametrize(
    "words",
    [
        "-p|the|-n|6|--temp|0|-t|1|-c|64|-s|7|--repeat-penalty|1.5",
        "--prompt|the|--n-predict|6|--temperature|0|--threads|1|--ctx-size|64|--seed|7"
        "|--repetition_penalty|1.5",
        "the|--max-new-tokens=6|--temp=0|--num_ctx|64|--random-seed|7|--repeat_penalty=1.5",
        "the|-n6|--temp|0|-c64|-s7|--repeat-penalty|1.5|--num-thread|1",
    ],
)
def test_aliases_mean_what_our_names_mean(gemelo: Command, words: str) -> None:
    ours = "the --max-tokens 6 --temperature 0 --threads 1 --context 64 --seed 7".split()
    wanted = json.loads(gemelo("generate", *ours, "--repetition-penalty", "1.5", *GREEDY).out)
    ran = gemelo("generate", *words.split("|"), *GREEDY)
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    for key in ("prompt_token_ids", "token_ids", "seed"):
        assert said[key] == wanted[key]
    plain = json.loads(gemelo("generate", *ours, *GREEDY).out)
    assert plain["token_ids"] != wanted["token_ids"], "the penalty changes this text"


def test_a_system_prompt_and_a_model_by_other_names(gemelo: Command, chat_directory: Path) -> None:
    words = ("generate", "the", "--max-tokens", "2", "--temperature", "0", "--json")
    wanted = gemelo(*words, "--system", "in", "--model", str(chat_directory))
    ran = gemelo(*words, "-sys", "in", "-hf", str(chat_directory))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["prompt_token_ids"] == json.loads(wanted.out)["prompt_token_ids"]


def test_bench_takes_llama_benchs_names(gemelo: Command, tiny_checkpoint: Path) -> None:
    ran = gemelo("bench", str(tiny_checkpoint), "-p", "4", "-n", "2", "-r", "1", "--json")
    assert ran.code == 0, ran.err
    said = json.loads(ran.out)
    assert (said["prompt_tokens"], said["new_tokens"], said["repeat"]) == (4, 2, 1)


def test_help_shows_our_names_alone(gemelo: Command) -> None:
    for command in ("generate", "run", "chat", "bench"):
        told = gemelo(command, "--help").out
        for alias in (alias for names in aliases.OPTIONS.values() for alias in names):
            assert f" {alias} " not in told.replace(",", " "), f"{command} {alias}"


def test_commands_by_other_names(gemelo: Command) -> None:
    assert gemelo("ls", "--json").out == gemelo("list", "--json").out
    assert gemelo("tokenise", "the").out == gemelo("tokenize", "the").out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("generate", "x", "-ngl", "99"),
            "-ngl is no option of gemelo: a model lies on one device",
        ),
        (("generate", "x", "--n-gpu-layers=99"), "--n-gpu-layers is no option of gemelo: a model"),
        (("chat", "--jinja"), "--jinja is no option of gemelo: chat templates are always run"),
        (("generate", "x", "-fa"), "-fa is no option of gemelo: "),
        (
            ("generate", "x", "--cache_type_k", "f16"),
            "--cache_type_k is no option of gemelo: --kv-",
        ),
        (("generate", "x", "-temperature", "1"), "-temperature needs two dashes: --temperature"),
        (("serve",), "gemelo serve: there is no server: every command loads its model, and"),
        (("info", "demo"), "gemelo info: `gemelo show MODEL` shows a model"),
        (("list", "-a"), "-a is no option of gemelo list: all models of this machine are"),
        (("ls", "--all"), "--all is no option of gemelo list: "),
        (("show", "demo", "--modelfile"), "--modelfile is no option of gemelo show model: there"),
        (
            ("convert", "--hf-path", "a", "--mlx-path", "b", "-q"),
            "--hf-path is no option of gemelo convert: SOURCE and TARGET are words of their own",
        ),
        (("transcribe", "x.wav", "--output", "a"), "--output is no option of gemelo transcribe: w"),
        (("transcribe", "x.wav", "--prompt", "a"), "--prompt is no option of gemelo transcribe: t"),
        (("bench", "--submodel", "E2B"), "--submodel is no option of gemelo bench: `gemelo slice`"),
        (
            ("tokenize", "demo", "the capital"),
            'the model is an option here: gemelo tokenize -m demo "the capital"',
        ),
        (
            ("tokenize", "the", "capital"),
            'a text of several words needs quotes: gemelo tokenize "the capital"',
        ),
        (("quantize", "a"), "gemelo quantize: `gemelo convert SOURCE TARGET.gguf --format q4_0`"),
        (("x.gguf",), "No such command 'x.gguf'. `gemelo run x.gguf` runs a model"),
        (("-m", "demo", "x"), "No such option: -m; a command comes first, for example `gemelo run"),
        (("generate", "x", "--imge", "a"), "No such option: --imge. Did you mean --image?"),
        (("generate", "x", "--tempp", "1"), "No such option: --tempp. Did you mean --temperature?"),
        (("generate", "x", "--max-tok", "1"), "No such option: --max-tok. Did you mean --max-tok"),
        (("generate", "x", "--prefill", "1"), "No such option: --prefill (`gemelo generate"),
        (("generate", "x", "--bogus"), "No such option: --bogus (`gemelo generate"),
        (("talk",), "No such command 'talk'. (`gemelo --help"),
        (("show", "modle"), "No such command 'modle'. Did you mean 'model'?"),
    ],
)
def test_what_is_not_here_gets_a_sentence_or_a_close_suggestion(
    gemelo: Command, words: tuple[str, ...], error: str
) -> None:
    ran = gemelo(*words)
    assert (ran.code, ran.out) == (2, "") and ran.err.startswith(f"error: {error}"), ran.err
    assert len(ran.err.splitlines()) == 1


def test_help_goes_before_what_is_wrong(gemelo: Command) -> None:
    assert gemelo("generate", "--gpu", "--help").out == gemelo("generate", "--help").out


@pytest.mark.parametrize(
    ("typed", "options", "wanted"),
    [
        ("--temp", ["--help", "--stop", "--system"], []),
        ("--gpu", ["--fps", "--ple"], []),
        ("--file", ["--ple", "--quiet", "--video"], []),
        ("--top", ["--top-k", "--top-p", "--stop"], ["--top-k", "--top-p"]),
        ("--max_token", ["--max-tokens"], ["--max-tokens"]),
        ("--sed", ["--seed", "--stop"], ["--seed"]),
    ],
)
def test_suggestions_are_close(typed: str, options: list[str], wanted: list[str]) -> None:
    assert close(typed, options) == wanted


def test_the_last_words_of_an_option_are_its_value(gemelo: Command) -> None:
    """--stop takes what comes next, whatever it looks like."""
    ran = gemelo("generate", "the", "--stop", "--gpu", "--max-tokens", "2", "--json")
    assert ran.code == 0, ran.err
