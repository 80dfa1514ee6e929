"""Sub-models as views: no copy, the slice's logits, switching, rebuilding, policies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gemelo.config import LAYER_TYPES, Gemma3nConfig, Submodel
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.elastic.policy import Moment, difficulty, fixed, latency, memory
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.programs.backends import NativeBackend
from gemelo.engine.session import REBUILD_TOKENS, Session
from gemelo.engine.tokens import Tokens
from gemelo.errors import InputError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import native
from gemelo.kernels.quants import Floats
from gemelo.models.gemma3n import Gemma3n
from tests.conftest import TINY, tiny_model
from tests.divergence import divergence, off
from tests.matformer import CONFIG, GREEDY, PROMPT, SMALL, UPPER, ids_of, tiny_gemma3n
from tests.quantised import native_of

SUMS = (
    1e-7  # divergence of float32 sums in other orders, in nats; a norm 5 % off makes 1000 times it
)


@pytest.fixture(scope="module")
def model() -> Gemma3n:
    return tiny_gemma3n(CONFIG)


@pytest.fixture(scope="module")
def decoder(model: Gemma3n) -> NativeDecoder:
    return native_of(model)


@pytest.fixture
def session(decoder: NativeDecoder, tiny_tokenizer: Tokenizer) -> Session:
    return Engine(decoder, tiny_tokenizer, chunk=16).session()


def sliced(model: Gemma3n, submodel: Submodel) -> Gemma3n:
    """A copy of the sub-model as a model of its own, cut by hand: the oracle of every view."""
    config = submodel.config(model.config)
    assert isinstance(config, Gemma3nConfig)
    kept = submodel.kept_layers(model.config)
    twin = Gemma3n(config).eval()
    width = CONFIG.hidden_size_per_layer_input
    columns = [c for layer in kept for c in range(layer * width, (layer + 1) * width)]
    for name, weight in model.state_dict().items():
        if name == "embed_tokens_per_layer.weight":
            weight = weight[:, columns]
        if name == "per_layer_model_projection.weight":
            weight = weight[columns]
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            if int(layer) not in kept:
                continue
            place = kept.index(int(layer))
            ffn = submodel.ffn_widths[place]
            if rest in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
                weight = weight[:ffn]
            if rest == "mlp.down_proj.weight":
                weight = weight[:, :ffn]
            name = f"layers.{place}.{rest}"
        twin.get_parameter(name).copy_(weight)
    return twin


@torch.inference_mode()
def logits(model: Gemma3n, ids: list[int]) -> Floats:
    tokens = torch.tensor([ids])
    found: Floats = model.logits(model(tokens, torch.arange(len(ids))[None]))[0].numpy()
    return found


@pytest.mark.parametrize("runner", ["kernels", "numpy", "modules"])
@pytest.mark.parametrize("submodel", [SMALL, UPPER], ids=["small", "upper"])
def test_a_view_is_the_slice(
    model: Gemma3n, submodel: Submodel, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if runner == "numpy":
        monkeypatch.setattr(native, "module", None)
    made: Callable[[Gemma3n], Decoder] = ModuleDecoder if runner == "modules" else native_of
    alone = sliced(model, submodel)
    view, twin = SubmodelViews(made(model)).view(submodel), made(alone)
    assert isinstance(view, type(twin))
    found = step.score(view, view.cache(64), PROMPT)
    assert np.abs(found - step.score(twin, twin.cache(64), PROMPT)).max() < 1e-5
    assert divergence(found, logits(alone, PROMPT)) < SUMS


def test_a_norm_five_percent_off_is_no_other_order_of_sums(model: Gemma3n) -> None:
    alone = sliced(model, SMALL)
    right = logits(alone, PROMPT)
    with torch.inference_mode(), off(ModuleDecoder(alone), layer=5):
        assert divergence(logits(alone, PROMPT), right) > 1000 * SUMS


def test_a_view_of_modules_owns_nothing(model: Gemma3n) -> None:
    """Every parameter of the view is a parameter of the whole: the same object, the same bytes."""
    view = SubmodelViews(ModuleDecoder(model)).view(SMALL)
    assert isinstance(view, ModuleDecoder)
    whole = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in whole for parameter in view.module.parameters())
    assert len(list(model.layers)) == 14  # and the whole has not changed


def test_a_view_of_a_program_holds_the_wholes_memory(decoder: NativeDecoder) -> None:
    """The same weights, and of what its steps name nothing but norms and numbers of rows anew."""
    view = SubmodelViews(decoder).view(SMALL)
    assert isinstance(view, NativeDecoder)
    assert view.weights is decoder.weights and view.table is decoder.table
    assert view.nested_in == (decoder, SMALL) and len(decoder.layer_indices) == 14
    assert list(view.layer_indices) == list(SMALL.kept_layers(CONFIG))
    backend = view._backend
    if isinstance(backend, NativeBackend):
        own = {weight.address for weight in decoder.weights.values() if len(weight.shape) == 2}
        copied = [x for x in backend.kept if x.__array_interface__["data"][0] not in own]
        assert sum(x.nbytes for x in copied) < decoder.weights.nbytes / 20


def test_a_view_is_made_once(decoder: NativeDecoder) -> None:
    sizes = SubmodelViews(decoder)
    assert sizes.view(SMALL) is sizes.view(dataclasses.replace(SMALL, name="again"))
    assert sizes.view(Submodel.whole(CONFIG)) is decoder


def test_a_view_of_a_view_is_of_the_whole(model: Gemma3n, decoder: NativeDecoder) -> None:
    """Its layers are the whole's, counted twice over; so are the modules it stands for."""
    narrow = decoder.view(SMALL)
    inner = Submodel((32,) * 11, (8,))
    view = narrow.view(inner)
    kept = SMALL.kept_layers(CONFIG)
    assert list(view.layer_indices) == [*kept[:8], *kept[9:]]
    own = Gemma3n(inner.config(narrow.config)).eval()
    expected = sliced(sliced(model, SMALL), inner)
    assert own.config == expected.config
    found = step.score(view, decoder.cache(64), PROMPT)
    assert divergence(found, logits(expected, PROMPT)) < SUMS
    modules = ModuleDecoder.of(view)
    assert divergence(found, step.score(modules, modules.cache(64), PROMPT)) < SUMS


