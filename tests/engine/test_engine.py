"""Sessions against the obvious loop without a cache, and everything that may interrupt one."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from gemelo.engine.engine import Engine
from gemelo.engine.kv import PlainSlots, SlotIndex
from gemelo.engine.sampler import Sampling
from gemelo.engine.session import Session
from gemelo.engine.tokens import Tokens
from gemelo.errors import ContextLengthError, FileFormatError, InputError, UnavailableError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.models.gemma3 import Gemma3
from tests.conftest import TINY, tiny_model
from tests.divergence import divergence, off

GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
PROMPT = [2, *range(300, 320)]


@pytest.fixture(scope="module")
def model() -> Gemma3:
    return tiny_model(TINY["grouped-scaled"])


@pytest.fixture
def engine(model: Gemma3, tiny_tokenizer: Tokenizer) -> Engine:
    return Engine(model, tiny_tokenizer, chunk=8)


@torch.inference_mode()
def obvious(model: Gemma3, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache: the oracle."""
    ids = list(prompt)
    for _ in range(count):
        tokens = torch.tensor([ids])
        hidden = model(tokens, torch.arange(len(ids))[None])
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
    return ids[len(prompt) :]


def ids_of(session: Session, prompt: list[int], sampling: Sampling = GREEDY) -> list[int]:
    return [token for piece in session.stream(prompt, sampling) for token in piece.token_ids]


def test_greedy_is_the_obvious_loop_past_the_window(engine: Engine, model: Gemma3) -> None:
    assert ids_of(engine.session(), PROMPT) == obvious(model, PROMPT, 24)


def test_a_longer_prompt_reads_only_what_is_new(engine: Engine, model: Gemma3) -> None:
    session = engine.session()
    answer = ids_of(session, PROMPT)
    longer = [*PROMPT, *answer, 400, 401, 402]
    again = ids_of(session, longer)
    assert session.timings.reused_tokens == len(PROMPT) + len(answer) - 1
    assert session.timings.prefill_tokens == 4
    assert again == obvious(model, longer, 24)


def test_the_same_prompt_again_reads_one_token(engine: Engine) -> None:
    session = engine.session()
    short = dataclasses.replace(GREEDY, max_tokens=4)
    first = ids_of(session, PROMPT, short)
    assert ids_of(session, PROMPT, short) == first
    assert session.timings.prefill_tokens == 1


def test_a_prefix_beyond_the_ring_is_read_anew(engine: Engine, model: Gemma3) -> None:
    session = engine.session()
    ids_of(session, PROMPT)
    other = [*PROMPT[:5], 444, 445]
    assert ids_of(session, other) == obvious(model, other, 24)
    assert session.timings.reused_tokens == 0


def test_an_unrelated_prompt_starts_over(engine: Engine, model: Gemma3) -> None:
    session = engine.session()
    ids_of(session, PROMPT)
    assert ids_of(session, [5, 6, 7]) == obvious(model, [5, 6, 7], 24)


def test_a_stream_left_early_keeps_the_session(engine: Engine, model: Gemma3) -> None:
    session = engine.session()
    stream = session.stream(PROMPT, GREEDY)
    said = [next(stream).token_ids[0] for _ in range(5)]
    stream.close()
    longer = [*PROMPT, *said, 333]
    assert ids_of(session, longer) == obvious(model, longer, 24)
    assert session.timings.reused_tokens == len(PROMPT) + 4


