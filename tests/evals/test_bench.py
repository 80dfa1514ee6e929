"""The benchmark measures what it says: counts, bytes, spreads; not how fast a test machine is."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemelo
from gemelo.engine.timings import Timings
from gemelo.errors import InputError
from gemelo.evals import bench as benchmark
from gemelo.evals import machine
from gemelo.evals.bench import Spread, bench, run, weights_bytes_per_token
from gemelo.kernels import native
from gemelo.weights.gguf import GGUFFile
from tests.conftest import TINY, tiny_model, write_checkpoint

TIMINGS = {
    "load_s",
    "load_to_first_token_s",
    "time_to_first_token_s",
    "prefill_s",
    "decode_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.memory_bandwidth
    monkeypatch.setattr(machine, "memory_bandwidth", lambda: whole(1 << 20))


def test_a_result_is_whole(tiny_checkpoint: Path) -> None:
    steps: list[tuple[int, int]] = []
    result = bench(
        tiny_checkpoint,
        prompt_tokens=20,
        new_tokens=4,
        repeat=2,
        progress=lambda done, total: steps.append((done, total)),
    )
    said = result.to_json()
    assert steps == [(done, 6) for done in range(1, 7)]
    assert set(said["timings"]) == set(said["spread"]) == TIMINGS
    for name, middle in said["timings"].items():
        least, greatest = said["spread"][name]
        assert 0 < least <= middle <= greatest
    assert said["timings"]["load_to_first_token_s"] > said["timings"]["load_s"]
    decode = said["timings"]["decode_tokens_per_s"]
    assert said["achieved_bytes_per_s"] == said["weights_bytes_per_token"] * decode
    assert said["memory_bandwidth_bytes_per_s"] > 0
    assert said["peak_rss_bytes"] > 1 << 20
    assert said["threads"] >= 1 and said["cpu"] and said["format"] == "native"
    assert (said["prompt_tokens"], said["new_tokens"], said["repeat"]) == (20, 4, 2)


@pytest.mark.parametrize("repeat", [1, 5])
def test_the_peak_is_that_of_one_load_and_one_run(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, repeat: int
) -> None:
    """However often both are repeated; and no model is still held when the next is loaded."""
    models: list[weakref.ref[gemelo.Model]] = []
    turns: list[int] = []

    def counted_load(*words: Any, **settings: Any) -> gemelo.Model:
        assert not [one for one in models if one() is not None]
        models.append(weakref.ref(model := gemelo.load(*words, **settings)))
        return model

    def counted_run(model: gemelo.Model, prompt_tokens: int, *rest: int) -> Timings:
        turns.append(prompt_tokens)
        return run(model, prompt_tokens, *rest)

    monkeypatch.setattr(benchmark, "load", counted_load)
    monkeypatch.setattr(benchmark, "run", counted_run)
    monkeypatch.setattr(
        benchmark, "peak_rss_bytes", lambda: 1000 * len(models) + turns.count(20) * 100
    )
    result = bench(tiny_checkpoint, prompt_tokens=20, new_tokens=2, repeat=repeat)
    assert result.peak_rss_bytes == 1100
    assert len(models) == turns.count(20) == repeat + 1


def test_a_run_reads_and_writes_what_it_is_told(tiny_checkpoint: Path) -> None:
    timings = run(gemelo.load(tiny_checkpoint), prompt_tokens=11, new_tokens=5)
    assert (timings.prefill_tokens, timings.reused_tokens) == (11, 0)
    assert timings.decode_tokens == 4  # the first token is prefill's
    assert timings.load_s > 0


def test_a_token_reads_every_weight_of_the_file_once(tiny_checkpoint: Path) -> None:
    file = GGUFFile(tiny_checkpoint)
    sizes = [file.tensor(name).nbytes for name in file.names()]
    assert weights_bytes_per_token(gemelo.load(tiny_checkpoint).engine.decoder) == sum(sizes)


def test_an_untied_table_gives_one_row(tmp_path: Path) -> None:
    config = dataclasses.replace(TINY["blocks-of-32"], tie_word_embeddings=False)
    module = tiny_model(config)
    loaded = gemelo.load(write_checkpoint(tmp_path / "untied", module))
    row = 4 * config.hidden_size
    everything = sum(parameter.nbytes for parameter in module.parameters())
    wanted = everything - config.vocab_size * row + row
    assert weights_bytes_per_token(loaded.engine.decoder) == wanted


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"repeat": 0}, "repeat = 0"),
        ({"prompt_tokens": 0}, "prompt_tokens = 0"),
        ({"new_tokens": 1}, "new_tokens = 1; expected 2"),
        ({"prompt_tokens": 250, "new_tokens": 7}, "257 prompt and new tokens do not fit"),
    ],
)
def test_wrong_counts(tiny_checkpoint: Path, counts: dict[str, int], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        bench(tiny_checkpoint, **counts)


def test_spread() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_memory_is_read_by_the_kernels_or_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = np.arange(1 << 16, dtype=np.int32)
    content = memory.view(np.uint8)
    assert min(machine.read_speeds(content)) > 0
    monkeypatch.setattr(native, "module", None)
    monkeypatch.delattr(native, "extension")  # as where it was not built
    assert min(machine.read_speeds(content)) > 0
    assert np.array_equal(memory, np.arange(1 << 16, dtype=np.int32))
