"""Where the time of `gemelo generate` goes until its first token: half of `start.py`.

The command runs as it is, in this process, with a clock around its parts. A part's time is its own:
what other parts and imports took inside it is theirs. Imports are counted by package, wherever they
happen. The tokenizer is made in a thread beside the weights, so its time is no part of the sum;
what is waited for it is.

    python start_phases.py STARTED WORDS...      # STARTED: time.monotonic() of who started it
"""

from __future__ import annotations

import sys
import time

BEGUN = time.monotonic()  # before anything else is imported

import importlib  # noqa: E402
import json  # noqa: E402
import threading  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS = (  # (module, name in it, what it is called here)
    ("gemelo.checkpoints.load", "open_source", "open the file"),
    ("gemelo.checkpoints.load", "with_companion", "open the file"),
    ("gemelo.checkpoints.load", "tokenizer_of", "tokenizer"),
    ("gemelo.checkpoints.load", "decoder_weights", "weights"),
    ("concurrent.futures", "Future.result", "wait for the tokenizer"),
    ("gemelo.engine.device", "moved_or_waiting", "move to large pages"),
    ("gemelo.engine.device", "NativeDecoder", "program"),
    ("gemelo.engine.step", "prefill", "prompt"),
)
REST = "everything else"


class Clock:
    """Seconds by part and by package, each without what was counted inside it."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.packages: dict[str, float] = defaultdict(float)
        self.beside: dict[str, float] = defaultdict(float)  # of other threads
        self._main = threading.get_ident()
        self._inner = threading.local()

    @contextmanager
    def counting(self, name: str, kind: str = "parts") -> Iterator[None]:
        """Count what happens meanwhile as `name`, among the parts or the packages."""
        stack = self._inner.__dict__.setdefault("stack", [])
        stack.append(0.0)
        started = time.monotonic()
        try:
            yield
        finally:
            took_s, inner_s = time.monotonic() - started, stack.pop()
            if stack:
                stack[-1] += took_s
            here = threading.get_ident() == self._main
            counted = getattr(self, kind) if here else self.beside
            counted[name] += took_s - inner_s

    def wrap(self, module: str, path: str, name: str) -> None:
        """Count calls of a function or class of a module, or of a method."""
        owner: Any = importlib.import_module(module)
        *outer, leaf = path.split(".")
        for word in outer:
            owner = getattr(owner, word)
        inner: Callable[..., Any] = getattr(owner, leaf)

        def counted(*args: Any, **named: Any) -> Any:
            with self.counting(name):
                return inner(*args, **named)

        setattr(owner, leaf, counted)


class Imports:
    """A finder that lets the others find, and counts what finding and running a module takes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        package = package_of(name)
        with self.clock.counting(package, "packages"):
            others = (finder for finder in sys.meta_path if finder is not self)
            found = (finder.find_spec(name, path, target) for finder in others)
            spec = next((one for one in found if one is not None), None)
        loader = None if spec is None else spec.loader
        if loader is not None and not isinstance(loader, type):  # the built-in ones are classes
            run = loader.exec_module

            def counted(module: Any) -> None:
                with self.clock.counting(package, "packages"):
                    run(module)

            loader.exec_module = counted
        return spec


def package_of(module: str) -> str:
    """What a module counts for: its package (of gemelo the folder), or Python's own library."""
    package, _, inside = module.partition(".")
    if package == "gemelo":
        return f"gemelo.{inside.partition('.')[0]}" if inside else package
    return "Python's own library" if package in sys.stdlib_module_names else package


def measured(started: float, words: list[str]) -> dict[str, dict[str, float]]:
    """Run the command; seconds of its parts up to the first text it shows."""
    clock, ends = Clock(), []
    sys.meta_path.insert(0, Imports(clock))  # type: ignore[arg-type]
    with clock.counting(REST):
        from gemelo import cli

        importlib.import_module("gemelo.api")  # as `generate` does when a model is loaded
        for part in PARTS:
            clock.wrap(*part)
        generate = sys.modules["gemelo.cli.generate"]
        show = generate.show  # type: ignore[attr-defined]

        def first_shown(text: str) -> None:
            ends.append(time.monotonic())
            show(text)

        generate.show = first_shown  # type: ignore[attr-defined]
        code = cli.run(words)
    if code or not ends:
        raise SystemExit(code or "no text was shown")
    over = time.monotonic() - ends[0]  # what came after the first text is no part of it
    parts = {"Python itself": BEGUN - started, **clock.parts}
    parts[REST] -= over
    return {"parts": parts, "imports": dict(clock.packages), "beside": dict(clock.beside)}


if __name__ == "__main__":
    found = measured(float(sys.argv[1]), sys.argv[2:])
    print(json.dumps(found), file=sys.stderr)