@pytest.mark.parametrize("layer", [0, 3, 6])
def test_an_interrupt_inside_a_step_keeps_the_session(
    engine: Engine, model: Gemma3, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C halfway through the layers: some have written their keys, some have not."""
    session = engine.session()
    said: list[int] = []
    forward = model.layers[layer].forward
    calls = iter(range(1000))

    def interrupted(*args: object) -> torch.Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        result: torch.Tensor = forward(*args)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(model.layers[layer], "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            for piece in session.stream(PROMPT, GREEDY):
                said.extend(piece.token_ids)
    assert 0 < len(said) < 24
    longer = [*PROMPT, *said]
    assert ids_of(session, longer) == obvious(model, longer, 24)


def test_an_interrupted_prefill_keeps_its_whole_chunks(engine: Engine, model: Gemma3) -> None:
    session = engine.session()

    def stop(done: int, total: int) -> None:
        if done == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(session.stream(PROMPT, GREEDY, progress=stop))
    assert ids_of(session, PROMPT) == obvious(model, PROMPT, 24)
    assert session.timings.reused_tokens == 16


def test_many_continuations_of_one_prompt(engine: Engine) -> None:
    sampling = Sampling(n=3, seed=5, max_tokens=12, ignore_eos=True, temperature=2.0, top_k=0)
    session = engine.session()
    texts: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for piece in session.stream(PROMPT, sampling):
        texts[piece.index].extend(piece.token_ids)
    assert [len(ids) for ids in texts.values()] == [12, 12, 12]
    assert len({tuple(ids) for ids in texts.values()}) == 3
    alone = dataclasses.replace(sampling, n=1)
    assert ids_of(engine.session(), PROMPT, alone) == texts[0]
    assert session.ids == PROMPT


def test_continuations_stop_one_by_one(engine: Engine, model: Gemma3) -> None:
    """A row that has ended leaves the others as they would be alone."""
    ends = Engine(model, dataclasses.replace(engine.tokenizer, stop_ids=tuple(range(0, 512, 7))))
    sampling = Sampling(n=4, seed=1, max_tokens=30, temperature=1.5, top_k=0, top_p=1.0)
    lengths = dict.fromkeys(range(4), 0)
    for piece in ends.session().stream(PROMPT, sampling):
        lengths[piece.index] += len(piece.token_ids)
    assert len(set(lengths.values())) > 1


def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    sampling = Sampling(seed=3, max_tokens=16, ignore_eos=True)
    assert ids_of(engine.session(), PROMPT, sampling) == ids_of(engine.session(), PROMPT, sampling)


def test_an_int8_cache_is_keys_and_values_rounded_to_bytes(
    model: Gemma3, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: a plain cache with the rounding written out gives the same scores."""
    small = Engine(model, tiny_tokenizer, chunk=8, kv_format="int8").score(PROMPT)
    exact = Engine(model, tiny_tokenizer, chunk=8).score(PROMPT)
    put = PlainSlots.put

    def put_rounded(self: PlainSlots, where: SlotIndex, new: Tensor) -> None:
        steps = (new.abs().amax(-1, keepdim=True) / 127).half().float()
        put(self, where, torch.round(new / steps) * steps)

    monkeypatch.setattr(PlainSlots, "put", put_rounded)
    expected = Engine(model, tiny_tokenizer, chunk=8).score(PROMPT)
    allowed = 1e-9  # float32 in the same order, to the last bits
    assert divergence(small, expected) < allowed < divergence(small, exact)
    with torch.inference_mode(), off(model):
        assert divergence(Engine(model, tiny_tokenizer, chunk=8).score(PROMPT), expected) > allowed


def test_scores_are_the_plain_forward(engine: Engine, model: Gemma3) -> None:
    with torch.inference_mode():
        plain = model.logits(model(torch.tensor([PROMPT]), torch.arange(len(PROMPT))[None]))[0]
    scores = engine.score(PROMPT)
    assert scores.dtype == torch.float32 and scores.shape == (len(PROMPT), 512)
    assert float((scores - plain).abs().max()) < 1e-4


def test_generation_ends_where_the_context_does(model: Gemma3, tiny_tokenizer: Tokenizer) -> None:
    session = Engine(model, tiny_tokenizer, context=24, chunk=8).session()
    pieces = list(session.stream(PROMPT, GREEDY))
    assert len(pieces) == 24 - len(PROMPT) + 1
    assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty"),
        ([2, 512], "token id 512 is outside 0 to 511"),
        ([2, -1], "token id -1"),
        ([2] * 30, "30 tokens and the context holds 24"),
    ],
)
def test_prompts_that_cannot_run(
    model: Gemma3, tiny_tokenizer: Tokenizer, ids: list[int], message: str
) -> None:
    session = Engine(model, tiny_tokenizer, context=24).session()
    with pytest.raises((InputError, ContextLengthError), match=message):
        next(iter(session.stream(ids, GREEDY)))


def test_a_broken_weight_is_named(model: Gemma3, tiny_tokenizer: Tokenizer) -> None:
    broken = tiny_model(TINY["grouped-scaled"])
    broken.layers[2].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(FileFormatError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN"):
        Engine(broken, tiny_tokenizer).score(PROMPT)


def test_what_memory_has_no_room_for_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, hidden states and attention probabilities, each where it is what does not fit."""
    tokens, config = Tokens(PROMPT), engine.decoder.config
    logits = 4 * len(PROMPT) * config.vocab_size
    monkeypatch.setattr("gemelo.engine.engine.available_bytes", lambda: logits)
    engine.score(PROMPT)
    engine.forward(tokens)
    for more in ({"output_hidden_states": True}, {"output_attentions": True}):
        with pytest.raises(UnavailableError, match="GiB of memory are free; give fewer tokens"):
            engine.forward(tokens, **more)
    monkeypatch.setattr("gemelo.engine.engine.available_bytes", lambda: logits - 1)
    for ask in (lambda: engine.score(PROMPT), lambda: engine.forward(tokens)):
        with pytest.raises(UnavailableError, match=f"what is asked of {len(PROMPT)} tokens"):
            ask()
