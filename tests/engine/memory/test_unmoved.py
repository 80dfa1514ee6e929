"""Matrices that wait for the first token: a prompt read where they lie in the file, and the same
bits when they have moved, whenever that is."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest

from gemelo.config.sampling import Sampling
from gemelo.engine import step
from gemelo.engine.engine import Engine
from gemelo.engine.memory import repack
from gemelo.engine.memory.pages import present_bytes
from gemelo.engine.memory.repack import moved_or_waiting, repacked, unmoved
from gemelo.engine.native_decoder import NativeDecoder
from gemelo.engine.tokens import Tokens
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import cpu
from gemelo.kernels.quants import FORMATS, Floats, Packed
from gemelo.kernels.repacked import Panels, Unmoved
from gemelo.weights.mapped import map_file, tensor_in
from gemelo.weights.tensors import Weights
from tests.engine.memory.conftest import linux
from tests.kernels.matrices import FLOATS, random_weight
from tests.native import needs_native
from tests.quantised import GEMMA3, GEMMA3N, IDS, cache_of, made

pytestmark = needs_native
WIDE = dataclasses.replace(GEMMA3, hidden_size=256, intermediate_size=256)  # blocks of 256 too
BLOCKS = sorted(cpu.FORMATS - set(FLOATS))
GREEDY = Sampling(temperature=0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> NativeDecoder:
    """Its matrices lie in a file."""
    decoder = made(WIDE, "q4_0")
    path = tmp_path_factory.mktemp("weights") / "all"
    path.write_bytes(b"".join(w.blocks.tobytes() for w in decoder.weights.values()))
    file, at, weights = map_file(path), 0, {}
    for name, weight in decoder.weights.items():
        weights[name] = tensor_in(file, at, weight.nbytes, weight.format, weight.shape)
        at += weight.nbytes
    return NativeDecoder(decoder.config, Weights(weights))


def waiting(decoder: NativeDecoder) -> NativeDecoder:
    """The same decoder, its matrices about to move."""
    panels = moved_or_waiting(decoder.config, decoder.weights)
    assert isinstance(panels, Unmoved)
    return NativeDecoder(decoder.config, decoder.weights, panels)


def moved(decoder: NativeDecoder) -> NativeDecoder:
    return NativeDecoder(decoder.config, decoder.weights, repacked(decoder.config, decoder.weights))


def of_random_blocks(name: str) -> NativeDecoder:
    """A decoder with every matrix in a format."""
    decoder = made(WIDE, "q4_0")
    blocks = {
        matrix: random_weight(FORMATS[name], *weight.shape)
        for matrix, weight in decoder.weights.items()
        if len(weight.shape) == 2
    }
    return NativeDecoder(decoder.config, Weights({**decoder.weights, **blocks}))


def scores(decoder: NativeDecoder, given: int, more: int = 3) -> Floats:
    """After a prompt, and after each of a few tokens more."""
    cache = cache_of(decoder, chunk=128)
    ids = (IDS * 2)[: given + more]
    found = [step.prefill(decoder, cache, Tokens(ids[:given]), 0)]
    found += [step.decode(decoder, cache, ids[at], at) for at in range(given, len(ids))]
    return np.stack(found)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_first_prompt_has_the_bits_of_panels(isa: str, name: str) -> None:
    decoder = of_random_blocks(name)
    for given in (1, 2, 7, 16, 17, 40):
        late = waiting(decoder)
        first = scores(late, given, more=0)
        assert isinstance(late.panels, Unmoved)
        then = scores(late, given)
        assert isinstance(late.panels, Panels)
        assert np.array_equal(then, scores(moved(decoder), given))
        assert np.array_equal(first[0], then[0])


def test_plain_floats_wait_too(tmp_path: Path) -> None:
    decoder = made(WIDE, "f16")
    name = "layers.0.mlp.up_proj.weight"
    weight = decoder.weights[name]
    (tmp_path / "weights").write_bytes(weight.blocks.tobytes())
    file = map_file(tmp_path / "weights")
    decoder.weights.replaced(name, tensor_in(file, 0, weight.nbytes, weight.format, weight.shape))
    late = waiting(decoder)
    first = scores(late, 5)
    assert isinstance(late.panels, Panels) and late.panels.has(name)
    assert np.array_equal(first, scores(decoder, 5))


@pytest.mark.parametrize(("tokens", "waits"), [(1, True), (64, True), (65, False)])
def test_a_long_first_prompt_does_not_wait(tokens: int, waits: bool) -> None:
    late = waiting(made(WIDE, "q4_0"))
    scores(late, tokens, more=0)
    assert isinstance(late.panels, Unmoved) == waits


def test_every_second_step_comes_after_the_move() -> None:
    late = waiting(made(WIDE, "q4_0"))
    cache = cache_of(late)
    assert late.prepare(64) == 0
    step.write(late, cache, Tokens(IDS[:3]), 0)
    assert isinstance(late.panels, Unmoved)
    step.write(late, cache, Tokens(IDS[3:4]), 3)
    assert isinstance(late.panels, Panels)
    assert late.prepare(1000) == 0


def test_what_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gemma 3n, and what is large."""
    nested, large = made(GEMMA3N, "q4_0"), made(WIDE, "q4_0")
    assert isinstance(moved_or_waiting(nested.config, nested.weights), Panels)
    monkeypatch.setattr(repack, "_WAITING_BYTES", 1000)
    assert isinstance(moved_or_waiting(large.config, large.weights), Panels)
    monkeypatch.setattr(repack, "available_bytes", lambda: 0)
    assert moved_or_waiting(large.config, large.weights) is None


