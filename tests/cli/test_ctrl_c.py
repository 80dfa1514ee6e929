"""Ctrl-C at any moment from the program's first line to its last: 130 or done, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.conftest import start

# The program, which tells by a byte on a pipe when its first line has run: what is before that is
# Python's own.
FIRST_LINE = """
import os, sys
import gemelo.__main__ as program
real = program._signal.signal
def told(*words):
    done = real(*words)
    if not program.told: os.write(int(sys.argv.pop(1)), b"1")
    program.told = True
    return done
program.told = False
program._signal.signal = told
program.main()
"""


def interrupted(words: Sequence[str], after_s: float) -> tuple[int, str]:
    """The exit code and stderr of a program interrupted so long after its first line."""
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", FIRST_LINE, str(write), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[write],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        os.close(write)
        assert os.read(read, 1)
        os.close(read)
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=120)
    return process.returncode, told.decode()


def commands(model: Path) -> tuple[tuple[str, ...], ...]:
    return (
        ("--help",),
        ("list",),
        ("tokenize", "-m", str(model), "the capital"),
        ("generate", "-m", str(model), "--raw", "the capital", "--max-tokens", "5"),
    )


@pytest.mark.parametrize("after_s", [0, 0.01, 0.04, 0.1, 0.3, 0.7])
def test_a_storm(tiny_checkpoint: Path, after_s: float) -> None:
    code, told = interrupted(commands(tiny_checkpoint)[3], after_s)
    assert code in (0, 130) and "Traceback" not in told and "error" not in told
    if after_s < 0.02:
        assert code == 130


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a start of the program for each of 200 moments, and each command
def test_a_storm_every_ten_milliseconds(tiny_checkpoint: Path) -> None:
    """And until the program is done before it."""
    for words in commands(tiny_checkpoint):
        for step in range(200):
            code, told = interrupted(words, step / 100)
            lines = {line.partition(" after ")[0] for line in told.splitlines()}
            assert code in (0, 130) and lines <= {"(interrupted)", "stopped"}, (words, step, told)
            if code == 0:
                break
        assert step, words


def program(tmp_path: Path, before: str, words: Sequence[str] = ("--version",)) -> tuple[int, str]:
    """Run the program after some Python, in which `press()` is Ctrl-C; its code and stderr."""
    code = (
        "import sys, os, signal, gemelo.__main__ as program\n"
        "press = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        f"{textwrap.dedent(before)}\nprogram.main()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment, capture_output=True, timeout=120
    )
    return done.returncode, done.stderr.decode()


def instead(what: str) -> str:
    """Python that lets a command be `what`."""
    return (
        "from gemelo import cli\ndef run(words):\n"
        + textwrap.indent(textwrap.dedent(what), "    ")
        + "\n    return 0\ncli.run = run\n"
    )


def test_while_the_program_is_imported() -> None:
    """It has done nothing yet, and ends there."""
    code = (
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(name, *rest):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder)\n"
        "from gemelo.__main__ import main; main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("caught", ["BaseException", "Exception"])
def test_while_a_command_imports(tmp_path: Path, caught: str) -> None:
    """A module that would have lost it, or made something else of it, is imported whole first."""
    (tmp_path / "careless.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)\n"
        f"except {caught}:\n    print('lost', flush=True)\n"
        "print('whole', file=__import__('sys').stderr)\n"
    )
    command = instead("import careless, time\ntime.sleep(20)\nprint('swallowed')")
    assert program(tmp_path, command) == (130, "whole\n")


def test_in_a_finaliser(tmp_path: Path) -> None:
    """Python would say so on stderr, and go on."""
    command = instead(
        """
        import time
        class Held:
            def __del__(self): press(); time.sleep(0.01)
        held = Held(); del held
        time.sleep(20)
        """
    )
    assert program(tmp_path, command) == (130, "")


def test_again_while_a_finaliser_is_told_of(tmp_path: Path) -> None:
    """Python asks a hook of ours what to do with an exception that nobody can hear."""
    command = instead(
        """
        import time, gemelo.__main__ as program
        begin = program._thread.start_new_thread
        def slow(*words): press(); time.sleep(0.01); return begin(*words)
        program._thread.start_new_thread = slow
        class Held:
            def __del__(self): press(); time.sleep(0.01)
        held = Held(); del held
        time.sleep(20)
        """
    )
    assert program(tmp_path, command) == (130, "")


def test_done_before_it_was_heard(tmp_path: Path) -> None:
    """What was pressed in a command's last import, after which there is nothing to interrupt."""
    (tmp_path / "last.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    for command in (instead("import last"), instead("import last\nreturn 2")):
        assert program(tmp_path, command) == (130, "")


def test_other_exceptions_in_a_finaliser_are_told(tmp_path: Path) -> None:
    command = instead("class Held:\n    def __del__(self): 1 / 0\nheld = Held(); del held")
    code, told = program(tmp_path, command)
    assert code == 0 and "ZeroDivisionError" in told


def test_once_the_work_is_done(tmp_path: Path) -> None:
    """In what Python runs at its end, and in a module's last breath."""
    before = """
        import atexit
        atexit.register(press)
        class Last:
            def __del__(self): press()
        program.last = Last()
        """
    assert program(tmp_path, before) == (0, "")


def test_twice(tmp_path: Path) -> None:
    """The second in the middle of what the first undoes."""
    command = instead("try:\n    press()\nfinally:\n    press()")
    assert program(tmp_path, command) == (130, "")


def test_as_a_module() -> None:
    with start("list", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.communicate(timeout=120)[1] is not None
    assert process.returncode == 0


def test_next_to_nothing_is_imported_before() -> None:
    """By what the program's first line needs; before it Ctrl-C is a traceback of Python's. Without
    `site`, since an editable install finds gemelo by a module of its own."""
    code = (
        "import os, sys; known = set(sys.modules)\n"
        "import gemelo.__main__; print(*sorted(set(sys.modules) - known))"
    )
    folder = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, cwd=folder)
    assert done.stdout.decode().split() == ["__future__", "gemelo", "gemelo.__main__"]
