"""Sub-models by name, by file, by hand; their sums against the published ones; what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gemelo.config import Gemma3nConfig, Submodel, num_parameters, read_config
from gemelo.config.submodel import names, names_in
from gemelo.errors import FileFormatError, GemeloError, InputError

E4B = Gemma3nConfig()
DEAD_KEYS = 2_097_408  # k_proj, v_proj and k_norm that files hold for a layer that borrows


def effective(config: Gemma3nConfig) -> int:
    """Parameters that need fast memory, as published: the maps of borrowing layers count too."""
    return num_parameters(config)["layers"] + DEAD_KEYS * config.num_kv_shared_layers


def test_whole_model_sums() -> None:
    assert sum(num_parameters(E4B).values()) == 6_835_235_568
    e2b = Submodel.named("E2B", E4B).config(E4B)
    assert sum(num_parameters(e2b).values()) == 4_435_182_688
    assert num_parameters(e2b)["per_layer_embedding"] == 2_013_265_920
    assert effective(E4B) == 3_980_491_248
    assert effective(e2b) == 1_905_495_648


@pytest.mark.parametrize(
    ("name", "layers", "billions"),
    [
        ("E4B", 35, 3.980),
        ("E2B", 30, 1.905),
        ("E1.96B-layer", 30, 1.956),
        ("E2.54B-layer", 35, 2.521),
        ("E2.69B-layer", 35, 2.672),
        ("E2.98B-layer", 35, 2.974),
        ("E3.18B-layer", 35, 3.175),
        ("E3.39B-layer", 35, 3.377),
        ("E3.59B-layer", 35, 3.578),
        ("E3.79B-layer", 35, 3.779),
        ("E2.49B-block", 35, 2.471),
        ("E2.73B-block", 35, 2.722),
        ("E2.98B-block", 35, 2.974),
        ("E3.24B-block", 35, 3.226),
        ("E3.49B-block", 35, 3.477),
        ("E3.79B-block", 35, 3.729),
    ],
)
def test_published_table(name: str, layers: int, billions: float) -> None:
    submodel = Submodel.named(name, E4B)
    config = submodel.config(E4B)
    assert config.num_hidden_layers == layers
    assert round(effective(config) / 1e9, 3) == pytest.approx(billions, abs=1.1e-3)
    assert submodel.owns_all_keys(E4B)
    assert len(config.kv_layers) == 20
    assert read_config(config.to_hf()) == config


def test_the_table_is_whole() -> None:
    assert len(names()) == 16


def test_e2b_is_its_own_published_config() -> None:
    e2b = Submodel.named("e2b", E4B).config(E4B)
    assert e2b == Gemma3nConfig(
        num_hidden_layers=30, num_kv_shared_layers=10, intermediate_size=(8192,) * 30
    )


def test_names_may_be_cut_short_but_not_ambiguous() -> None:
    assert Submodel.named("E2.54", E4B).name == "E2.54B-layer"
    with pytest.raises(InputError, match="ambiguous: E2.98B-layer, E2.98B-block; "):
        Submodel.named("E2.98B", E4B)
    with pytest.raises(InputError, match="'E9B' is unknown; closest: E4B, E2B, ") as error:
        Submodel.named("E9B", E4B)
    assert "`gemelo show sizes` lists" in str(error.value) and len(str(error.value)) < 200
    with pytest.raises(InputError, match="ambiguous: E4B, E2B, E1.96B-layer, ...;"):
        Submodel.named("E", E4B)
    with pytest.raises(InputError, match="closest: E2.54B-layer, "):
        Submodel.named("2.54-layer", E4B)
    with pytest.raises(InputError) as long:
        Submodel.named("x" * 100_000, E4B)
    assert len(str(long.value)) < 250


def test_a_name_needs_the_layers_it_was_made_for() -> None:
    small = Gemma3nConfig(num_hidden_layers=10, num_kv_shared_layers=4)
    with pytest.raises(InputError, match="cut from 35 layers and this model has 10"):
        Submodel.named("E2B", small)


MIX = Submodel.named("E2.98B-block", E4B).config(E4B)  # layers 10 to 24 are wide
E2B = Submodel.named("E2B", E4B).config(E4B)
TINY = dataclasses.replace(E4B, intermediate_size=(96,) * 35)
DEEPER = Gemma3nConfig(num_hidden_layers=40, num_kv_shared_layers=15)
OTHER = dataclasses.replace(E4B, num_kv_shared_layers=10)


@pytest.mark.parametrize("name", names())
def test_a_published_name_means_one_model_whatever_it_is_cut_from(name: str) -> None:
    """From a mix it is that very model, or nothing."""
    try:
        part = Submodel.named(name, MIX)
    except InputError as error:
        assert "E4B" in str(error) and "16384 neurons in layer" in str(error)
        assert name not in names_in(MIX)
    else:
        assert part.config(MIX) == Submodel.named(name, E4B).config(E4B)
        assert part.name == name and name in names_in(MIX)


def test_what_a_mix_still_holds() -> None:
    held = ["E2B", "E2.49B-block", "E2.73B-block", "E2.98B-block"]
    assert names_in(MIX) == held
    assert Submodel.named("E2B", MIX).ffn_widths == (8192,) * 30
    with pytest.raises(
        InputError, match="'E4B' is cut from E4B, with 16384 neurons in layer 0, of"
    ):
        Submodel.named("E4B", MIX)


@pytest.mark.parametrize(
    ("config", "name"),
    [(E4B, "E4B"), (E2B, "E2B"), (MIX, "E2.98B-block"), (TINY, "whole"), (OTHER, "whole")],
)
def test_a_whole_has_the_name_that_its_layers_and_widths_have(
    config: Gemma3nConfig, name: str
) -> None:
    assert Submodel.whole(config).name == name == Submodel.named("whole", config).name
    assert [part.name for part in Submodel.by_size(config)][-1] == name
    half = Submodel.named("half", config)
    assert half.name == ("half" if name == "whole" else f"half of {name}")
    assert half.ffn_widths == tuple(width // 64 * 32 for width in config.ffn_widths)


@pytest.mark.parametrize("config", [TINY, DEEPER, OTHER, E2B])
def test_other_models_have_no_published_parts(config: Gemma3nConfig) -> None:
    assert names_in(config) == (["E2B"] if config == E2B else [])
    with pytest.raises(InputError, match="is cut from .*E4B"):
        Submodel.named("E2.54B-layer", config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (E4B, ["E2B", "E2.49B-block", "E2.98B-block", "E3.49B-block", "E4B"]),
        (MIX, ["E2B", "E2.49B-block", "E2.98B-block"]),
        (E2B, ["half of E2B", "E2B"]),
        (TINY, ["half", "whole"]),
    ],
)
def test_sizes_to_choose_among_are_what_a_model_holds(
    config: Gemma3nConfig, expected: list[str]
) -> None:
    parts = Submodel.by_size(config)
    assert [part.name for part in parts] == expected
    sums = [sum(part.ffn_widths) for part in parts]
    assert sums == sorted(set(sums)) and parts[-1] == Submodel.whole(config)


def test_a_published_name_cannot_be_given_to_another_size(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "e2b"\nffn_widths = 4096\n')
    with pytest.raises(InputError, match="'e2b' is the name of a published size"):
        Submodel.of(str(path), E4B)
    with pytest.raises(InputError, match="'E4B' is the name"):
        Submodel((8192,) * 35, name="E4B").checked(E4B)
    path.write_text('name = "E2B"\nffn_widths = 8192\nskipped_layers = [20, 21, 22, 23, 24]\n')
    assert Submodel.of(str(path), E4B) == Submodel.named("E2B", E4B)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("a.toml", 'name = "mine"\nffn_widths = 4096\nskipped_layers = [20, 21, 22, 23, 24]\n'),
        ("a.json", '{"ffn_widths": [WIDTHS], "skipped_layers": [20, 21, 22, 23, 24]}'),
    ],
)
def test_from_a_file(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.write_text(text.replace("WIDTHS", ", ".join(["4096"] * 30)))
    submodel = Submodel.of(str(path), E4B)
    assert submodel == Submodel((4096,) * 30, (20, 21, 22, 23, 24))
    assert submodel.name == ("mine" if file == "a.toml" else "a")


@pytest.mark.parametrize(
    ("widths", "skipped", "message"),
    [
        ((8192,) * 34, (18,), "layer 18 cannot be skipped"),
        ((8192,) * 34, (19,), "layer 19 cannot be skipped"),
        ((8192,) * 35, (35,), "layer 35 is outside 0 to 34"),
        ((8192,) * 33, (20, 20), "names a layer twice"),
        ((8192,) * 35, (20,), "35 ffn_widths for 34 kept layers"),
        ((8192,) * 34 + (16416,), (), "layer 34: .* width of 16416"),
        ((8192,) * 34 + (100,), (), "multiple of 32"),
        ((0,) + (8192,) * 34, (), "layer 0: .* width of 0"),
    ],
)
def test_what_cannot_be_cut(widths: Any, skipped: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Submodel(widths, skipped).checked(E4B)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"ffn_widths": "all"}', '{"ffn_widths": [1.5]}', '{"width": 1}', "{}"]
)
def test_files_that_describe_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match="bad.json"):
        Submodel.of(str(path), E4B)
    with pytest.raises(GemeloError, match="nowhere.toml"):
        Submodel.of(str(tmp_path / "nowhere.toml"), E4B)


def test_lower_layers_may_go_in_a_slice_but_not_on_a_shared_cache() -> None:
    shallow = Submodel((8192,) * 30, (0, 1, 2, 3, 4)).checked(E4B)
    assert not shallow.owns_all_keys(E4B)
    config = shallow.config(E4B)
    assert len(config.kv_layers) == 15 and config.num_kv_shared_layers == 15
    assert config.activation_sparsity_pattern == (0.95,) * 5 + (0.0,) * 25


def test_the_kv_exact_zone_is_what_differs_only_above_the_last_keys() -> None:
    whole = Submodel.whole(E4B)
    upper = Submodel((16384,) * 20 + (8192,) * 10, (20, 21, 22, 23, 24))
    assert upper.same_keys(whole, E4B) and whole.same_keys(upper, E4B)
    at_19 = Submodel((16384,) * 19 + (8192,) * 16)  # keys of layer 19 come before its feed-forward
    assert at_19.same_keys(whole, E4B)
    at_18 = Submodel((16384,) * 18 + (8192,) * 17)
    assert not at_18.same_keys(whole, E4B)
    assert not Submodel.named("E2B", E4B).same_keys(whole, E4B)
    assert Submodel.named("E2.49B", E4B).same_keys(Submodel((8192,) * 35), E4B)
