"""What is typed while a chat loads or answers, on a real pseudo-terminal."""

from __future__ import annotations

import json
import os
import signal
import sys
import termios
import time
from pathlib import Path

import pytest

from gemelo.cli.typeahead import TerminalMode
from tests.cli.pseudo_terminal import READY, Terminal

PASTE, PASTED = "\x1b[200~", "\x1b[201~"


def chat(model: Path, cache: Path, *words: str) -> Terminal:
    return Terminal("chat", "-m", str(model), "--seed", "1", *words, cache=cache)


def asked(file: Path) -> list[str]:
    """What the user said in a conversation that was saved."""
    return [one["content"] for one in json.loads(file.read_text()) if one["role"] == "user"]


def test_lines_typed_while_it_loads_and_answers_are_sent_in_order(
    long_directory: Path, tmp_path: Path
) -> None:
    """None is lost, none melts into another, and none is in the answer's text."""
    file = tmp_path / "talk.json"
    with chat(long_directory, tmp_path, "--max-tokens", "4") as terminal:
        terminal.type("typed at once\n/set ignore_eos true\r")  # in the shell's mode, or in ours
        time.sleep(1)
        terminal.type('while it loads\r"""a block\rof two"""\r/set max_tokens 400\r')
        terminal.expect("max_tokens = 400")
        terminal.expect(READY)
        terminal.type("a long one\r")
        terminal.expect_answer()
        terminal.type("/set max_tokens 4\r" + "".join(f"zebra {n}\r" for n in range(20)))
        terminal.type(f"{PASTE}pasted\rlines{PASTED}\ralt\x1b\rand enter\rwindows\x1b\ntoo\r")
        answer = terminal.expect("stopped after 400 tokens")
        assert "zebra" not in answer and "/set" not in answer
        terminal.type(f"/save {file}\r/bye\r")
        assert terminal.wait() == 0
        assert terminal.is_cooked
    zebras = [f"zebra {n}" for n in range(20)]
    before = ["typed at once", "while it loads", "a block\nof two", "a long one"]
    assert asked(file) == [*before, *zebras, "pasted\nlines", "alt\nand enter", "windows\ntoo"]


def test_more_than_the_terminal_holds_at_once(long_directory: Path, tmp_path: Path) -> None:
    """A queue of a terminal is 4 kB; what is pasted over it waits in front."""
    file, page = tmp_path / "talk.json", "word " * 2000
    with chat(long_directory, tmp_path, "--max-tokens", "4") as terminal:
        terminal.expect("Ctrl-D leaves")
        terminal.type(f"{PASTE}{page}{PASTED}\r/save {file}\r/bye\r")
        assert terminal.wait() == 0
    assert asked(file) == [page]


@pytest.mark.parametrize("moment", ["loading", "prompt", "answer"])
def test_a_signal_that_ends_it_leaves_the_terminal_restored(
    long_directory: Path, tmp_path: Path, moment: str
) -> None:
    with chat(long_directory, tmp_path, "--max-tokens", "60000") as terminal:
        began(terminal, moment)
        assert not terminal.is_cooked
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.wait() == -signal.SIGTERM
        assert terminal.is_cooked


def began(terminal: Terminal, moment: str) -> None:
    """Wait until it loads, or waits for a line, or is in the middle of an answer."""
    if moment == "loading":
        deadline = time.monotonic() + 30
        while terminal.is_cooked and time.monotonic() < deadline:
            time.sleep(0.01)
        return
    terminal.expect(READY)
    if moment == "answer":
        terminal.type("/set ignore_eos true\r")
        terminal.expect("ignore_eos = true")
        terminal.expect(READY)
        terminal.type("the\r")
        terminal.expect_answer()


def test_ctrl_c_while_it_loads_and_an_error(long_directory: Path, tmp_path: Path) -> None:
    with chat(long_directory, tmp_path) as terminal:
        began(terminal, "loading")
        terminal.type("never sent\r\x03")
        assert terminal.wait() == 130 and terminal.is_cooked
    with chat(tmp_path / "nowhere.gguf", tmp_path) as terminal:
        terminal.expect("nowhere.gguf")
        assert terminal.wait() == 2 and terminal.is_cooked


def test_ctrl_c_stops_an_answer_and_drops_what_was_typed_ahead(
    long_directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.json"
    with chat(long_directory, tmp_path, "--max-tokens", "60000") as terminal:
        began(terminal, "answer")
        terminal.type("not this\r\x03")
        assert "^C" not in terminal.expect("(stopped)")
        terminal.expect(READY)
        terminal.type(f"/save {file}\r/bye\r")
        assert terminal.wait() == 0 and terminal.is_cooked
    assert asked(file) == ["the"]


def test_a_storm_of_ctrl_c_ends_no_chat(long_directory: Path, tmp_path: Path) -> None:
    """While it answers, and while the editor is set up and put away: no traceback, nothing lost."""
    file = tmp_path / "talk.json"
    with chat(long_directory, tmp_path, "--max-tokens", "400") as terminal:
        terminal.expect(READY)
        for _ in range(3):
            terminal.type("a long one\r")
            terminal.expect_answer()
            for _ in range(40):
                terminal.type("\x03")
                time.sleep(0.01)
        terminal.type("\x15/clear\r")
        said = terminal.expect("the conversation is forgotten")
        terminal.type(f"/set max_tokens 2\rhello\r/save {file}\r/bye\r")
        said += terminal.expect("wrote ")
        assert terminal.wait() == 0 and terminal.is_cooked
    assert "Traceback" not in said and "ignored" not in said and "awaited" not in said
    assert asked(file) == ["hello"]


@pytest.mark.parametrize("moment", ["prompt", "answer"])
def test_ctrl_z_gives_the_terminal_back_and_fg_takes_it_again(
    long_directory: Path, tmp_path: Path, moment: str
) -> None:
    """By a shell with job control, which looks at the terminal while the chat is stopped."""
    words = f"chat -m {long_directory} --seed 1 --max-tokens 60000"
    look = f"{sys.executable} -c \"import termios; print('flags', termios.tcgetattr(0)[3])\""
    script = f"{sys.executable} -m gemelo {words}; {look}; fg; {look}"
    with Terminal("-mc", script, program=("bash",), cache=tmp_path) as terminal:
        began(terminal, moment)
        terminal.type("\x1a")
        terminal.expect("flags ")
        shown = int(terminal.expect("\n"))
        assert shown & termios.ECHO and shown & termios.ICANON
        terminal.expect("gemelo")  # fg says what goes on
        time.sleep(0.5)
        assert not terminal.is_cooked
        if moment == "answer":
            terminal.type("\x03")
            terminal.expect("(stopped)")
            terminal.expect(READY)
        terminal.type("/bye\r")
        assert terminal.wait() == 0 and terminal.is_cooked


def test_handlers_of_others_stay(tmp_path: Path) -> None:
    """Signals that somebody wants ignored go on being ignored; the others are put back."""
    master, slave = os.openpty()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGTSTP)}
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        mode = TerminalMode(slave)
        mode.keep()
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        mode.restore()
        assert {number: signal.getsignal(number) for number in before} == before
    finally:
        signal.signal(signal.SIGHUP, hangup)
        os.close(master)
        os.close(slave)
