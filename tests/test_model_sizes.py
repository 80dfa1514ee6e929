"""docs/models.md: sizes that a script computes, held against files of the hub and measured runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gemelo.checkpoints.locate import demo
from gemelo.config import Gemma3Config, read_config
from gemelo.config.cost import num_parameters
from gemelo.config.parameters import parameter_shapes
from tests.published import SIZES, published
from tests.published_files import E2B, E4B

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "dev" / "model_sizes.py"
# Bytes as the hub shows them: Q4_K_M, Q8_0, BF16 or F16; None where no page was seen.
ON_THE_HUB = {
    "Gemma 3 1B": (806e6, 1.07e9, 2.01e9),
    "Gemma 3 4B": (2.49e9, 4.13e9, 7.77e9),
    "Gemma 3 27B": (16.5e9, 28.7e9, 54e9),
    "Gemma 3n E2B": (3.03e9, None, None),
    "Gemma 3n E4B": (4.54e9, None, None),
}


@pytest.fixture(scope="module")
def sizes() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("model_sizes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_sizes"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_says() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shapes_are_the_published_ones(sizes: ModuleType) -> None:
    for size in SIZES:
        known = Gemma3Config.from_hf(published(size))
        ours = sizes.CONFIGS[f"Gemma 3 {size}"]
        assert parameter_shapes(ours) == parameter_shapes(known)
        for context in (4096, 32768):
            cache = sizes.kv_bytes(known, context, 512, 2)
            assert sizes.kv_bytes(ours, context, 512, 2) == cache

    for size, raw in (("E2B", E2B), ("E4B", E4B)):
        ours = sizes.CONFIGS[f"Gemma 3n {size}"]
        assert parameter_shapes(ours) == parameter_shapes(read_config(raw))


def test_every_parameter_is_in_a_matrix_or_a_norm(sizes: ModuleType) -> None:
    for config in sizes.CONFIGS.values():
        counted = sum(one.elements for one in sizes.matrices(config) if not one.is_dead)
        assert counted == pytest.approx(sum(num_parameters(config).values()), rel=3e-4)


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_downloads_are_those_of_the_hub(sizes: ModuleType, name: str) -> None:
    for mixture, known in zip(("q4_k_m", "q8_0", "bf16"), ON_THE_HUB[name], strict=True):
        if known is not None:
            found = sizes.download_bytes(sizes.CONFIGS[name], mixture)
            assert found == pytest.approx(known, rel=0.006), mixture


def test_the_embedded_model_is_as_large_as_computed(sizes: ModuleType) -> None:
    found = sizes.download_bytes(sizes.CONFIGS["Gemma 3 270M"], "q4_k_m")
    assert found == pytest.approx(demo().stat().st_size, rel=0.002)


def test_memory_is_what_the_benchmarks_measured(sizes: ModuleType) -> None:
    """A process that held 4,096 tokens at most; files of 4 bits, nearly Q4_K_M."""
    found = json.loads((ROOT / "benchmarks" / "results" / "cpu_peers.json").read_text())
    for name, file in sizes._MEASURED.items():
        run = sizes.best(found["runs"], file, "peak_rss_bytes")
        measured = run["files"][file]["medians"]["gemelo"]["peak_rss_bytes"]
        computed = sizes.resident_bytes(sizes.CONFIGS[name], "q4_k_m", 4096)
        assert computed == pytest.approx(measured, rel=0.08), name
