"""The table of known models: short and plain names, what they mean, and what needs no account."""

from __future__ import annotations

import pytest

from gemelo.checkpoints import known
from gemelo.checkpoints.hub import pull
from gemelo.checkpoints.hub_names import HubName, parse
from gemelo.checkpoints.known import (
    KNOWN,
    hub_id,
    is_other_family,
    suggestions,
    without_account,
)
from gemelo.checkpoints.locate import resolve
from gemelo.errors import InputError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gemma3:1b", "ggml-org/gemma-3-1b-it-GGUF"),
        ("gemma3:1b-it", "ggml-org/gemma-3-1b-it-GGUF"),
        ("GEMMA3:1B", "ggml-org/gemma-3-1b-it-GGUF"),
        ("gemma3", "ggml-org/gemma-3-4b-it-GGUF"),
        ("gemma3:latest", "ggml-org/gemma-3-4b-it-GGUF"),
        ("gemma3n", "unsloth/gemma-3n-E4B-it-GGUF"),
        ("gemma3n:e2b", "unsloth/gemma-3n-E2B-it-GGUF"),
        ("gemma3n:e2b-it-q8_0", "unsloth/gemma-3n-E2B-it-GGUF:Q8_0"),
        ("gemma3:4b-it-q8_0", "ggml-org/gemma-3-4b-it-GGUF:Q8_0"),
        ("gemma3:4b-it-q4_K_M", "ggml-org/gemma-3-4b-it-GGUF:Q4_K_M"),
        ("gemma3:4b-it-fp16", "ggml-org/gemma-3-4b-it-GGUF:F16"),
        ("gemma3:27b-it-qat", "ggml-org/gemma-3-27b-it-qat-GGUF"),
        ("gemma3:270m", "unsloth/gemma-3-270m-it-GGUF"),
        ("gemma3:270m-pt", "ggml-org/gemma-3-270m-GGUF"),
        ("gemma3:4b-pt", "google/gemma-3-4b-pt"),
        ("gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("Gemma-3-1B-IT", "google/gemma-3-1b-it"),
        ("gemma-3n-e4b-it", "google/gemma-3n-E4B-it"),
        ("gemma-3-4b-it-gguf", "ggml-org/gemma-3-4b-it-GGUF"),
        ("gemma-3-4b-it:q8_0", "ggml-org/gemma-3-4b-it-GGUF:Q8_0"),
        ("gemma-3-4b-it:latest", "google/gemma-3-4b-it"),
        ("gemma3:2b", None),
        ("gemma3:4b-it-", None),
        ("gemma3:4b-pt-q8_0", None),  # nobody has it
        ("gemma3:../x", None),
        ("gemma", None),
        ("google/gemma-3-1b-it", None),  # an id already
        ("demo", None),
        ("", None),
    ],
)
def test_what_names_mean(name: str, meant: str | None) -> None:
    assert hub_id(name) == meant


def test_every_name_of_the_table_means_its_own_row() -> None:
    assert len({model.name for model in KNOWN}) == len(KNOWN)
    for model in KNOWN:
        assert hub_id(model.name) == hub_id(model.plain_name) == model.repository
        assert parse(model.name) == HubName(model.repository)
        assert model.size_bytes > 2e8


def test_both_families_in_every_size_without_an_account() -> None:
    names = {model.name for model in KNOWN if not model.is_gated}
    sizes = {f"gemma3:{size}" for size in ("270m", "1b", "4b", "12b", "27b")}
    assert sizes | {"gemma3n:e2b", "gemma3n:e4b"} <= names


@pytest.mark.parametrize(
    ("repository", "instead"),
    [
        ("google/gemma-3-1b-it", "gemma3:1b"),
        ("google/gemma-3-4b-it-qat-q4_0-gguf", "gemma3:4b"),
        ("Google/Gemma-3n-E4B-it", "gemma3n:e4b"),
        ("google/gemma-3-270m", "gemma3:270m-pt"),
        ("google/gemma-3-4b-pt", None),
        ("acme/x", None),
    ],
)
def test_the_same_without_an_account(repository: str, instead: str | None) -> None:
    found = without_account(repository)
    assert (found and found.name) == instead


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("gemma3:1", "gemma3:1b"),
        ("gemma-3-4b", "gemma-3-4b-it"),
        ("gema3:4b", "gemma3:4b"),
        ("gemma-3-4b-itt", "gemma-3-4b-it"),
        ("gemma3n:e4", "gemma3n:e4b"),
        ("gemma3-1b-it", "gemma-3-1b-it"),
        ("gogle/gemma-3-1b-it", "google/gemma-3-1b-it"),
        ("e4b", "gemma3n:e4b"),
        ("1b", "gemma3:1b"),
    ],
)
def test_misspellings(name: str, first: str) -> None:
    assert first in suggestions(name)


@pytest.mark.parametrize("name", ["llama3:8b", "nonsense", "x", "", "/nowhere/model.gguf"])
def test_nothing_is_suggested_for_other_things(name: str) -> None:
    assert suggestions(name) == []


@pytest.mark.parametrize("name", ["gemma2:2b", "gemma:7b", "llama3.2", "Qwen2.5:3b", "phi4-mini"])
def test_other_families_are_known_as_such(name: str) -> None:
    assert is_other_family(name) and suggestions(name) == []
    with pytest.raises(InputError, match="only Gemma 3 and Gemma 3n run here"):
        resolve(name)
    with pytest.raises(InputError, match="only Gemma 3 and Gemma 3n run here"):
        pull(name)


def test_ours_are_not_taken_for_others() -> None:
    names = [model.name for model in KNOWN] + [model.plain_name for model in KNOWN]
    assert not [one for one in (*names, "gemma", "gemma3", "medgemma:4b") if is_other_family(one)]


def test_the_embedded_model_is_not_fetched() -> None:
    with pytest.raises(InputError, match="demo is the embedded model"):
        pull("demo")


def test_what_a_name_fetches_reads() -> None:
    """A GGUF of a Gemma 3n is its text model; Google's repository of the same has all."""
    reads = {model.name: ", ".join(model.reads) for model in KNOWN}
    assert reads["gemma3:1b"] == reads["gemma3:270m"] == reads["gemma3:1b-pt"] == "text"
    assert reads["gemma3:4b"] == reads["gemma-3-27b-it"] == "text, pictures"
    assert reads["gemma3n:e2b"] == reads["gemma3n:e4b"] == "text"
    assert reads["gemma-3n-E2B-it"] == reads["gemma3n:e4b-pt"] == "text, pictures, sound"


def test_the_table_needs_nothing_but_the_standard_library() -> None:
    assert not {"torch", "numpy", "huggingface_hub"} & set(vars(known))
