"""Bytes counted beforehand are those that are allocated, and no more are given than there are."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import decoder_weights
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.slice import without_padding
from gemelo.config import ModelConfig, read_config
from gemelo.config.options import KVFormat, WeightFormat
from gemelo.engine import plan as plan_module
from gemelo.engine.kv import KVCache
from gemelo.engine.plan import (
    UNSET_MAX_TOKENS,
    Admission,
    KVPlan,
    Reservation,
    reserved_tokens,
    weight_bytes,
)
from gemelo.errors import InputError
from tests.conftest import TINY
from tests.gemma3n import TINY_3N
from tests.text_configs import published, published_3n

FORMATS = st.sampled_from(get_args(KVFormat))
CONFIGS = st.sampled_from([*TINY.values(), TINY_3N])
MIB = 1 << 20


# ---- KV caches -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(CONFIGS, st.integers(1, 128), st.integers(1, 64), FORMATS, st.lists(st.integers(1, 128)))
def test_a_cache_allocates_what_was_counted_however_it_grows(
    config: ModelConfig, tokens: int, chunk: int, kv_format: KVFormat, lengths: list[int]
) -> None:
    cache = KVCache(config, tokens, chunk=chunk, kv_format=kv_format)
    counted = KVPlan(config, chunk, kv_format).cache_bytes(tokens)
    for length in lengths:
        cache.make_room(1, min(length, tokens))
        assert cache.nbytes <= counted
    cache.make_room(1, tokens)
    assert cache.nbytes == counted


def published_plan(size: str, kv_format: KVFormat = "bf16") -> KVPlan:
    raw = published_3n(size) if size.startswith("E") else published(size)
    return KVPlan(read_config(raw), 512, kv_format)


@pytest.mark.parametrize(
    ("size", "sliding", "heads", "window", "width"),
    [("1b", 22, 1, 512, 256), ("4b", 29, 4, 1024, 256), ("E4B", 16, 2, 512, 256)],
)
def test_a_snapshot_is_the_window_before_it_in_sliding_layers(
    size: str, sliding: int, heads: int, window: int, width: int
) -> None:
    """By hand: keys and values of two bytes a number; of Gemma 3n only layers that own some."""
    slot_bytes = sliding * 2 * heads * width * 2
    plan = published_plan(size)
    assert plan.snapshot_bytes(20_000) == (window - 1) * slot_bytes
    assert plan.snapshot_bytes(100) == 100 * slot_bytes and plan.snapshot_bytes(0) == 0


def test_int8_has_a_scale_of_two_bytes_a_head() -> None:
    plain, int8 = published_plan("1b", "plain"), published_plan("1b", "int8")
    assert int8.cache_bytes(4096) == plain.cache_bytes(4096) // 4 * 258 // 256
    assert plain.snapshot_bytes(600) // 4 * 258 // 256 == int8.snapshot_bytes(600)


def test_plain_numbers_of_modules_are_as_wide_as_their_dtype() -> None:
    plan = published_plan("1b", "plain")
    half = KVPlan(plan.config, plan.chunk, "plain", plain_bytes=2)
    assert plan.cache_bytes(4096) == 2 * half.cache_bytes(4096)


def test_a_request_has_a_cache_for_each_answer_and_its_snapshots() -> None:
    plan = published_plan("1b")
    one = plan.request_bytes(1000, 24, context=32768)
    assert one == plan.cache_bytes(1024)
    assert plan.request_bytes(1000, 24, context=32768, n=3) == 3 * one
    with_two = plan.request_bytes(1000, 24, context=32768, num_snapshots=2)
    assert with_two == one + 2 * plan.snapshot_bytes(1024)


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "context", "tokens"),
    [
        (100, 50, 4096, 150),
        (100, 5000, 4096, 4096),
        (100, None, 4096, 100 + UNSET_MAX_TOKENS),
        (4000, None, 4096, 4096),
    ],
)
def test_an_answer_is_reserved_within_the_context(
    prompt: int, max_tokens: int | None, context: int, tokens: int
) -> None:
    assert reserved_tokens(prompt, max_tokens, context) == tokens


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", get_args(WeightFormat))
def test_weights_are_counted_as_they_are_loaded(
    tiny_directory: Path, tiny_checkpoint: Path, format: WeightFormat
) -> None:
    for path in (tiny_directory, tiny_checkpoint):
        source = without_padding(open_source(path))
        weights, _ = decoder_weights(source, format)
        assert weight_bytes(source, format) == weights.nbytes


@pytest.mark.parametrize("format", ["native", "q4_0"])
def test_towers_are_not_counted_and_the_per_layer_table_stays(
    awake_directory: Path, tmp_path: Path, format: WeightFormat
) -> None:
    convert(awake_directory, tmp_path / "awake.gguf", "q8_0", text_only=True)
    for path in (awake_directory, tmp_path / "awake.gguf"):
        source = without_padding(open_source(path))
        weights, _ = decoder_weights(source, format)
        assert weight_bytes(source, format) == weights.nbytes


# ---- admission -----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 1000), st.lists(st.tuples(st.booleans(), st.integers(0, 1200)), max_size=80))
def test_what_is_reserved_is_what_those_have_that_run(
    limit: int, actions: list[tuple[bool, int]]
) -> None:
    admission = Admission(limit)
    running: list[Reservation] = []
    for is_new, number in actions:
        if not is_new and running:
            running.pop(number % len(running)).release()
        elif is_new and number <= limit:
            had = sum(one.nbytes for one in running)
            made = admission.reserve(number)
            assert (made is None) == (had + number > limit)
            running += [] if made is None else [made]
        assert admission.reserved_bytes == sum(one.nbytes for one in running)
        assert admission.free_bytes == limit - admission.reserved_bytes >= 0
    for one in running:
        one.release()
    assert admission.free_bytes == limit and not admission.live


def test_bytes_are_given_back_once() -> None:
    admission = Admission(100)
    first, second = admission.reserve(60), admission.reserve(40)
    assert first is not None and second is not None
    first.release()
    first.release()
    assert admission.reserved_bytes == 40


def test_what_never_fits_is_refused_at_once_with_the_bytes_it_needs() -> None:
    admission = Admission(512 * MIB)
    assert admission.reserve(512 * MIB) is not None  # all of it fits, alone
    with pytest.raises(InputError) as caught:
        admission.reserve(1536 * MIB)
    assert str(caught.value) == (
        "the request needs 1.5 GiB of KV cache, and kv_limit_bytes is 512.0 MiB for all requests: "
        "shorten the prompt, lower max_tokens or n, or raise kv_limit_bytes"
    )


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_nothing_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match=f"kv_limit_bytes = {limit}; expected"):
        Admission(limit)


@pytest.mark.parametrize(("free", "limit"), [(8 << 30, 4 << 30), (0, 2 << 30)])
def test_the_limit_is_half_of_what_is_free(
    free: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 GiB where the system does not say."""
    monkeypatch.setattr(plan_module, "available_bytes", lambda: free)
    assert Admission().limit_bytes == limit