def test_a_session_in_a_size_is_that_slice(
    model: Gemma3n, session: Session, tiny_tokenizer: Tokenizer
) -> None:
    session.use(SMALL)
    alone = Engine(native_of(sliced(model, SMALL)), tiny_tokenizer, chunk=16).session()
    assert ids_of(session) == ids_of(alone)


def test_switching_allocates_nothing(session: Session) -> None:
    ids_of(session)
    before = session.cache.nbytes
    buffers = {layer: id(stores) for layer, stores in session.cache.stores.items()}
    session.use(SMALL)
    ids_of(session, [*PROMPT, 400])
    session.use("whole")
    assert session.cache.nbytes == before
    assert {layer: id(stores) for layer, stores in session.cache.stores.items()} == buffers


def test_every_position_knows_who_wrote_it(session: Session) -> None:
    first = ids_of(session, sampling=dataclasses.replace(GREEDY, max_tokens=5))
    session.use(SMALL)
    held = [*PROMPT, *first]
    ids_of(session, held, dataclasses.replace(GREEDY, max_tokens=4))
    assert session.written_by == ["whole"] * (len(held) - 1) + ["small"] * 4
    assert session.num_stale == len(held) - 1
    assert session.stats.tokens == {"whole": len(held) - 1, "small": 4}
    assert session.stats.switches == 1
    assert session.stats.answered == {"whole": 5, "small": 4}


def test_the_whole_is_described_once(decoder: NativeDecoder) -> None:
    views = SubmodelViews(decoder)
    assert views.whole is views.whole


def caches_equal(ours: KVCache, theirs: KVCache) -> bool:
    """The same positions, and bit for bit the same keys and values in them."""
    tables, others = ours.slots.tables, theirs.slots.tables
    if not all(np.array_equal(tables[kind], others[kind]) for kind in LAYER_TYPES):
        return False
    for layer, (k, v) in ours.stores.items():
        real = tables[CONFIG.layer_types[layer]] >= 0
        other_k, other_v = theirs.stores[layer]
        for a, b in ((k, other_k), (v, other_v)):
            if not np.array_equal(a.view(len(real))[real], b.view(len(real))[real]):
                return False
    return True


def clean(decoder: Decoder, tokenizer: Tokenizer, ids: list[int], chunk: int) -> KVCache:
    """A prefill of `ids` in the whole size, `chunk` tokens at a time."""
    cache = Engine(decoder, tokenizer, chunk=16).cache()
    for begin in range(0, len(ids), chunk):
        step.write(decoder, cache, Tokens(ids[begin : begin + chunk]), begin)
    return cache


