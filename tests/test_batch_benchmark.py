"""The benchmark of many callers: gaps, ratios, tables, and its client, against a server of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# Answers as llama-server does: the tokens asked for, one fewer for a prompt that begins with 0.
SERVER = """\
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(json.dumps({"status": "ok"}))

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["ignore_eos"] and asked["temperature"] == 0
        count = asked["n_predict"] - (asked["prompt"][0] == 0)
        if not asked.get("stream"):
            assert not asked["cache_prompt"]
            return self.answer(json.dumps({"tokens_predicted": count}))
        events = [{"tokens": [7], "stop": False}] * count + [{"tokens": [], "stop": True}]
        self.answer("".join(f"data: {json.dumps(event)}\\n\\n" for event in events))

    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *words):
        pass

if "--fail" in sys.argv:
    sys.exit("no such model")
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The benchmark's modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import arrivals
    import batch
    import batch_tables
    from peers import llama_server

    return SimpleNamespace(arrivals=arrivals, batch=batch, tables=batch_tables, server=llama_server)


@pytest.fixture
def server(modules: SimpleNamespace, tmp_path: Path) -> Any:
    """How to start a program that answers as the peer does, for so many sessions."""
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{SERVER}")
    program.chmod(0o755)
    return lambda sessions, *settings: modules.server.LlamaServer(
        str(program), tmp_path / "model.gguf", sessions, 512, 2, settings
    )


def test_gaps_are_those_before_and_during_a_late_prompt(modules: SimpleNamespace) -> None:
    times = [[0.0, 1, 2, 3, 7, 12, 13, 33], [0.5, 1.5, 2.5, 6.5, 11.5, 12.5, 13.5]]
    found = modules.arrivals.Arrivals(times, asked_s=3.25, first_s=11.75)
    assert found.median_gap_s == 1 and found.longest_gap_s == 5
    assert found.wait_s == 8.5 and found.steps == 2


def test_a_session_that_ended_before_the_late_prompt_says_nothing(modules: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="did not decode as long"):
        modules.arrivals.Arrivals([[0.0, 1, 2]], asked_s=1.5, first_s=2.5)


def test_a_ratio_is_the_median_of_those_within_rounds(modules: SimpleNamespace) -> None:
    rounds = {"gemelo": [1.0, 4.0, 9.0], "llama.cpp": [1.0, 1.0, 3.0]}
    found = modules.batch.compared(
        {name: [{"x": value} for value in values] for name, values in rounds.items()}, "x"
    )
    assert found["ratio"] == 3 and found["gemelo"]["x"] == 4 and found["llama.cpp"]["x"] == 1


def test_no_round_has_the_prompts_of_another(modules: SimpleNamespace, tmp_path: Path) -> None:
    options = SimpleNamespace(files=tmp_path, engines=["llama.cpp"], rounds=2, threads=2)
    bench, seeds = modules.batch.Bench("270m", options), list[int]()
    for _ in range(2):
        found = bench.rounds({"gemelo": lambda seed: seed, "llama.cpp": lambda seed: seed})
        assert found["gemelo"] == found["llama.cpp"] and len(found["gemelo"]) == 2
        seeds += found["gemelo"]
    assert len(set(seeds)) == 4


def test_the_peer_answers_all_prompts_with_as_many_tokens(server: Any) -> None:
    with server(3) as peer:
        peer.together([[2], [3], [4]], new=5)
        times = peer.stream([2], new=4)
    assert len(times) == 4 and times == sorted(times)


def test_an_answer_of_fewer_tokens_is_a_failure(server: Any, modules: SimpleNamespace) -> None:
    with server(2) as peer:
        for ask in (lambda: peer.together([[2], [0]], 5), lambda: peer.stream([0], 5)):
            with pytest.raises(modules.server.EngineFailure, match="4 tokens, asked for 5"):
                ask()


def test_a_server_that_ends_at_once_says_why(server: Any, modules: SimpleNamespace) -> None:
    with pytest.raises(modules.server.EngineFailure, match="exit 1; no such model"):
        server(1, "--fail")


def test_what_was_not_measured_is_a_dash(modules: SimpleNamespace) -> None:
    run, speed = {"isa": "avx512"}, {"llama.cpp": {"tokens_per_s": 140.0}}
    of = {"270m": {"together": {"run": run, "found": {"8": speed}}}}
    assert "| 270M Q4_K_M | 8 | - | 140 | - | 3x |" in modules.tables.together(of)
