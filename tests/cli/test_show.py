"""`show model` and `show sizes`: rows that fold, tables that fit, and what programs read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from gemelo.checkpoints.load import load_checkpoint
from gemelo.cli import elastic
from gemelo.cli.model_tables import alike, layer_lines, runs, shape_lines, size_lines
from gemelo.config import Gemma3nConfig, Submodel
from gemelo.inspection.sizes import sizes
from gemelo.inspection.summary import summarise
from gemelo.inspection.weights import held
from tests.cli.conftest import Command
from tests.gemma3n import noise, rewritten, write_3n
from tests.hollow import hollow

NARROW = Gemma3nConfig(  # E4B's layers and widths, and little else
    vocab_size=64,
    vocab_size_per_layer_input=64,
    hidden_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    hidden_size_per_layer_input=32,
    laurel_rank=32,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_3n(tmp_path_factory.mktemp("show") / "tiny-3n")


def test_a_gemma3(gemelo: Command, tiny_checkpoint: Path) -> None:
    summary = summarise(load_checkpoint(tiny_checkpoint))
    said = json.loads(gemelo("show", "model", "--json").out)
    assert said == json.loads(json.dumps(summary.to_json()))
    shown = gemelo("show", "model").out
    assert f"decoder: {summary.parameters:,} parameters" in shown
    assert "sliding 8" in shown and "full" in shown and "q8_0" in shown
    for absent in ("keys and", "sparsity", "Sparsity", "per-layer", "128 x 96", "prompt"):
        assert absent not in shown
    shapes = gemelo("show", "model", "--shapes").out
    assert "128 x 96" in shapes and "gate_proj, up_proj" in shapes and "k_proj, v_proj" in shapes


def test_a_gemma3n(gemelo: Command, model: Path) -> None:
    shown = gemelo("show", "model", "-m", str(model)).out
    rows = [line.split("  ") for line in shown.splitlines()]
    assert [row[0] for row in rows[4:10]] == ["0-3", "4", "5-6", "7-8, 10-11", "9", ""]
    assert "layer 6" in shown and "layer 4" in shown and "95 %" in shown and "75 %" in shown
    assert "Sparsity is the share of a feed-forward's neurons" in shown
    assert "stay in the file: a token reads one row of 1.5 KiB" in shown
    assert "half, a sub-model of it (MatFormer), keeps" in shown
    assert "token of a prompt go through the first 7 layers alone" in " ".join(shown.split())
    assert "Of the file" not in shown


def test_encoders_are_called_as_on_the_pages(gemelo: Command, awake_directory: Path) -> None:
    shown = gemelo("show", "model", "-m", str(awake_directory)).out
    assert "\nvision tower: " in shown and "\naudio encoder: " in shown
    assert "\naudio encoder, its projector: " in shown and "audio_tower" not in shown


def test_a_sub_model(gemelo: Command, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text('name = "small"\nffn_widths = 64\nskipped_layers = [8, 9]\n')
    shown = gemelo("show", "model", "-m", str(model), "--submodel", str(path)).out
    assert "64 of 96" in shown and "small skips layers 8-9 of the whole" in shown
    assert "core (10 layers" in shown
    said = json.loads(
        gemelo("show", "model", "-m", str(model), "--submodel", str(path), "--json").out
    )
    assert said["submodel"] == "small" and len(said["layers"]) == 10
    ran = gemelo("show", "model", "--submodel", "half")
    assert ran.code == 2


def test_what_is_usual_in_files_is_said_here_and_with_verbose(
    gemelo: Command, model: Path, tmp_path: Path
) -> None:
    folder = rewritten(write_3n(tmp_path / "dead"), noise())
    words = ("generate", "-m", str(folder), "the", "--max-tokens", "1")
    assert "keys and values" not in gemelo(*words).err
    assert "note: layers 7 to 11 attend over keys" in gemelo(*words, "--verbose").err
    shown = gemelo("show", "model", "-m", str(folder))
    assert "Of the file: layers 7 to 11 attend over" in shown.out and shown.err == ""


def test_sizes(gemelo: Command, model: Path) -> None:
    said = json.loads(gemelo("show", "sizes", "-m", str(model), "--json").out)
    wanted = [one.to_json() for one in sizes(*_held(model))]
    assert said["sizes"] == wanted and [one["name"] for one in wanted] == ["whole", "half"]
    shown = gemelo("show", "sizes", "-m", str(model)).out
    assert "96 x 12" in shown and "32 x 12" in shown and "-block" not in shown
    assert "All of them lie in the one model (MatFormer)" in shown


def test_a_gemma3_has_no_sizes(gemelo: Command) -> None:
    ran = gemelo("show", "sizes")
    assert (ran.code, ran.out) == (0, "gemma3_text has no sub-models; Gemma 3n has\n")
    assert json.loads(gemelo("show", "sizes", "--json").out)["sizes"] == []


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_published_sizes_fit(width: int) -> None:
    found = sizes(NARROW, held(hollow(NARROW)))
    lines = size_lines(found, width, active="E2B")
    assert max(map(len, lines)) <= width
    told = " ".join(" ".join(lines).split())
    assert "E2B * " in told and "blocks of five" in told and "E3.79B-block" in told
    assert ("8192 x 29, 16384 x 6" in told) == (width >= 80)


@pytest.mark.parametrize("width", [40, 80, 100])
def test_layers_fit(model: Path, width: int) -> None:
    config = dataclasses.replace(NARROW, hidden_size=64)
    checkpoint = dataclasses.replace(load_checkpoint(model), config=config, weights=hollow(config))
    for part in (None, *(Submodel.named(name, config) for name in ("E2.54B", "E3.18B", "E2B"))):
        summary = summarise(checkpoint, part)
        for lines in (layer_lines(summary, width), shape_lines(summary, width)):
            assert max(map(len, lines)) <= width
        folded = [index for layers in alike(summary.layers) for index in layers]
        assert sorted(x.index for x in folded) == list(range(len(summary.layers)))


def test_runs_of_layers() -> None:
    assert runs([0, 1, 2, 3, 5, 6, 8]) == "0-3, 5-6, 8" and runs([4]) == "4"


def test_the_table_of_a_loaded_model(model: Path) -> None:
    from gemelo.api import load

    loaded = load(model)
    lines = elastic.sizes(loaded, loaded.session().active, 80)
    assert any(line.startswith("whole *") for line in lines)
    assert not elastic.sizes(load("demo"), None, 80)


def _held(model: Path) -> tuple[Gemma3nConfig, dict[str, object]]:
    checkpoint = load_checkpoint(model)
    return checkpoint.config, held(checkpoint.weights)  # type: ignore[return-value]
