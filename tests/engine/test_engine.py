"""Sessions against the obvious loop without a cache, and everything that may interrupt one.

The model runs natively, as the same program in NumPy, and as modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gemelo.config.sampling import Sampling
from gemelo.engine.decoder import Decoder
from gemelo.engine.engine import Engine
from gemelo.engine.kv import FloatStore
from gemelo.engine.modules.cache import FloatTensors
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.modules.forward import forward
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.programs.backends import NativeBackend, ReferenceBackend
from gemelo.engine.session import Session
from gemelo.engine.slots import Integers
from gemelo.engine.tokens import Tokens
from gemelo.errors import ContextLengthError, FileFormatError, InputError, UnavailableError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from gemelo.models.gemma3 import Gemma3
from gemelo.weights.tensors import Weights
from tests.conftest import TINY, tiny_model
from tests.divergence import divergence, off
from tests.quantised import GEMMA3, modules_of, native_of

GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
PROMPT = [2, *range(300, 320)]


# Who runs the model, and one of a shape that this is: the kernels take no heads of 24.
CONFIGS = {
    "kernels": GEMMA3,
    "numpy": TINY["grouped-scaled"],
    "modules": TINY["grouped-scaled"],
}


@pytest.fixture(scope="module", params=CONFIGS)
def runner(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(runner: str) -> Gemma3:
    return tiny_model(CONFIGS[runner])


@pytest.fixture(scope="module")
def decoder(runner: str, model: Gemma3) -> Decoder:
    return made(runner, model)


def made(runner: str, model: Gemma3) -> Decoder:
    """The decoder over a module's weights."""
    if runner == "modules":
        return ModuleDecoder(model)
    decoder = native_of(model)
    assert decoder.is_native == (runner == "kernels" and native.module is not None)
    return decoder


def as_modules(decoder: Decoder) -> ModuleDecoder:
    """Modules over the same memory, or those that it is."""
    if isinstance(decoder, NativeDecoder):
        return modules_of(decoder)
    assert isinstance(decoder, ModuleDecoder)
    return decoder