def test_repair_now_is_a_clean_prefill_bit_for_bit(
    decoder: NativeDecoder, session: Session, tiny_tokenizer: Tokenizer
) -> None:
    session.use(SMALL)
    ids_of(session)
    assert session.num_stale == 0
    session.use("whole", rebuild="now")
    assert session.num_stale == 0 and set(session.written_by) == {"whole"}
    assert session.stats.rebuilds == 1
    assert caches_equal(session.cache, clean(decoder, tiny_tokenizer, session.ids, 16))


def test_lazy_repair_catches_up_beside_generation(
    decoder: NativeDecoder, session: Session, tiny_tokenizer: Tokenizer
) -> None:
    session.use(SMALL)
    ids_of(session)
    held = list(session.ids)
    session.use("whole", rebuild="lazy")
    assert session.num_stale == len(held)
    longer = [*held, 400]
    for _ in session.stream(longer, dataclasses.replace(GREEDY, max_tokens=40)):
        if not session.num_stale:
            break
    assert session.stats.rebuilds == 1 and set(session.written_by) == {"whole"}
    reference = clean(decoder, tiny_tokenizer, session.ids, REBUILD_TOKENS + 1)
    assert caches_equal(session.cache, reference)


def test_lazy_rebuild_catches_up_beside_a_draft(session: Session) -> None:
    """Guesses that are taken back do not throw away what was encoded."""
    session.use(SMALL)
    ids_of(session)
    session.speculate(SMALL, gamma=3)
    session.use("whole", rebuild="lazy")
    for _ in session.stream([*session.ids, 400], dataclasses.replace(GREEDY, max_tokens=60)):
        pass
    assert session.stats.rebuilds == 1 and session.num_stale == 0


def test_a_policy_goes_with_one_continuation(session: Session) -> None:
    session.policy = fixed(SMALL)
    with pytest.raises(InputError, match="which n > 1 excludes"):
        session.generate([2, 300], dataclasses.replace(GREEDY, n=2))
    session.speculate(SMALL)
    with pytest.raises(InputError, match="which a draft excludes"):
        session.generate([2, 300], GREEDY)


def test_a_draft_goes_with_one_continuation(session: Session) -> None:
    session.speculate(SMALL)
    with pytest.raises(InputError, match="n = 2: a draft guesses for one continuation; set n to 1"):
        session.generate([2, 300], dataclasses.replace(GREEDY, n=2))
    session.draft = None
    assert len(session.generate([2, 300], dataclasses.replace(GREEDY, n=2)).choices) == 2


@pytest.mark.parametrize("policy", ["latency:20", 20.0, SMALL])
def test_a_policy_that_cannot_be_called_is_refused_when_it_is_set(
    session: Session, policy: Any
) -> None:
    session.policy = chosen = fixed(SMALL)
    with pytest.raises(InputError, match="expected a function, or None: gemelo.latency_policy"):
        session.policy = policy
    assert session.policy is chosen
    session.policy = None


@pytest.mark.parametrize("mode", ["Now", "banana", None, 1, []])
def test_a_rebuild_mode_that_is_none_is_refused(session: Session, mode: Any) -> None:
    with pytest.raises(InputError, match="rebuild = .*; expected off, lazy, now"):
        session.use(SMALL, rebuild=mode)
    assert session.active == Submodel.whole(CONFIG) and session.stats.switches == 0
    with pytest.raises(InputError, match="rebuild = .*; expected off, lazy, now"):
        session.rebuild_mode = mode
    assert session.rebuild_mode == "off"
    session.rebuild_mode = "lazy"
    session.use(SMALL, "now")
    assert session.rebuild_mode == "now" and session.active == SMALL


def test_a_policy_chooses_a_submodel(session: Session) -> None:
    session.policy = lambda moment: None  # type: ignore[assignment, return-value]
    with pytest.raises(InputError, match="the policy chose None; expected a Submodel"):
        session.generate([2, 300], GREEDY)


def test_a_size_changed_while_a_prompt_is_read(session: Session) -> None:
    """Who wrote it is who ran, not who was asked for meanwhile."""
    session.read([2, *range(300, 330)], lambda done, total: session.use(SMALL))
    assert set(session.written_by) == {"whole"} and session.num_stale == 31


def test_off_keeps_what_is_there(session: Session) -> None:
    session.use(SMALL)
    ids_of(session)
    session.use("whole")
    ids_of(session, [*session.ids, 400])
    assert session.num_stale > 0 and session.stats.rebuilds == 0