def test_an_interrupt_of_the_move_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = made(WIDE, "q4_0")
    pieces: list[int] = []

    def third(blocks: object) -> None:
        pieces.append(1)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(repack, "release", third)
    late = waiting(decoder)
    first = scores(late, 5, more=0)
    with pytest.raises(KeyboardInterrupt):
        late.prepare(1)
    assert isinstance(late.panels, Unmoved)
    assert np.array_equal(scores(late, 5)[:1], first)
    assert isinstance(late.panels, Panels)
    assert np.array_equal(scores(late, 5), scores(moved(decoder), 5))


def test_two_threads_step_while_matrices_move() -> None:
    decoder = made(WIDE, "q4_0")
    late, found = waiting(decoder), [np.empty(0, np.float32)] * 4
    moves: list[float] = []

    def run(place: int) -> None:
        moves.append(late.prepare(1))
        found[place] = scores(late, 5 + place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
    scores(late, 1, more=0)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, one in enumerate(found):
        assert np.array_equal(one, scores(moved(decoder), 5 + place))
    assert any(moves)


@linux
def test_after_the_move_memory_holds_one_copy(mapped: NativeDecoder) -> None:
    late = waiting(mapped)
    assert isinstance(late.panels, Unmoved)
    room = late.panels.room
    scores(late, 5, more=0)
    head = mapped.weights["embed_tokens.weight"].blocks
    assert present_bytes(head) > 0 and not room.any()
    late.prepare(1)
    assert isinstance(late.panels, Panels) and late.panels.room is room and room.any()
    assert present_bytes(head) == 0


def test_a_part_that_panels_cannot_give_is_read_as_rows() -> None:
    weight = Packed(np.zeros((16, 72), np.uint8), FORMATS["q4_0"])
    found = Unmoved({"w": weight}, {"r": weight})
    assert found.has("w") and found.has("w", 64) and not found.has("w", 96) and not found.has("r")
    assert found.nbytes == found.move().nbytes


# ---- turns ---------------------------------------------------------------------------------------


@pytest.fixture
def late() -> NativeDecoder:
    return waiting(made(WIDE, "q4_0"))


def test_the_move_comes_between_the_first_two_tokens(
    late: NativeDecoder, tiny_tokenizer: Tokenizer
) -> None:
    engine = Engine(late, tiny_tokenizer)
    engine.load_s_due, session = 3.0, engine.session()
    pieces = session.stream(IDS[:5], GREEDY)
    first = next(pieces)
    assert isinstance(late.panels, Unmoved) and session.timings.repack_s == 0
    second = next(pieces)
    assert isinstance(late.panels, Panels)
    moving_s = session.timings.repack_s
    assert moving_s > 0 and session.timings.load_s == 3.0
    ids = [first.token_ids, second.token_ids, *(piece.token_ids for piece in pieces)]
    assert session.timings.repack_s == moving_s
    session = Engine(moved(late), tiny_tokenizer).session()
    assert ids == [piece.token_ids for piece in session.stream(IDS[:5], GREEDY)]
    assert session.timings.repack_s == session.timings.load_s == 0


def test_an_answer_of_one_token_moves_nothing_and_the_next_turn_does(
    late: NativeDecoder, tiny_tokenizer: Tokenizer
) -> None:
    session = Engine(late, tiny_tokenizer).session()
    one = dataclasses.replace(GREEDY, max_tokens=1)
    first = session.generate(IDS[:5], one)
    assert isinstance(late.panels, Unmoved)
    second = session.generate(IDS[:5], one)
    assert isinstance(late.panels, Panels)
    assert second.timings.load_s > 0 and second.timings.repack_s == 0
    assert second.choices[0].token_ids == first.choices[0].token_ids


def test_a_long_prompts_move_is_counted_as_loading(
    late: NativeDecoder, tiny_tokenizer: Tokenizer
) -> None:
    session = Engine(late, tiny_tokenizer).session()
    found = session.generate((IDS * 2)[:65], GREEDY)
    assert found.timings.load_s > 0 and found.timings.repack_s == 0


def test_several_answers_and_a_stream_that_is_left(
    late: NativeDecoder, tiny_tokenizer: Tokenizer
) -> None:
    several = dataclasses.replace(GREEDY, n=3, temperature=1, seed=1)
    found = Engine(late, tiny_tokenizer).session().generate(IDS[:5], several)
    assert isinstance(late.panels, Panels)
    fresh = waiting(late)
    session = Engine(fresh, tiny_tokenizer).session()
    stream = session.stream(IDS[:5], GREEDY)
    next(stream)
    stream.close()
    assert isinstance(fresh.panels, Unmoved)
    again = session.generate(IDS[:5], several)
    assert [c.token_ids for c in again.choices] == [c.token_ids for c in found.choices]


def test_nothing_moves_of_what_stays(tiny_tokenizer: Tokenizer) -> None:
    decoder = made(WIDE, "q4_0")
    found = Engine(decoder, tiny_tokenizer).session().generate((IDS * 2)[:65], GREEDY)
    assert decoder.panels is None and found.timings.load_s == found.timings.repack_s == 0


def test_the_room_is_taken_when_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = made(WIDE, "q4_0")
    found = unmoved(decoder.config, decoder.weights)
    assert found is not None
    monkeypatch.setattr("gemelo.kernels.repacked.large_pages", lambda nbytes: 1 / 0)
    assert found.move().room is found.room
