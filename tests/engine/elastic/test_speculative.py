"""Drafting with a sub-model: the same text, the same distribution, and knowing when to stop."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from gemelo.config import Gemma3nConfig, Submodel
from gemelo.config.sampling import Sampling
from gemelo.engine.decoder import Decoder
from gemelo.engine.elastic.speculative import Draft
from gemelo.engine.engine import Engine
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.sampler import Guess, Sampler, candidates
from gemelo.engine.session import Session
from gemelo.errors import InputError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from tests.matformer import CONFIG, GREEDY, PROMPT, SMALL, UPPER, ids_of, tiny_gemma3n
from tests.quantised import modules_of, native_of


@pytest.fixture(scope="module")
def model() -> NativeDecoder:
    return decoder_of(CONFIG)


def decoder_of(config: Gemma3nConfig) -> NativeDecoder:
    """A tiny Gemma 3n as a program."""
    return native_of(tiny_gemma3n(config))


def drafting(
    model: Decoder, tokenizer: Tokenizer, submodel: Submodel, gamma: int | None, chunk: int = 16
) -> Session:
    engine = Engine(model, tokenizer, chunk=chunk)
    session = engine.session()
    session.draft = Draft(engine.views.view(submodel), gamma)
    return session


@pytest.mark.parametrize("gamma", [1, 2, 4, 8, None])
@pytest.mark.parametrize("submodel", [SMALL, UPPER, Submodel.whole(CONFIG)], ids=lambda s: s.name)
def test_greedy_is_the_whole_models_token_for_token(
    model: Decoder, tiny_tokenizer: Tokenizer, submodel: Submodel, gamma: int | None
) -> None:
    """Past the window, with rejections, and again on the same session with a longer prompt."""
    plain = Engine(model, tiny_tokenizer, chunk=16).session()
    session = drafting(model, tiny_tokenizer, submodel, gamma)
    long = dataclasses.replace(GREEDY, max_tokens=50)
    wanted = ids_of(plain, PROMPT, long)
    assert ids_of(session, PROMPT, long) == wanted
    assert session.ids == [*PROMPT, *wanted[:-1]]
    more = [*PROMPT, *wanted, 400]
    assert ids_of(session, more, long) == ids_of(plain, more, long)
    draft = session.draft
    assert draft is not None
    if gamma is not None:
        assert draft.drafted > draft.accepted or submodel.name != "small"
        assert draft.rounds > 0


def test_a_pass_verifies_what_has_the_same_bits(tiny_tokenizer: Tokenizer) -> None:
    """However many guesses are asked for: products of more tokens add in another order."""
    quantised = native_of(tiny_gemma3n(CONFIG), "q8_0")
    long = dataclasses.replace(GREEDY, max_tokens=50)
    session = drafting(quantised, tiny_tokenizer, Submodel.whole(CONFIG), 30, chunk=64)
    wanted = ids_of(Engine(quantised, tiny_tokenizer, chunk=64).session(), PROMPT, long)
    assert ids_of(session, PROMPT, long) == wanted
    assert session.draft is not None and max(session.draft.verify_s) == 15


def test_modules_draft_for_modules(model: NativeDecoder, tiny_tokenizer: Tokenizer) -> None:
    wanted = ids_of(Engine(model, tiny_tokenizer, chunk=16).session())
    session = drafting(modules_of(model), tiny_tokenizer, SMALL, 3)
    assert ids_of(session) == wanted
    draft = session.draft
    assert draft is not None and draft.drafted > draft.accepted > 0


def test_the_whole_as_its_own_draft_is_always_accepted(
    model: Decoder, tiny_tokenizer: Tokenizer
) -> None:
    session = drafting(model, tiny_tokenizer, Submodel.whole(CONFIG), 4)
    ids_of(session, PROMPT, dataclasses.replace(GREEDY, max_tokens=46))
    draft = session.draft
    assert draft is not None and draft.accepted == draft.drafted
    assert draft.tokens_per_round == pytest.approx(5.0, abs=0.2)


def test_stopping_in_the_middle_of_a_round(model: Decoder, tiny_tokenizer: Tokenizer) -> None:
    plain = ids_of(Engine(model, tiny_tokenizer, chunk=16).session())
    ends = dataclasses.replace(tiny_tokenizer, stop_ids=(plain[6],))
    session = drafting(model, ends, Submodel.whole(CONFIG), 8)
    sampling = Sampling(temperature=0, max_tokens=24)
    first = plain.index(plain[6])
    assert ids_of(session, PROMPT, sampling) == plain[:first]
    assert session.ids == [*PROMPT, *plain[:first]]


def test_max_tokens_and_context_hold(model: Decoder, tiny_tokenizer: Tokenizer) -> None:
    for limit in range(1, 8):
        session = drafting(model, tiny_tokenizer, UPPER, 4)
        assert len(ids_of(session, PROMPT, dataclasses.replace(GREEDY, max_tokens=limit))) == limit
    engine = Engine(model, tiny_tokenizer, context=len(PROMPT) + 5, chunk=16)
    session = engine.session()
    session.draft = Draft(engine.views.view(UPPER), 4)
    pieces = list(session.stream(PROMPT, GREEDY))
    assert len(pieces) == 6 and pieces[-1].finish_reason == "length"


def test_judging_a_guess_keeps_the_distribution() -> None:
    """60,000 draws: the frequencies are the verifier's, whatever the draft proposes."""
    p_scores, q_scores = np.random.default_rng(0).standard_normal((2, 8), np.float32) * 2
    sampling = Sampling(top_k=6, top_p=0.95, temperature=1.3, seed=0)
    sample = Sampler(sampling)
    count = 60_000
    seen: Counter[int] = Counter()
    kept = 0
    for index in range(count):
        guess = sample.guess(q_scores, [], range(index))
        token = sample(p_scores, [], range(index), guess).id
        seen[token] += 1
        kept += token == guess.id
    alone = Sampler(dataclasses.replace(sampling, seed=9))
    probabilities, ids = candidates(p_scores, sampling)
    wanted = dict(zip(ids.tolist(), (probabilities / probabilities.sum()).tolist(), strict=True))
    assert set(seen) <= set(wanted)
    chi_square = sum((seen[t] - count * p) ** 2 / (count * p) for t, p in wanted.items())
    assert chi_square < 30  # 5 degrees of freedom: one run in 70,000
    assert 0.2 < kept / count < 0.99
    assert alone(p_scores, [], []).id in wanted


