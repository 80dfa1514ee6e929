"""Files that are written to, cut short, replaced or removed while they are mapped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemelo.errors import FileFormatError
from gemelo.kernels.quants import FORMATS, Packed, unpack
from gemelo.weights.mapped import Mapped, behind, check, lost, map_file, tensor_in
from tests.native import needs_native

PAGE = os.sysconf("SC_PAGESIZE")
signals = pytest.mark.skipif(
    not sys.platform.startswith(("linux", "darwin")), reason="the system has no such signal"
)


@pytest.fixture
def mapped(tmp_path: Path) -> Mapped:
    path = tmp_path / "weights"
    path.write_bytes(b"\1" * (20 * PAGE))
    return map_file(path)


def test_a_file_as_it_was_is_fine(mapped: Mapped) -> None:
    check([mapped])
    assert len(mapped) == 20 * PAGE and lost() == []


def test_written_over(mapped: Mapped) -> None:
    with open(mapped.path, "r+b") as file:
        file.seek(PAGE)
        file.write(b"\2")
    os.utime(mapped.path, ns=(0, mapped.identity.written + 1_000_000_000))
    with pytest.raises(FileFormatError, match=r"weights was written to while it was in use"):
        check([mapped])


def test_another_file_of_its_name_is_no_trouble(mapped: Mapped, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\2")
    other.replace(mapped.path)
    check([mapped])
    assert mapped[-1] == 1
    os.unlink(mapped.path)
    check([mapped])
    assert mapped[-1] == 1


def test_what_lies_in_a_map(mapped: Mapped) -> None:
    inside = tensor_in(mapped, 3 * PAGE, 24, FORMATS["f32"], (2, 3))
    outside = Packed.of(np.zeros(3, np.float32))
    assert behind([outside, inside]) == [mapped]
    assert behind([outside]) == []


@pytest.mark.parametrize(
    ("shape", "matrix"), [((2, 3), (2, 3)), ((6,), (1, 6)), ((1, 2, 3), (2, 3)), ((), (1, 1))]
)
def test_a_tensor_of_any_shape_is_a_view(
    mapped: Mapped, shape: tuple[int, ...], matrix: tuple[int, int]
) -> None:
    weight = tensor_in(mapped, 5, 4 * matrix[0] * matrix[1], FORMATS["f32"], shape)
    assert weight.shape == shape and (weight.rows, weight.columns) == matrix
    assert weight.address == mapped.address + 5
    assert (unpack(weight) == np.full(4, 1, np.uint8).view(np.float32)).all()


@needs_native
@signals
def test_cut_short(mapped: Mapped) -> None:
    """What is gone reads as zeros, which is remembered until the map is given up."""
    data = np.frombuffer(mapped, np.uint8)
    os.truncate(mapped.path, 12 * PAGE + 5)
    with pytest.raises(FileFormatError, match=rf"cut short while .* to {12 * PAGE + 5} bytes"):
        check([mapped])
    assert int(data[: 12 * PAGE].sum()) == 12 * PAGE and lost() == []
    for touched in (15, 17, 14):  # a later touch may be of an earlier page
        assert int(data[touched * PAGE + 7]) == 0
        begin = mapped.address + min(touched, 15) * PAGE
        assert lost() == [(begin, mapped.address + 20 * PAGE)]
    assert int(data.sum()) == 12 * PAGE + 5  # the end of a file's last page is zeros anyway
    del data, mapped


@needs_native
@signals
def test_nothing_is_remembered_of_a_map_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"\1" * (4 * PAGE))
    source = map_file(path)
    os.truncate(path, 0)
    assert source[2 * PAGE] == 0 and len(lost()) == 1
    del source
    assert lost() == []


@needs_native
@signals
def test_other_maps_end_a_process_as_ever(tmp_path: Path) -> None:
    """And so does the signal, sent by somebody."""
    path = tmp_path / "theirs"
    path.write_bytes(b"\1" * (4 * PAGE))
    touch = (
        "import mmap, os; from gemelo.weights.mapped import map_file; from pathlib import Path\n"
        f"ours = map_file(Path({str(path)!r})); file = open({str(path)!r}, 'rb')\n"
        "theirs = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        f"os.truncate({str(path)!r}, 0); print(ours[-1], flush=True); {{}}\n"
    )
    for last in ("theirs[-1]", "os.kill(os.getpid(), 7)"):
        path.write_bytes(b"\1" * (4 * PAGE))
        done = subprocess.run([sys.executable, "-c", touch.format(last)], capture_output=True)
        assert done.stdout.split() == [b"0"]
        assert done.returncode == -7, done.stderr


# ---- others who want the signal ------------------------------------------------------------------

OPENING = (
    "import faulthandler, mmap, os, signal, sys; from pathlib import Path\n"
    "from gemelo.weights.mapped import check, lost, map_file\n"
    "path = Path(sys.argv[1]); page = mmap.PAGESIZE\n"
    "def begin():\n"
    "    path.write_bytes(b'1' * (4 * page)); return map_file(path)\n"
    "def cut(ours):\n"
    "    os.truncate(path, 0); return ours[2 * page]\n"
)
BY_HAND = (  # what a crash reporter in C does: note it, and go on
    "import ctypes\n"
    "Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)\n"
    "heard = []; theirs = Handler(lambda number: heard.append(number))\n"
    "install = lambda: ctypes.CDLL(None).signal(7, theirs)\n"
)


def process(tmp_path: Path, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", OPENING + code, str(tmp_path / "file")]
    env = os.environ | environment
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)


@needs_native
@signals
@pytest.mark.parametrize("enabled", ["before", "after", "twice"])
def test_faulthandler_leaves_us_the_signal(tmp_path: Path, enabled: str) -> None:
    """From the next piece of work on; what is not ours it still tells, and ends the process."""
    before = "faulthandler.enable()\n" if enabled != "after" else ""
    after = "faulthandler.enable()\n" if enabled != "before" else ""
    done = process(
        tmp_path,
        f"{before}ours = begin()\n{after}check([ours]); print(cut(ours), len(lost()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGBUS)\n",
    )
    assert done.stdout.split() == ["0", "1"], done.stderr
    assert done.returncode == -7 and "Fatal Python error: Bus error" in done.stderr


@needs_native
@signals
@pytest.mark.parametrize("first", ["install(); ours = begin()", "ours = begin(); install()"])
def test_a_signal_that_others_survive_does_not_end_our_hearing(tmp_path: Path, first: str) -> None:
    """They get what is theirs, as often as it comes, and we get ours after it."""
    done = process(
        tmp_path,
        f"{BY_HAND}{first}; check([ours])\n"
        "for _ in range(3): os.kill(os.getpid(), 7)\n"
        "print(len(heard), cut(ours), len(lost()))\n",
    )
    assert done.stdout.split() == ["3", "0", "1"], done.stderr


@needs_native
@signals
@pytest.mark.parametrize("word", ["SIG_IGN", "lambda *_: None"])
def test_signals_that_python_ignores_or_hears(tmp_path: Path, word: str) -> None:
    word = f"signal.{word}" if word.startswith("SIG") else word
    done = process(
        tmp_path,
        f"signal.signal(signal.SIGBUS, {word}); ours = begin()\n"
        "for _ in range(3): os.kill(os.getpid(), 7)\n"
        "print(cut(ours), len(lost()))\n",
    )
    assert done.stdout.split() == ["0", "1"], done.stderr


@needs_native
@signals
def test_every_map_is_watched(tmp_path: Path) -> None:
    """Thousands of them, and in the places of those that are gone new ones."""
    done = process(
        tmp_path,
        "many = [begin() for _ in range(2400)]; del many[::2]\n"
        "many += [begin() for _ in range(9)]\n"
        "print(cut(many[1100]), many[-1][0], many[3][page], len(lost()))\n"
        "del many; print(len(lost()))\n",
    )
    assert done.stdout.split() == ["0", "0", "0", "3", "0"], done.stderr


@needs_native
@signals
def test_an_interrupt_does_not_leave_a_map_behind(tmp_path: Path) -> None:
    """Ctrl-C while a map is given up: no code of ours runs in which it could be raised."""
    done = process(
        tmp_path,
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "maps = [begin() for _ in range(50)]; os.truncate(path, 0)\n"
        "for ours in maps: ours[page]\n"
        "assert len(lost()) == 50; del ours\n"
        "sys.setprofile(interrupt)\n"
        "try: maps.clear()\n"
        "except KeyboardInterrupt: maps.clear()\n"
        "sys.setprofile(None); print(len(lost()))\n",
    )
    assert done.stdout.split() == ["0"] and done.stderr == "", done.stderr


# ---- hosts that own their handlers ---------------------------------------------------------------

CAUGHT = (  # whether somebody has a handler for SIGBUS, by the system's word
    "def caught():\n"
    "    words = dict(line.split(':') for line in open('/proc/self/status'))\n"
    "    return int(words['SigCgt'], 16) >> 6 & 1\n"
)


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which signals are caught")
@pytest.mark.parametrize(("asked", "ours"), [("on", "1"), ("off", "0")])
def test_the_environment_may_keep_the_signal(tmp_path: Path, asked: str, ours: str) -> None:
    code = f"{CAUGHT}ours = begin(); check([ours]); print(caught(), len(lost()))\n"
    done = process(tmp_path, code, GEMELO_SIGBUS=asked)
    assert done.stdout.split() == [ours, "0"], done.stderr


@needs_native
def test_without_us_a_file_that_is_cut_short_ends_the_process(tmp_path: Path) -> None:
    done = process(tmp_path, "print(1, flush=True); cut(begin()); print(2)\n", GEMELO_SIGBUS="off")
    assert done.stdout.split() == ["1"] and done.returncode == -7, done.stderr


def test_another_word_for_the_signal_is_refused(tmp_path: Path) -> None:
    done = process(tmp_path, "", GEMELO_SIGBUS="0")
    assert "InputError: GEMELO_SIGBUS=0; expected on or off" in done.stderr
