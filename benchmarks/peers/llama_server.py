"""llama.cpp's own server: a process that answers many prompts at once, and a small client of it.

It decodes the sequences of all its slots in one `llama_decode` a step. Prompts go to it as token
ids, one connection and one thread each; a thread that waits costs nothing, so the client takes
nearly no time from the two cores that the server computes on. Answers are greedy and of exactly as
many tokens as were asked for. The Python binding has a server too, which answers one at a time.

    with LlamaServer(program, file, sessions=8, context=512, threads=2) as server:
        server.together(prompts, new=64)
        server.stream(prompt, new=16)           # the clock's time at each token
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from arrivals import Arrivals
from peers.engines import PACKAGES, tile_flags
from peers.process import PATIENCE_S, EngineFailure, last_complaint

VARIABLE = "GEMELO_BENCH_LLAMA_SERVER"
HOST = "127.0.0.1"
NO_REUSE = ("--cache-ram", "0", "--ctx-checkpoints", "0")  # which would only cost it time
SETTINGS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
}


class LlamaServer:
    """A running server with a model. A context manager; closing is killing."""

    def __init__(
        self,
        program: str,
        file: Path,
        sessions: int,
        context: int,
        threads: int,
        settings: Sequence[str] = (),
    ) -> None:
        """context: the most tokens of one session. Returns when the model is loaded."""
        self._port, self._complaints = free_port(), tempfile.TemporaryFile()
        self._clients = ThreadPoolExecutor(sessions)
        self.command = [program, "-m", str(file), "-np", str(sessions)]
        self.command += ["-c", str(sessions * context), "-t", str(threads), "-tb", str(threads)]
        self.command += settings
        places = ["--host", HOST, "--port", str(self._port), "--no-ui"]
        try:
            self._child = subprocess.Popen(
                [*self.command, *places], stdout=subprocess.DEVNULL, stderr=self._complaints
            )
        except OSError as error:
            self._complaints.close()
            raise EngineFailure(f"failed: {program}: {error.strerror}") from None
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        """Until it is ready; EngineFailure if it ends or takes too long."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self._child.poll() is not None:
                raise EngineFailure(
                    f"failed: exit {self._child.returncode}; {last_complaint(self._complaints)}"
                )
            try:
                with self._ask("GET", "/health") as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            time.sleep(0.05)
        raise EngineFailure(f"failed: not ready in {PATIENCE_S:.0f} s")

    def together(self, prompts: Sequence[Sequence[int]], new: int) -> None:
        """Add exactly `new` tokens to every prompt, all asked at once; nothing is reused. Returns
        when all have their answer, each of one piece."""
        for found in self._clients.map(lambda ids: self._answer(ids, new), prompts):
            if found["tokens_predicted"] != new:
                raise EngineFailure(f"failed: {found['tokens_predicted']} tokens, asked for {new}")

    def _answer(self, ids: Sequence[int], new: int) -> dict[str, Any]:
        body = completion(ids, new) | {"cache_prompt": False}
        with self._ask("POST", "/completion", body) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        if answer.status != 200:
            raise EngineFailure(f"failed: {found.get('error', found)}")
        return found

    def stream(
        self, ids: Sequence[int], new: int, times: list[float] | None = None, reuse: bool = True
    ) -> list[float]:
        """The clock's time (`time.perf_counter`) at which each of `new` tokens came, appended to
        `times` as they come. reuse lets it go on from what an earlier request left."""
        times = [] if times is None else times
        body = completion(ids, new) | {"stream": True, "cache_prompt": reuse}
        with self._ask("POST", "/completion", body) as answer:
            for event in events(answer):
                if "tokens" not in event:
                    raise EngineFailure(f"failed: {event.get('error', event)}")
                times += [time.perf_counter()] * len(event["tokens"])
        if len(times) != new:
            raise EngineFailure(f"failed: {len(times)} tokens, asked for {new}")
        return times

    def arrivals(
        self, prompts: Sequence[Sequence[int]], new: int, late: Sequence[int], after: int
    ) -> Arrivals:
        """Sessions that decode, and a late prompt that comes when each has `after` tokens."""
        every: list[list[float]] = [[] for _ in prompts]
        running = [
            self._clients.submit(self.stream, ids, new, times, False)
            for ids, times in zip(prompts, every, strict=True)
        ]
        while min(map(len, every)) < after:
            for done in (one for one in running if one.done()):
                done.result()
            time.sleep(0.002)
        asked_s = time.perf_counter()
        first_s = self.stream(late, 1, reuse=False)[0]
        for one in running:
            one.result()
        return Arrivals(every, asked_s, first_s)

    def _ask(self, method: str, path: str, body: object = None) -> http.client.HTTPResponse:
        """A request on a connection of its own, which ends with the answer."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=PATIENCE_S)
        text = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request(method, path, text, headers)
        return connection.getresponse()

    def close(self) -> None:
        """End the process at once."""
        self._child.kill()
        self._child.wait()
        self._clients.shutdown()
        self._complaints.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def completion(ids: Sequence[int], new: int) -> dict[str, object]:
    """A greedy request for exactly `new` tokens."""
    return {"prompt": list(ids), "n_predict": new, "ignore_eos": True, "temperature": 0.0}


def events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The server-sent events of a streamed answer, each when it comes."""
    while line := answer.readline():
        kind, _, text = line.decode().partition(": ")
        if kind == "data":
            yield json.loads(text)
        elif kind.strip():
            yield {"error": line.decode().strip()}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def version(program: str) -> str:
    """What the program says that it is."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    lines = [line for line in (done.stderr + done.stdout).splitlines() if "version" in line]
    return lines[0].strip() if lines else "llama.cpp"


def build_server(folder: Path) -> str:
    """Compile llama-server from the sources in its Python package, and return the program.

    Minutes, for this very processor; CMake and scikit-build-core are installed into an environment
    in the folder. Raises `EngineFailure`.
    """
    name = next(package for package in PACKAGES["llama"] if "==" in package)
    python, made = folder / "bin" / "python", folder / "build"
    run([sys.executable, "-m", "venv", str(folder)])
    run([str(python), "-m", "pip", "install", "scikit-build-core", "cmake", "ninja"])
    download = ["download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    run([str(python), "-m", "pip", *download, name, "--dest", str(folder)])
    with tarfile.open(next(folder.glob("llama_cpp_python-*.tar.gz"))) as packed:
        packed.extractall(folder, filter="data")
    sources = next(folder.glob("llama_cpp_python-*/vendor/llama.cpp"))
    settings = [f"-D{key}={value}" for key, value in SETTINGS.items()]
    settings.append(f"-DCMAKE_CXX_FLAGS={tile_flags(folder)}")
    run([str(folder / "bin" / "cmake"), "-S", str(sources), "-B", str(made), "-G", "Ninja",
         *settings])  # fmt: skip
    run([str(folder / "bin" / "cmake"), "--build", str(made), "--target", "llama-server"])
    return str(made / "bin" / "llama-server")


def run(command: list[str]) -> None:
    """One step of building, with the environment's own programs first."""
    path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
    done = subprocess.run(command, env=os.environ | {"PATH": path}, stdout=sys.stderr)
    if done.returncode:
        raise EngineFailure(f"{shlex.join(command)} failed")
