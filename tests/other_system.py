"""A program for test_platforms: gemelo where Python has no more than on Windows or macOS.

    python -m tests.other_system win32 FOLDER MODEL

FOLDER is empty and stays with the caller: removing it takes calls that are gone by then. MODEL is a
small directory of the hub's, which is converted and run.
"""

from __future__ import annotations

import builtins
import ctypes
import ctypes.util
import io
import mmap
import os
import pathlib
import pkgutil
import platform
import signal
import struct
import sys
import sysconfig
import threading
import time
import types
from importlib import import_module
from pathlib import Path
from typing import Any

GONE: dict[str, dict[str, str]] = {
    "win32": {
        "modules": "fcntl termios resource pwd grp tty pty readline syslog spwd",
        "os": """fork forkpty register_at_fork pread preadv pwrite pwritev posix_fadvise uname kill
            posix_fallocate posix_spawn sched_getaffinity sched_setaffinity sched_yield fchmod chown
            fchown lchown getuid geteuid getgid getegid getpgid setsid killpg sysconf mkfifo
            openpty ttyname sync sendfile getloadavg nice O_CLOEXEC O_NONBLOCK O_NOFOLLOW
            O_DIRECTORY POSIX_FADV_RANDOM POSIX_FADV_WILLNEED""",
        "mmap": """MAP_PRIVATE MAP_SHARED MAP_ANON MAP_ANONYMOUS MAP_NORESERVE PROT_READ PROT_WRITE
            MADV_HUGEPAGE MADV_WILLNEED MADV_DONTNEED MADV_RANDOM""",
        "signal": """SIGALRM SIGTSTP SIGHUP SIGQUIT SIGCHLD SIGBUS SIGKILL SIGUSR1 SIGWINCH
            setitimer pthread_kill pthread_sigmask siginterrupt""",
        "time": "clock_gettime tzset",
    },
    "darwin": {
        "modules": "spwd",
        "os": """posix_fadvise posix_fallocate sched_getaffinity sched_setaffinity
            POSIX_FADV_RANDOM POSIX_FADV_WILLNEED""",
        "mmap": "MADV_HUGEPAGE MAP_NORESERVE",
        "signal": "",
        "time": "",
    },
}


def main(system: str, folder: Path, model: Path) -> None:
    names = imported()
    if system != sys.platform:
        imitate(system)
    for name in names:
        import_module(name)
    print(f"modules imported: {len(names)}")
    run(system, folder, model)


def imported() -> list[str]:
    """Every module of gemelo that can be imported here; afterwards only others' are loaded."""
    import gemelo

    names = [one.name for one in pkgutil.walk_packages(gemelo.__path__, "gemelo.")]
    names = [name for name in names if not name.endswith(("__main__", "_native"))]
    found = []
    for name in names:
        try:
            import_module(name)
            found.append(name)
        except ModuleNotFoundError as error:  # an extra that is not installed
            if error.name not in ("torch", "PIL", "av"):
                raise
    platform.machine(), sysconfig.get_config_vars()  # asked of this system, and remembered
    for name in [*sys.modules]:
        if name.partition(".")[0] == "gemelo" and not name.endswith("_native"):
            del sys.modules[name]
    return found


def imitate(system: str) -> None:
    """From here on this process has what `system` has."""
    gone = GONE[system]
    for name in gone["modules"].split():
        sys.modules[name] = None  # type: ignore[assignment]  # importing it fails
    for where in (os, mmap, signal, time):
        for name in gone[where.__name__].split():
            if hasattr(where, name):
                delattr(where, name)
    sys.platform = system
    io.open = builtins.open = without_proc(io.open)
    if system == "win32":
        # pathlib would make paths that only Windows can use.
        for name, module in [*sys.modules.items()]:
            if name.partition(".")[0] == "pathlib" and hasattr(module, "os"):
                module.os = types.SimpleNamespace(**vars(os) | {"name": os.name})  # type: ignore[attr-defined]
        os.name = "nt"
        ctypes.util.find_library = lambda name: None  # this system's looks in a way of its own
        ctypes.CDLL = library  # type: ignore[assignment, misc]


def without_proc(open_: Any) -> Any:
    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(file, str | os.PathLike) and str(file).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return open_(file, *args, **kwargs)

    return opened


def library(name: object, *args: object, **kwargs: object) -> object:
    """ctypes.CDLL of Windows: it has no library of no name, which is the C library elsewhere."""
    if name != "kernel32":
        raise TypeError("argument of type 'NoneType' is not iterable")
    handle = types.FunctionType((lambda: 5).__code__, {})  # takes attributes, as ctypes' do
    return types.SimpleNamespace(GetCurrentProcess=handle, K32GetProcessMemoryInfo=memory_info)