@pytest.fixture
def engine(decoder: Decoder, tiny_tokenizer: Tokenizer) -> Engine:
    return Engine(decoder, tiny_tokenizer, chunk=8)


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


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interrupt_inside_a_step_keeps_the_session(
    engine: Engine, model: Gemma3, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C halfway through the layers: some have written their keys, some have not."""
    session = engine.session()
    said: list[int] = []
    with monkeypatch.context() as patch:
        interrupt(engine.decoder, share, patch)
        with pytest.raises(KeyboardInterrupt):
            for piece in session.stream(PROMPT, GREEDY):
                said.extend(piece.token_ids)
    assert 0 < len(said) < 24
    longer = [*PROMPT, *said]
    assert ids_of(session, longer) == obvious(model, longer, 24)


def interrupt(decoder: Decoder, share: float, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the sixth step that gets so far: at its begin, half way, or before its end. A
    native call is not cut, so there it comes before the call or after."""
    if isinstance(decoder, ModuleDecoder):
        layer = decoder.module.layers[round(share * (len(decoder.module.layers) - 1))]
        patch.setattr(layer, "forward", in_sixth(layer.forward))
        return
    assert isinstance(decoder, NativeDecoder)
    backend = decoder._backend
    if isinstance(backend, NativeBackend):
        patch.setattr(backend, "run", in_sixth(backend.run, after=share > 0.5))
        return
    assert isinstance(backend, ReferenceBackend)
    steps = list(backend.program._steps)
    place = round(share * (len(steps) - 1))
    steps[place] = in_sixth(steps[place])
    patch.setattr(backend.program, "_steps", steps)


def in_sixth(work: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
    """The same, but that the sixth call is interrupted."""
    calls = iter(range(1000))

    def interrupted(*args: object) -> Any:
        last = next(calls) == 5
        if last and not after:
            raise KeyboardInterrupt
        result = work(*args)
        if last:
            raise KeyboardInterrupt
        return result

    return interrupted


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


def test_continuations_stop_one_by_one(engine: Engine) -> None:
    """A row that has ended leaves the others as they would be alone."""
    stop_ids = tuple(range(0, 512, 7))
    ends = Engine(engine.decoder, dataclasses.replace(engine.tokenizer, stop_ids=stop_ids))
    sampling = Sampling(n=4, seed=1, max_tokens=30, temperature=1.5, top_k=0, top_p=1.0)
    lengths = dict.fromkeys(range(4), 0)
    for piece in ends.session().stream(PROMPT, sampling):
        lengths[piece.index] += len(piece.token_ids)
    assert len(set(lengths.values())) > 1


def test_the_same_seed_gives_the_same_text(engine: Engine) -> None:
    sampling = Sampling(seed=3, max_tokens=16, ignore_eos=True)
    assert ids_of(engine.session(), PROMPT, sampling) == ids_of(engine.session(), PROMPT, sampling)


@pytest.mark.parametrize("runner", ["numpy", "modules"], indirect=True)
def test_an_int8_cache_is_keys_and_values_rounded_to_bytes(
    model: Gemma3, decoder: Decoder, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: a plain cache with the rounding written out gives the same scores.

    (What the kernels write is compared to the bit in test_slots.py.)
    """
    small = Engine(decoder, tiny_tokenizer, chunk=8, kv_format="int8").score(PROMPT)
    exact = Engine(decoder, tiny_tokenizer, chunk=8).score(PROMPT)
    put, put_tensors = FloatStore.put, FloatTensors.put

    def put_rounded(self: FloatStore, slots: Integers, new: Floats) -> None:
        steps = np.float32(np.float16(np.abs(new).max(-1, keepdims=True) / np.float32(127)))
        put(self, slots, np.round(new / steps) * steps)

    def put_rounded_tensors(self: FloatTensors, slots: Tensor, new: Tensor) -> None:
        steps = (new.abs().amax(-1, keepdim=True) / 127).half().float()
        put_tensors(self, slots, torch.round(new / steps) * steps)

    monkeypatch.setattr(FloatStore, "put", put_rounded)
    monkeypatch.setattr(FloatTensors, "put", put_rounded_tensors)
    expected = Engine(decoder, tiny_tokenizer, chunk=8).score(PROMPT)
    allowed = 1e-9  # float32 in the same order, to the last bits
    assert divergence(small, expected) < allowed < divergence(small, exact)
    with torch.inference_mode(), off(as_modules(decoder)):
        wrong = decoder
        if isinstance(decoder, NativeDecoder):  # a program reads norms when it is written
            wrong = NativeDecoder(decoder.config, Weights(decoder.weights))
        assert divergence(Engine(wrong, tiny_tokenizer, chunk=8).score(PROMPT), expected) > allowed


def test_scores_are_the_plain_forward(engine: Engine, model: Gemma3) -> None:
    with torch.inference_mode():
        plain = model.logits(model(torch.tensor([PROMPT]), torch.arange(len(PROMPT))[None]))[0]
    scores = engine.score(PROMPT)
    assert scores.dtype == np.float32 and scores.shape == (len(PROMPT), 512)
    assert np.abs(scores - plain.numpy()).max() < 1e-4


def test_generation_ends_where_the_context_does(
    decoder: Decoder, tiny_tokenizer: Tokenizer
) -> None:
    session = Engine(decoder, tiny_tokenizer, context=24, chunk=8).session()
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
    decoder: Decoder, tiny_tokenizer: Tokenizer, ids: list[int], message: str
) -> None:
    session = Engine(decoder, tiny_tokenizer, context=24).session()
    with pytest.raises((InputError, ContextLengthError), match=message):
        next(iter(session.stream(ids, GREEDY)))


def test_a_broken_weight_is_named(runner: str, tiny_tokenizer: Tokenizer) -> None:
    broken = tiny_model(CONFIGS[runner])
    broken.layers[2].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(FileFormatError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN"):
        Engine(made(runner, broken), tiny_tokenizer).score(PROMPT)


def test_scores_that_overflow_name_no_weight(runner: str, tiny_tokenizer: Tokenizer) -> None:
    loud = tiny_model(dataclasses.replace(CONFIGS[runner], final_logit_softcapping=None))
    loud.norm.weight.fill_(3e38)
    with pytest.raises(FileFormatError, match="no weight is broken; the activations overflow"):
        Engine(made(runner, loud), tiny_tokenizer).score(PROMPT)


def test_what_memory_has_no_room_for_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, hidden states and attention probabilities, each where it is what does not fit."""
    tokens, config = Tokens(PROMPT), engine.decoder.config
    modules = as_modules(engine.decoder)
    logits = 4 * len(PROMPT) * config.vocab_size
    monkeypatch.setattr("gemelo.engine.engine.available_bytes", lambda: logits)
    engine.score(PROMPT)
    forward(modules, tokens)
    for more in ({"output_hidden_states": True}, {"output_attentions": True}):
        with pytest.raises(UnavailableError, match="GiB of memory are free; give fewer tokens"):
            forward(modules, tokens, **more)
    monkeypatch.setattr("gemelo.engine.engine.available_bytes", lambda: logits - 1)
    for ask in (lambda: engine.score(PROMPT), lambda: forward(modules, tokens)):
        with pytest.raises(UnavailableError, match=f"what is asked of {len(PROMPT)} tokens"):
            ask()
