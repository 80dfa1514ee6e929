"""The program `gemelo`, and `python -m gemelo`: Ctrl-C is heard first, then the rest is loaded.

Python would raise KeyboardInterrupt wherever it happens to be. Most of a start is imports, where
that is lost or comes out as another error (NumPy's C code makes an AttributeError of it), or is a
traceback. So until a command begins Ctrl-C ends the process at once, which has done nothing yet;
later it waits while a module is imported, or when it was raised where nobody can hear it (in a
finaliser); and once the work is done it changes nothing. A program that was interrupted leaves
with 130, also one that was done before it could be heard.

This module and the package around it import next to nothing: before them, Python's own start, is
the only time that is out of reach.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself loads enum and more
import _thread
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
_RETRY_S = 0.01


class CtrlC:
    """What becomes of Ctrl-C: `begun` when a command is, `over` when it is done."""

    def __init__(self) -> None:
        self.begun = self.over = self.waits = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler: raise KeyboardInterrupt, now or as soon as that is safe."""
        if self.over:
            return
        if not self.begun:
            os._exit(INTERRUPTED)
        if deaf(frame):
            return self.retry()
        self.waits = False
        raise KeyboardInterrupt

    def retry(self) -> None:
        """Be heard again in a moment."""
        if not self.waits:
            self.waits = True
            _thread.start_new_thread(self._wait, (_thread.get_ident(),))

    def _wait(self, thread: int) -> None:
        time.sleep(_RETRY_S)
        while deaf(sys._current_frames().get(thread)):
            time.sleep(_RETRY_S)
        if self.waits:  # else Ctrl-C was pressed again, and that was heard
            if sys.platform == "win32":
                _thread.interrupt_main()
            else:
                _signal.pthread_kill(thread, _signal.SIGINT)  # so that no system call sleeps on

    def unraisable(self, args: sys.UnraisableHookArgs) -> None:
        """Python's hook for exceptions that have nobody to go to."""
        if args.exc_type is KeyboardInterrupt:
            self.retry()
        else:
            sys.__unraisablehook__(args)


def deaf(frame: FrameType | None) -> bool:
    """Whether what runs, down to `frame`, would lose an exception: code of a module that `main` has
    asked for, or the hook for exceptions that were lost."""
    while frame is not None and frame.f_code is not main.__code__:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or code is CtrlC.unraisable.__code__:
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Run the command line's words, leave with their exit code."""
    ctrl_c, code = CtrlC(), INTERRUPTED
    _signal.signal(_signal.SIGINT, ctrl_c.hear)
    sys.unraisablehook = ctrl_c.unraisable
    from gemelo import cli

    try:
        ctrl_c.begun = True
        cli.terminal.prepare()
        code = cli.run(sys.argv[1:])
        ctrl_c.over = True
        if ctrl_c.waits:
            code = INTERRUPTED
    except KeyboardInterrupt:
        ctrl_c.over = True
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # what Python does at its end is not ours
    sys.exit(code)


if __name__ == "__main__":
    main()