def memory_info(process: ctypes.c_void_p, counters: Any, nbytes: int) -> int:
    """As mingw-w64's headers have it: 72 bytes, of them two numbers of 64 bits from byte 8 on."""
    assert process.value == 5 and nbytes == 72
    counts = struct.pack("<QQ", 30 << 20, 20 << 20)
    ctypes.memmove(ctypes.addressof(counters._obj) + 8, counts, len(counts))
    return 1


# ---- what has no more than that to run on --------------------------------------------------------


def run(system: str, folder: Path, model: Path) -> None:
    files(folder)
    maps(folder)
    memory(system)
    turns()
    paths(folder)
    command_line(folder, model)


def files(folder: Path) -> None:
    from gemelo.checkpoints.written import remember, written
    from gemelo.text_files import read_object
    from gemelo.weights.files import replaced
    from gemelo.weights.folder import replaced_folder

    target = folder / "ñandú.json"
    for text in ('{"a": 1}', '{"a": 2}'):
        with replaced(target) as file:
            file.write(text.encode())
        assert read_object(target) == {"a": int(text[-2])}
    try:
        with replaced(target) as file:
            file.write(b"half")
            raise KeyError
    except KeyError:
        pass
    left = folder / f".{target.name}.0123456789abcdef.part"
    left.write_bytes(b"of a writer that is dead")
    with replaced(target) as file:
        file.write(b'{"a": 3}')
    assert read_object(target) == {"a": 3}
    for number in (1, 2):
        with replaced_folder(folder / "a checkpoint") as new:
            (new / "model.safetensors").write_bytes(bytes([number]))
    assert (folder / "a checkpoint/model.safetensors").read_bytes() == b"\2"
    assert sorted(os.listdir(folder)) == ["a checkpoint", target.name]
    remember(target)
    assert [one.path for one in written()] == [target]


def maps(folder: Path) -> None:
    from gemelo.weights.mapped import check, map_file

    path = folder / "weights.bin"
    path.write_bytes(bytes(range(256)) * 64)
    mapped = map_file(path)
    check([mapped])
    assert mapped[255] == 255 and len(mapped) == 1 << 14
    mapped[0] = 7
    assert path.read_bytes()[0] == 0


def memory(system: str) -> None:
    import numpy as np

    from gemelo.engine.memory import pages, process
    from gemelo.evals import machine
    from gemelo.kernels.repacked import large_pages

    room = large_pages(1 << 20)
    assert not room.any() and room.nbytes == 1 << 20
    room += np.uint8(1)
    pages.ask(room)
    assert pages.release(room) == 0
    if system != "linux":
        assert pages.present_bytes(room) == pages.available_bytes() == 0
    assert room.all() and pages.backing(room) is None
    if system == "win32":
        assert process.peak_rss_bytes() == 30 << 20 and process.process_bytes() == 20 << 20
    else:
        assert process.peak_rss_bytes() > 0
    assert machine.cpu_name() and machine.memory_bandwidth(1 << 20) > 0


def turns() -> None:
    from gemelo.__main__ import CtrlC
    from gemelo.engine.turns import Line, Turns

    assert Turns().once(lambda: 5) == 5
    with Line().lock:
        pass
    ctrl_c = CtrlC()
    ctrl_c.begun = True
    before = signal.signal(signal.SIGINT, ctrl_c.hear)
    try:
        ctrl_c.retry()
        threading.Event().wait(10)
        raise AssertionError("Ctrl-C was not heard again")
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, before)


def paths(folder: Path) -> None:
    from gemelo.cli.paths import media_in, typed_path, typed_paths

    os.chdir(folder)
    names = [r"C:\a b\ñ.png", r"D:\c.wav"]  # which here are names of files like any other
    for name in names:
        Path(name).write_bytes(b"")
    assert typed_path(names[0]) == typed_path(f'"{names[0]}"') == names[0]
    if os.name == "nt":
        assert typed_paths(f'"{names[0]}" {names[1]}') == names
        assert media_in(f'What is in "{names[0]}"?') == [("image", names[0])]
        assert typed_path("file:///C:/a%20b/%C3%B1.png") == "C:/a b/ñ.png"


def command_line(folder: Path, model: Path) -> None:
    from gemelo.cli import run, terminal
    from gemelo.cli.typeahead import kept_typeahead

    with kept_typeahead():
        pass
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(encoding="ascii")  # a code page, and its letters, on Windows
    terminal.prepare()
    small = str(folder / "tiny q8_0.gguf")
    generate = ["generate", "-m", small, "abc", "--max-tokens", "8", "--temperature", "0"]
    for words in (
        ["--version", "-v"],
        ["list"],
        ["convert", str(model), small, "--format", "q8_0"],
        ["convert", str(model), small, "--format", "q8_0", "--force"],
        ["tokenize", "-m", small, "abc"],
        ["show", "model", small],
        [*generate, "--json"],
        ["--version"],
    ):
        assert run(words) == 0, words
    terminal.show("Dvořák\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(pathlib.Path, sys.argv[2:]))
