"""Ctrl-C stops between tokens, keeps what was said, and leaves the session usable."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

import gemelo as library
from gemelo.cli import answer as answers
from gemelo.cli.terminal import Interrupt
from gemelo.config.sampling import Sampling
from tests.cli.conftest import Command, start

SETTINGS = Sampling(temperature=0, max_tokens=20, ignore_eos=True)


def press_ctrl_c(*whatever: object) -> None:
    signal.raise_signal(signal.SIGINT)


def test_the_first_asks_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        interrupt.check()
        press_ctrl_c()
        assert interrupt.requested
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_answer_keeps_what_was_said_and_the_session_goes_on(tiny_checkpoint: Path) -> None:
    model = library.load(tiny_checkpoint)
    session, ids = model.session(), model.tokenizer.encode("the capital " * 12)
    said: list[str] = []

    def show(text: str) -> None:
        said.append(text)
        if len(said) == 5:
            press_ctrl_c()

    cut = answers.answer(model, session, model.prompt(ids), SETTINGS, show, quiet=True)
    assert answers.cancelled(cut) and cut.finish_reason == "cancelled"
    assert len(cut.token_ids) == 5 and cut.text == "".join(said)
    whole = answers.answer(model, session, model.prompt(ids), SETTINGS, said.append, quiet=True)
    assert whole.timings.reused_tokens == (len(ids) - 1) // 64 * 64 > 0
    assert whole.token_ids == library.load(tiny_checkpoint).generate(ids, SETTINGS).token_ids
    assert whole.token_ids[:5] == cut.token_ids


def test_a_prompt_being_read_is_given_up(gemelo: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    class Impatient(answers.Bar):
        def __call__(self, done: int, total: int) -> None:
            if self._label == "reading the prompt":
                press_ctrl_c()

    monkeypatch.setattr(answers, "Bar", Impatient)
    ran = gemelo("generate", "the", "--json")
    said = json.loads(ran.out)
    assert ran.code == 130
    assert said["finish_reason"] == "cancelled"
    assert said["token_ids"] == [] and said["text"] == ""


def test_a_process_leaves_with_130_and_its_text(long_directory: Path) -> None:
    words = ("generate", "the", "--raw", "--ignore-eos", "--max-tokens", "60000")
    with start(
        *words, "-m", str(long_directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        rest, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first + rest) > 1 and rest.endswith(b"\n")
    assert told == b"(interrupted)\n"