def test_a_wrong_rule_would_be_noticed() -> None:
    """Taking every guess gives the draft's distribution, which the test above must reject."""
    p, q = np.array([[0, 2, 1], [2, 0, 1]], np.float32)
    sampling = Sampling(top_k=0, top_p=1.0, seed=1)
    sample = Sampler(sampling)
    guesses = [sample.guess(q, [], range(index)) for index in range(3000)]
    took = Counter(guess.id for guess in guesses)
    judged = Counter(sample(p, [], range(index), guess).id for index, guess in enumerate(guesses))
    assert took.most_common(1)[0][0] == 0 and judged.most_common(1)[0][0] == 1


def test_greedy_guesses_bring_no_chances() -> None:
    guess = Sampler(Sampling(temperature=0)).guess(np.array([0, 1], np.float32), [], [])
    assert guess == Guess(1, None)


def test_sampled_text_repeats_with_its_seed(model: Decoder, tiny_tokenizer: Tokenizer) -> None:
    sampling = Sampling(seed=4, max_tokens=20, ignore_eos=True)
    first = ids_of(drafting(model, tiny_tokenizer, SMALL, 3), PROMPT, sampling)
    assert first == ids_of(drafting(model, tiny_tokenizer, SMALL, 3), PROMPT, sampling)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(CONFIG, head_dim=32), "its head_dim is 32 and the model's 64"),
        (dataclasses.replace(CONFIG, vocab_size=600), "its vocab_size is 600"),
        (dataclasses.replace(CONFIG, num_kv_shared_layers=6), "its layers with keys is"),
    ],
)
def test_a_draft_of_another_architecture_is_refused_when_it_is_set(
    model: Decoder, tiny_tokenizer: Tokenizer, config: Gemma3nConfig, message: str
) -> None:
    session = drafting(model, tiny_tokenizer, SMALL, 2)
    before = session.draft
    with pytest.raises(InputError, match=f"of another architecture: {message}"):
        session.draft = Draft(decoder_of(config))
    with pytest.raises(InputError, match="a draft is a Draft, not 'E2B'"):
        session.draft = "E2B"  # type: ignore[assignment]
    assert session.draft is before
    session.draft = None
    assert session.draft is None


def test_a_draft_cut_out_as_a_model_of_its_own_is_taken(
    model: Decoder, tiny_tokenizer: Tokenizer
) -> None:
    """As `Model.draft` makes one with weights of its own: layers renumbered, the same keys."""
    session = Engine(model, tiny_tokenizer, chunk=16).session()
    session.draft = Draft(decoder_of(SMALL.config(CONFIG)), 2)
    assert len(ids_of(session)) == 24


def learnt(alpha: float, c: float, v: float) -> Draft:
    draft = Draft(None)  # type: ignore[arg-type]
    draft.full_s, draft.draft_s, draft.acceptance_rate = 1.0, c, alpha
    draft.verify_s = dict.fromkeys(range(1, 9), v)
    return draft


def test_gamma_follows_acceptance_and_cost() -> None:
    assert learnt(0.8, 0.12, 1.0).gamma > learnt(0.6, 0.3, 1.0).gamma > 0
    assert learnt(0.8, 0.152, 1.0).speedup(5) == pytest.approx(2.10, abs=0.01)
    assert learnt(0.8, 0.54, 1.0).speedup(2) == pytest.approx(1.17, abs=0.01)


def test_what_is_learnt_can_be_asked_without_changing_it() -> None:
    draft = learnt(0.8, 0.152, 1.0)
    assert draft.draft_cost == pytest.approx(0.152) and not draft.is_paused
    assert draft.best_speedup == pytest.approx(max(map(draft.speedup, range(9))))
    draft.fixed_gamma = 2
    assert draft.best_speedup == draft.speedup(2)
    hopeless = learnt(0.1, 0.9, 1.5)
    assert hopeless.best_speedup == 1.0 and not hopeless.is_paused  # until it is asked for guesses
    fresh = Draft(hopeless.decoder)
    assert fresh.draft_cost is None and fresh.best_speedup is None


def test_it_switches_itself_off_when_it_does_not_pay_and_tries_again() -> None:
    draft = learnt(0.1, 0.9, 1.5)
    assert draft.gamma == 0 and draft.is_paused
    for _ in range(10):
        draft.learn([], 0, 1.0)
    draft.acceptance_rate, draft.draft_s = 0.9, 0.1
    assert draft.gamma == 0  # still resting
    for _ in range(60):
        draft.learn([], 0, 1.0)
    draft.verify_s = dict.fromkeys(range(1, 9), 1.0)
    assert draft.gamma > 0
