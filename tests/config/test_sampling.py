"""Sampling parameters: Gemma's defaults, what makes sense, and the same names everywhere."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
import pytest

from gemelo.config.sampling import Sampling, SamplingSettings
from gemelo.errors import InputError


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 2.5},
        {"top_p": 0},
        {"top_p": 1.01},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"presence_penalty": 1000},
        {"max_tokens": 0},
        {"n": 0},
        {"seed": -1},
        {"logprobs": 21},
        {"stop": ("",)},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
        {"tempreature": 1.0},
    ],
)
def test_silly_values_are_one_clear_line(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Sampling.of(bad)
    name, value = next(iter(bad.items()))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_defaults_are_gemmas() -> None:
    defaults = Sampling()
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (1.0, 64, 0.95)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"repetition_penalty": 1e-40}, "repetition_penalty = 1e-40; expected 0.01 to 100"),
        ({"repetition_penalty": 1e38}, "expected 0.01 to 100"),
        ({"temperature": 1e38}, "temperature = 1e.38; expected 0 to 100"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": -1e-46}, "expected 0 to 100"),
        ({"temperature": "hot"}, "temperature = 'hot'; expected 0 to 100"),
        ({"temperature": True}, "temperature = True"),
        ({"top_p": 0}, "top_p = 0 keeps no token"),
        ({"top_p": 1 + 1e-9}, "top_p"),
        ({"min_p": np.float32(1.5)}, "min_p"),
        ({"presence_penalty": 10**400}, "presence_penalty"),
        ({"top_k": -1}, "top_k = -1; expected a whole number"),
        ({"top_k": 1.0}, "top_k = 1.0; expected a whole number"),
        ({"max_tokens": None}, "max_tokens = None; expected a whole number"),
        ({"logprobs": 21}, "logprobs = 21"),
        ({"ignore_eos": "no"}, "ignore_eos = 'no'; expected true or false"),
        ({"stop": 5}, "stop = 5; expected a text or a list of texts"),
        ({"stop": ["a", b"b"]}, "stop has b'b'"),
        ({"logit_bias": [1, 2]}, "logit_bias = .* expected token ids, and a number for each"),
        ({"logit_bias": {1.5: 1.0}}, "logit_bias token = 1.5; expected a whole number"),
        ({"logit_bias": {True: 1.0}}, "logit_bias token = True"),
        ({"logit_bias": {1: math.inf}}, "logit_bias of token 1 = inf"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Sampling(**settings)


def test_numpys_numbers_are_numbers() -> None:
    """And kept as Python's, so that a setting can be written as JSON."""
    sampling = Sampling(
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        top_k=np.int64(3),  # type: ignore[arg-type]
        seed=np.uint8(7),  # type: ignore[arg-type]
        logit_bias={np.int32(4): np.float16(2)},  # type: ignore[dict-item]
    )
    assert sampling == Sampling(temperature=0.5, top_k=3, seed=7, logit_bias={4: 2.0})
    assert type(sampling.top_k) is int and type(sampling.temperature) is float


def test_keywords_are_the_fields() -> None:
    """Names and types; but a text to stop at may come alone."""
    hints = get_type_hints(Sampling)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(Sampling)}
    assert fields["stop"] == tuple[str, ...]
    assert get_type_hints(SamplingSettings) == fields | {"stop": str | Sequence[str]}
    assert not SamplingSettings.__required_keys__


def test_a_value_or_keywords_and_not_both() -> None:
    chosen = Sampling(temperature=0.5, stop=("a",))
    assert Sampling.of({}, chosen) is chosen
    assert Sampling.of({"temperature": 0.5, "stop": "a"}) == chosen
    settings: Mapping[str, Any] = {"top_k": 3, "seed": 1}
    with pytest.raises(InputError, match="^both sampling= and top_k, seed= were given; give one"):
        Sampling.of(settings, chosen)
    with pytest.raises(InputError, match="unknown sampling setting 'topk'; did you mean top_k"):
        Sampling.of({"topk": 3}, chosen)
    with pytest.raises(InputError, match="unknown sampling setting 'other'; known: temperature, "):
        Sampling.of({"other": 3})
    with pytest.raises(InputError, match="sampling = 0.5; expected a Sampling"):
        Sampling.of({}, 0.5)  # type: ignore[arg-type]


def test_settings_and_options_load_no_torch() -> None:
    code = (
        "import sys, gemelo.config.sampling, gemelo.config.options\n"
        "sys.exit(', '.join({'torch', 'numpy'} & set(sys.modules)) or None)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert ran.returncode == 0, ran.stderr
