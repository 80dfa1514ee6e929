"""`gemelo chat`: a scripted conversation, its commands, and a real terminal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import gemelo as library
from gemelo.cli import commands
from gemelo.cli.conversation import Conversation, as_text, as_turns
from gemelo.cli.dialogue import Dialogue
from gemelo.cli.lines import history, piped, unclosed, unquoted
from gemelo.cli.repl import run
from gemelo.cli.settings import with_setting
from gemelo.engine.sampler import Sampling
from gemelo.errors import InputError
from tests.cli.conftest import Command
from tests.cli.pseudo_terminal import READY, Terminal

SHORT = ("--max-tokens", "4", "--seed", "1")


class Talk(Dialogue):
    """A dialogue on a model, with short answers; `run` is the loop of a chat."""

    def __init__(self, model: library.Model, quiet: bool = True) -> None:
        sampling = Sampling(seed=1, max_tokens=4, ignore_eos=True)
        talk = Conversation(as_turns)
        super().__init__(model, model.session(), talk, sampling, quiet=quiet, verbose=False)

    def run(self, inputs: list[str]) -> None:
        run(self, inputs)


@pytest.fixture
def repl(chat_directory: Path) -> Talk:
    return Talk(library.load(chat_directory))


def test_a_script_is_answered_line_by_line(
    gemelo: Command, chat_directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    script = f'the\n"""two\nlines"""\n/save {file}\n/bye\nnever read\n'.encode()
    ran = gemelo("chat", "-m", str(chat_directory), "--system", "be", *SHORT, stdin=script)
    messages = json.loads(file.read_text())
    assert ran.code == 0
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [messages[i]["content"] for i in (0, 1, 3)] == ["be", "the", "two\nlines"]
    assert ran.out == "".join(f"{messages[i]['content']}\n" for i in (2, 4))


def test_answers_are_the_librarys_and_the_past_is_reused(repl: Talk, chat_directory: Path) -> None:
    repl.run(["the capital " * 8, "capital"])  # more than a cell of the grid is shared
    held = repl.conversation.messages
    fresh = library.load(chat_directory)
    for asked in (1, 3):
        wanted = fresh.generate(held[:asked], seed=1, max_tokens=4, ignore_eos=True)
        assert held[asked]["content"] == wanted.text
    assert repl.last is not None and repl.last.timings.reused_tokens >= 64


def test_a_base_model_continues_the_text(
    gemelo: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    ran = gemelo("chat", *SHORT, stdin=f"the\n capital\n/save {file}\n/system x\n".encode())
    said = [message["content"] for message in json.loads(file.read_text())]
    assert "base model" in ran.err and "takes no instructions" in ran.err
    wanted = library.load(tiny_checkpoint).generate("".join(said[:3]), seed=1, max_tokens=4)
    assert said[3] == wanted.text


def test_regen_replaces_the_answer(repl: Talk) -> None:
    repl.run(["the"])
    first = list(repl.conversation.messages)
    repl.run(["/regen"])
    assert repl.conversation.messages == first  # the seed is fixed
    repl.run(["/set seed 2", "/regen"])
    assert repl.conversation.messages[0] == first[0]
    assert repl.conversation.messages != first


def test_a_failed_question_loses_nothing(repl: Talk, tmp_path: Path) -> None:
    """Not the pair that /regen takes back; what was attached goes, or it would fail again."""
    repl.run(["the"])
    messages = list(repl.conversation.messages)
    bad = repl.sampling
    repl.sampling = dataclasses.replace(bad, logit_bias={999999: 1.0})
    repl.run(["/regen"])
    assert repl.conversation.messages == messages
    repl.conversation.attach("image", tmp_path / "none.png")
    repl.run(["what is this"])
    assert repl.conversation.messages == messages and not repl.conversation.attached


def test_clear_keeps_the_instructions(repl: Talk) -> None:
    repl.run(["/system be brief", "the", "/clear"])
    assert repl.conversation.messages == [{"role": "system", "content": "be brief"}]
    repl.run(["/system be long"])
    assert repl.conversation.system == "be long"


def test_what_is_no_conversation_is_not_saved_over(repl: Talk, tmp_path: Path) -> None:
    thesis, empty, talk = (tmp_path / name for name in ("thesis.txt", "empty", "talk.json"))
    thesis.write_text("mine")
    empty.touch()
    (tmp_path / "link").symlink_to(thesis)
    for path in (thesis, tmp_path / "link"):
        with pytest.raises(InputError, match="holds no conversation"):
            repl.conversation.save(path)
    with pytest.raises(InputError, match="is a folder"):
        repl.conversation.save(tmp_path)
    assert thesis.read_text() == "mine"
    for path in (empty, talk, talk):
        repl.conversation.save(path)
        assert json.loads(path.read_text()) == repl.conversation.messages


def test_half_a_character_is_saved_too(repl: Talk, tmp_path: Path) -> None:
    repl.conversation.ask("\ud83d")
    repl.conversation.save(tmp_path / "talk.json")
    repl.conversation.clear()
    repl.conversation.load(tmp_path / "talk.json")
    assert repl.conversation.messages[-1]["content"] == "\ud83d"


def test_typed_lines_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.history import InMemoryHistory

    for variable in ("GEMELO_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    assert isinstance(history(), InMemoryHistory)


def no_home(cls: type[Path]) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_what_was_saved_loads(repl: Talk, tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    repl.run(["the", f"/save {file}"])
    held = list(repl.conversation.messages)
    repl.run(["/clear", f"/load {file}"])
    assert repl.conversation.messages == held
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "3",
        '{"a": 1}',
        '[{"role": "user"}]',
        '[{"role": "robot", "content": "x"}]',
        '[{"role": "user", "content": 3}]',
        '[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    conversation = Conversation(as_turns)
    conversation.ask("kept")
    with pytest.raises(InputError, match="t.json"):
        conversation.load(file)
    assert conversation.messages == [{"role": "user", "content": "kept"}]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/nope", "/nope is no command"),
        ("/save", "/save needs a file's name"),
        ("/save /nowhere/t.json", "cannot write /nowhere/t.json"),
        ("/load /nowhere", "cannot read /nowhere"),
        ("/regen", "no answer to take back"),
        ("/set temperature warm", "temperature = 'warm'"),
        ("/set nope 1", "unknown sampling setting 'nope'"),
        ("/set n 2", "n stays 1"),
        ("/set logprobs 2", "a chat shows no log-probabilities"),
        ("/set nothink", "/set nothink: Gemma 3 has no thinking"),
        ("/set nohistory", "/set nohistory: typed lines are always kept"),
        ("/set ignore_eos maybe", "expected true or false"),
        ("x" * 300, "tokens and the context holds"),
        ("a \udcff", "surrogate"),
    ],
)
def test_a_wrong_line_is_told_and_the_talk_goes_on(
    repl: Talk, capsys: pytest.CaptureFixture[str], line: str, expected: str
) -> None:
    repl.run([line, "the"])
    told = capsys.readouterr().err
    assert told.startswith("error: ") and expected in told
    assert [message["role"] for message in repl.conversation.messages] == ["user", "assistant"]


def test_help_set_and_stats_are_told_on_stderr(
    repl: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    repl.run(["/help", "/set", "/stats", "/?"])
    told = capsys.readouterr()
    assert told.out == ""
    for name in (*commands.COMMANDS, "temperature 1.0", "seed 1", "nothing was answered yet"):
        assert name in told.err
    repl.run(["the", "/stats"])
    assert "read in" in capsys.readouterr().err
    for word in ("/bye", "/exit", "/quit"):
        repl.over = False
        repl.run([word, "never answered"])
        assert len(repl.conversation.messages) == 2


@pytest.mark.parametrize(
    ("name", "value", "held"),
    [
        ("temperature", "0.5", 0.5),
        ("seed", "none", None),
        ("seed", "3", 3),
        ("stop", '"\\n"', ("\n",)),
        ("stop", "END", ("END",)),
        ("stop", "none", ()),
        ("stop", "null", ()),
        ("logit_bias", "none", {}),
        ("stop", '["a", "b"]', ("a", "b")),
        ("ignore_eos", "true", True),
        ("logit_bias", '{"5": -1}', {5: -1}),
    ],
)
def test_set_takes_every_kind_of_value(name: str, value: str, held: object) -> None:
    assert vars(with_setting(Sampling(), name, value))[name] == held


def test_a_setting_alone_is_shown_and_an_equals_sign_is_no_part_of_it(
    repl: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/set stop .", "/set stop", "/set stop none", "/set stop", "/set seed none", "/set"]
    repl.run([*lines, "/set temperature=0.5", "/set top_k = 7", "/set parameter min_p 0.1"])
    told = capsys.readouterr().err.splitlines()
    assert told[:4] == ["stop = .", 'stop = ["."]', "stop = none", "stop = none"]
    shown = [line.strip() for line in told[5:-3]]
    assert {"stop none", "logit_bias none", "seed none", "ignore_eos true"} <= set(shown)
    assert not [one for one in shown if one.split()[0] in ("n", "logprobs")]
    found = repl.sampling
    assert (found.temperature, found.top_k, found.min_p, found.stop) == (0.5, 7, 0.1, ())


def test_a_word_that_is_no_command_can_be_said(
    repl: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    repl.run(["/nope"])
    told = capsys.readouterr().err
    assert 'To say it to the model, put it between """ and """' in told
    repl.run(['"""/nope"""'])
    assert repl.conversation.messages[0]["content"] == "/nope"


def test_an_empty_answer_takes_its_question_back() -> None:
    conversation = Conversation(as_text)
    conversation.ask("a")
    conversation.answer("b")
    conversation.ask("c")
    conversation.answer("")
    assert conversation.prompt() == "ab"


def test_quoted_blocks() -> None:
    assert list(piped([b"a\r\n", b'"""b\n', b"\n", b'c"""\n', b'"""d"""'])) == [
        "a",
        '"""b\n\nc"""',
        '"""d"""',
    ]
    assert list(
        piped([b"\xef\xbb\xbf/stats\r\n", b'"""b\r\n', b"\r\n", b'c"""\r\n', b"d\r\r\n"])
    ) == [
        "/stats",
        '"""b\n\nc"""',
        "d\r",
    ]
    assert unquoted('"""b\n\nc"""') == "b\n\nc" and unquoted('say "x"') == 'say "x"'
    assert unclosed('"""') and unclosed('"""a') and not unclosed('""""""')
    with pytest.raises(InputError, match="ended inside"):
        list(piped([b'"""a\n']))


def test_on_a_terminal(long_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    words = ("chat", "-m", str(long_directory), "--seed", "1", "--max-tokens", "60000")
    with Terminal(*words, cache=tmp_path) as terminal:
        terminal.expect(READY)
        terminal.type("half a line\x03")  # Ctrl-C clears it
        terminal.expect(READY)
        terminal.type("\x03")
        terminal.expect("/bye leaves")
        terminal.expect(READY)
        terminal.type("/set ignore_eos true\r")
        terminal.expect("ignore_eos = true")
        terminal.expect(READY)
        terminal.type('"""one\rtwo"""\r')  # Enter inside quotes begins a new line
        terminal.expect_answer()
        terminal.type("\x03")
        terminal.expect("(stopped)")
        terminal.expect(READY)
        terminal.type(f"/save {file}\r")
        terminal.expect("2 messages")
        terminal.expect(READY)
        terminal.type("\x04")  # Ctrl-D
        assert terminal.wait() == 0 and terminal.is_cooked
    asked, answered = json.loads(file.read_text())
    assert asked["content"] == "one\ntwo"
    assert answered["content"]
    assert "/save" in (tmp_path / "chat_history").read_text()
