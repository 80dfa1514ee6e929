"""The library on text: both families, every format, sessions, sizes, drafts and policies."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import gemelo
from gemelo import Model, Submodel
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.kernels import native

GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
PROMPT = [2, *range(300, 330)]


@pytest.fixture(scope="module", params=["gemma3", "quantised", "gemma3n", "with_mmproj"])
def model(request: pytest.FixtureRequest) -> Model:
    return gemelo.load(request.getfixturevalue(request.param))


@pytest.fixture
def elastic(gemma3n: Path) -> Model:
    return gemelo.load(gemma3n)


def test_it_runs_natively(model: Model) -> None:
    decoder = model.engine.decoder
    assert isinstance(decoder, NativeDecoder) and model.device == "cpu"
    assert decoder.is_native == (native.module is not None)


def test_scores_are_those_of_single_steps(model: Model) -> None:
    scores = model.scores(PROMPT)
    assert scores.shape == (len(PROMPT), 512) and scores.dtype == np.float32
    session = model.session()
    read = session.read(PROMPT[:5])
    assert np.abs(read - scores[4]).max() < 0.05 * np.abs(scores).max()
    likeliest = int(scores[-1].argmax())
    assert model.generate(PROMPT, **GREEDY).token_ids[0] == likeliest


def test_completions_of_every_kind(model: Model) -> None:
    whole = model.generate("the capital", **GREEDY)
    pieces = list(model.stream("the capital", **GREEDY))
    assert "".join(piece.text for piece in pieces) == whole.text
    first, second = (model.generate("the", seed=3, max_tokens=8).token_ids for _ in range(2))
    assert first == second
    several = model.generate("the", n=3, seed=1, max_tokens=6, logprobs=2, ignore_eos=True)
    assert len({choice.token_ids for choice in several.choices}) > 1
    assert all(len(top) == 2 for top in several.choices[1].top_logprobs)


def test_turns_of_a_chat_read_only_what_is_new(model: Model) -> None:
    messages = [{"role": "user", "content": "the " * 60}]
    first = model.chat(messages, max_tokens=6, temperature=0)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "of"}]
    second = model.chat(messages, max_tokens=6, temperature=0)
    cut = len(first.prompt_token_ids) // 64 * 64  # where every prompt is cut
    assert second.timings.reused_tokens >= cut > 0
    fresh = Model(model.checkpoint, model.engine).chat(messages, max_tokens=6, temperature=0)
    assert fresh.prompt_token_ids == second.prompt_token_ids


def test_a_session_is_rewound_and_read_on(model: Model) -> None:
    session = model.session()
    session.write(PROMPT)
    session.extend([5, 7])
    assert list(session.tokens.ids) == [*PROMPT, 5, 7]
    found = session.read(PROMPT[:20])
    wanted = model.session().read(PROMPT[:20])
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("format", get_args(gemelo.WeightFormat))
def test_formats_of_loading(gemma3: Path, gemma3n: Path, format: gemelo.WeightFormat) -> None:
    for path, most in ((gemma3, 0.5), (gemma3n, 1.0)):  # gates of the latter open and close
        found = gemelo.load(path, format=format).scores(PROMPT)
        exact = gemelo.load(path).scores(PROMPT)
        largest = np.abs(found - exact).max() / np.abs(exact).max()
        assert (largest < 1e-5) == (format in ("native", "f32")) and largest < most


@pytest.mark.parametrize("kv_format", get_args(gemelo.KVFormat))
def test_formats_of_caches(gemma3: Path, kv_format: gemelo.KVFormat) -> None:
    found = gemelo.load(gemma3, kv_format=kv_format).scores(PROMPT)
    exact = gemelo.load(gemma3).scores(PROMPT)
    assert np.abs(found - exact).max() < (1e-5 if kv_format == "plain" else 0.1) * exact.max()


def test_without_kernels_numpy_gives_the_same(
    gemma3: Path, gemma3n: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (gemma3, gemma3n):
        exact = gemelo.load(path).scores(PROMPT)
        with monkeypatch.context() as patch:
            patch.setattr(native, "module", None)
            model = gemelo.load(path)
            assert np.abs(model.scores(PROMPT) - exact).max() < 3e-4


# ---- sizes of a Gemma 3n -------------------------------------------------------------------------


def test_a_size_is_another_model(elastic: Model) -> None:
    small = elastic.submodel("half")
    assert np.abs(small.scores(PROMPT) - elastic.scores(PROMPT)).max() > 1e-2
    assert small.engine.decoder.weights is elastic.engine.decoder.weights


@pytest.mark.parametrize("mode", get_args(gemelo.RebuildMode))
def test_a_switch_and_a_rebuild(elastic: Model, mode: gemelo.RebuildMode) -> None:
    session = elastic.session()
    session.use("half")
    begun = session.generate(PROMPT, **GREEDY)
    assert set(session.written_by) == {"half"}
    session.use("whole", mode)
    held = [*PROMPT, *begun.token_ids]
    session.generate(held, temperature=0, max_tokens=24, ignore_eos=True)
    assert ("half" in session.written_by) == (mode == "off")
    if mode == "now":
        wanted = elastic.generate(held, temperature=0, max_tokens=24, ignore_eos=True).token_ids
        assert session.generate(held, temperature=0, max_tokens=24, ignore_eos=True).token_ids == (
            wanted
        )


def test_a_draft_changes_nothing(elastic: Model) -> None:
    plain = elastic.generate(PROMPT, **GREEDY).token_ids
    for draft in (elastic.draft("half", gamma=3), elastic.draft("half", gamma=3, format="q4_0")):
        session = elastic.session()
        session.draft = draft
        assert session.generate(PROMPT, **GREEDY).token_ids == plain and draft.rounds > 0


def test_policies_choose(elastic: Model) -> None:
    whole = Submodel.whole(elastic.config)
    half = elastic.engine.views.parse("half")
    easy = Submodel.easy(elastic.config)
    policies = {
        "half": gemelo.latency_policy(1e9, [half, whole], patience=1),
        easy.name: gemelo.difficulty_policy(easy, whole, 1e9),
    }
    for name, policy in policies.items():
        session = elastic.session()
        session.policy = policy
        session.generate(PROMPT, **GREEDY)
        assert session.stats.tokens[name] > 1


def test_a_memory_policy_lets_pages_go(gemma3n: Path) -> None:
    model = gemelo.load(gemma3n, repack=False)
    half, whole = model.engine.views.parse("half"), Submodel.whole(model.config)
    asked: list[Submodel] = []

    def release(part: Submodel) -> int:
        asked.append(part)
        return model.release(part)

    session = model.session()
    session.policy = gemelo.memory_policy(2**20, [half, whole], lambda: 2**40, release)
    wanted = model.generate(PROMPT, **GREEDY).token_ids
    session.generate(PROMPT, **GREEDY)
    assert asked == [half] and session.stats.tokens["half"] > 1
    assert model.generate(PROMPT, **GREEDY).token_ids == wanted, "pages come back"


@pytest.mark.parametrize("place", get_args(gemelo.TablePlacement))
def test_places_of_the_per_layer_table(
    gemma3n: Path, elastic: Model, place: gemelo.TablePlacement
) -> None:
    found = gemelo.load(gemma3n, ple=place).scores(PROMPT)
    assert np.array_equal(found, elastic.scores(PROMPT))


def test_ids_of_towers_have_embeddings(with_mmproj: Path, seeing_3n: Path) -> None:
    """The end of an image is an id past the text vocabulary; no tower is loaded for it."""
    ids = [*PROMPT, 480, 300]
    found, exact = (gemelo.load(path).scores(ids) for path in (with_mmproj, seeing_3n))
    assert np.abs(found - exact)[:, :480].max() < 3e-4
    assert np.abs(found[-1] - gemelo.load(with_mmproj).scores([*PROMPT, 4, 300])[-1]).max() > 1e-2


def test_a_model_is_cut_and_written(gemma3n: Path, tmp_path: Path) -> None:
    gemelo.slice(gemma3n, tmp_path / "half", "half")
    found = gemelo.load(tmp_path / "half").scores(PROMPT)
    wanted = gemelo.load(gemma3n).submodel("half").scores(PROMPT)
    assert np.abs(found - wanted).max() < 1e-4