def test_the_exact_zone_needs_no_repair_and_shares_the_cache(
    decoder: NativeDecoder, session: Session, tiny_tokenizer: Tokenizer
) -> None:
    """Sizes that differ above the last keys write the very same cache."""
    session.use(UPPER)
    ids_of(session, PROMPT, dataclasses.replace(GREEDY, max_tokens=1))
    session.use("whole", rebuild="now")
    assert session.num_stale == 0 and session.stats.rebuilds == 0
    whole = Engine(decoder, tiny_tokenizer, chunk=16).session()
    list(whole.stream(PROMPT, dataclasses.replace(GREEDY, max_tokens=1)))
    assert caches_equal(session.cache, whole.cache)


def test_an_interrupted_repair_is_begun_again(session: Session) -> None:
    session.use(SMALL)
    ids_of(session)
    session.use("whole", rebuild="lazy")
    stream = session.stream([*session.ids, 400], GREEDY)
    next(stream)
    next(stream)
    stream.close()
    session.use(SMALL)
    session.use("whole", rebuild="now")
    assert session.num_stale == 0


def moment(active: Submodel, step_s: float = 0.1, tokens: int = 10, sure: bool = True) -> Moment:
    scores = np.zeros(512, np.float32)
    scores[3] = 50.0 if sure else 0.0
    return Moment(active, scores, step_s, tokens)


def test_latency_goes_down_and_up_with_hysteresis() -> None:
    full = Submodel.whole(CONFIG)
    decide = latency(10.0, [SMALL, UPPER, full])
    assert decide(moment(full, 0.1)) == full
    for _ in range(10):
        chosen = decide(moment(full, 0.2))
    assert chosen == UPPER
    for _ in range(20):
        chosen = decide(moment(UPPER, 0.095))
    assert chosen == UPPER  # within a tenth of the target: stay
    for _ in range(20):
        chosen = decide(moment(UPPER, 0.02))
    assert chosen == full
    assert latency(10.0, [SMALL, full])(moment(full, 9.0, tokens=2)) == full  # too early to tell


def test_memory_descends_while_over_the_limit() -> None:
    full, used = Submodel.whole(CONFIG), [100 << 20]
    decide = memory(50 << 20, [SMALL, UPPER, full], lambda: used[0])
    assert decide(moment(full)) == UPPER and decide(moment(UPPER)) == SMALL
    assert decide(moment(SMALL)) == SMALL
    used[0] = 10 << 20
    assert decide(moment(UPPER)) == UPPER


def test_memory_is_the_process_s_own_in_bytes() -> None:
    full = Submodel.whole(CONFIG)
    over, under = (memory(limit, [SMALL, full]) for limit in (2.0**20, 2.0**50))
    assert over(moment(full)) == SMALL and under(moment(full)) == full
    for limit in (3.5, 0, -1, "3", math.nan):
        with pytest.raises(InputError, match=r"1048576 or more: 3.5 GiB are 3.5 \* 2\*\*30"):
            memory(limit, [SMALL, full])  # type: ignore[arg-type]


def test_difficulty_looks_at_entropy() -> None:
    full = Submodel.whole(CONFIG)
    decide = difficulty(UPPER, full, entropy=1.0)
    assert decide(moment(full, sure=True)) == UPPER
    assert decide(moment(UPPER, sure=False)) == full


def test_a_policy_cannot_write_the_scores_that_it_looks_at(session: Session) -> None:
    def ban(moment: Moment) -> Submodel:
        moment.scores[0] = -np.inf
        return moment.active

    session.policy = ban
    with pytest.raises(ValueError, match="read-only"):
        session.generate([2, 5], temperature=0, max_tokens=2)


def test_a_policy_is_asked_before_every_token(session: Session) -> None:
    sizes = iter([SMALL, SMALL, Submodel.whole(CONFIG)] * 20)
    session.policy = lambda moment: next(sizes)
    assert len(ids_of(session)) == 24
    assert session.stats.tokens["small"] > 10 and session.stats.switches > 10
    session.policy = fixed(UPPER)
    ids_of(session, [5, 6, 7])
    assert session.written_by[-1] == "upper"


def test_what_cannot_be_used_is_said(session: Session, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="'E2B' is cut from 35 layers and this model has 14"):
        session.use("E2B")
    with pytest.raises(InputError, match="skips a layer below 7, which owns keys"):
        session.use(Submodel((64,) * 13, (0,), "shallow"))
    gemma3 = Engine(native_of(tiny_model(TINY["one-kv-head"])), tiny_tokenizer).session()
    with pytest.raises(InputError, match="gemma3_text has no sub-models"):
        gemma3.use("E2B")
    assert gemma3.written_by == [] and gemma3.num_stale == 0
