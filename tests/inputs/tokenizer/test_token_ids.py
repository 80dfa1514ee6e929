"""Token ids in whatever form they come, and what is none."""

from __future__ import annotations

import array
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemelo.api import Model, load
from gemelo.engine.sampler import Sampling
from gemelo.errors import InputError
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.tokenizer.token_ids import MOST_IDS, token_id, token_ids

IDS = [2, 300, 5]
FORMS: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(IDS),
    "NumPy's integers": lambda: [np.int64(2), np.uint16(300), np.int8(5)],
    "array": lambda: np.array(IDS),
    "small unsigned array": lambda: np.array(IDS, np.uint16),
    "every other of an array": lambda: np.array([2, 0, 300, 0, 5])[::2],
    "tensor": lambda: torch.tensor(IDS),
    "small tensor": lambda: torch.tensor(IDS, dtype=torch.int16),
    "scalars of tensors": lambda: [torch.tensor(2), 300, np.array(5)],
    "array of the library": lambda: array.array("q", IDS),
    "batch of one in an array": lambda: np.array([IDS]),
    "batch of one in a tensor": lambda: torch.tensor([IDS]),
    "iterator": lambda: iter(IDS),
    "generator": lambda: (token for token in IDS),
}
NONE: dict[str, Callable[[], Any]] = {
    "sparse": lambda: torch.tensor(IDS).to_sparse(),
    "meta": lambda: torch.zeros(3, dtype=torch.long, device="meta"),
    "more than memory holds": lambda: np.broadcast_to(np.int64(2), (1 << 40,)),
    "rows of an array": lambda: np.array([IDS, IDS]),
    "a batch of batches": lambda: np.array([[IDS]]),
    "no row": lambda: np.zeros((0, 3), np.int64),
    "a row of floats": lambda: torch.tensor([[2.0, 300.0]]),
    "a number": lambda: np.array(7),
    "rows of a tensor": lambda: torch.tensor([IDS, IDS]),
    "rows": lambda: [IDS],
    "floats": lambda: [2.0, 300.0],
    "float array": lambda: np.array([2.0, 300.0]),
    "bfloat16 tensor": lambda: torch.tensor([2.0], dtype=torch.bfloat16),
    "truth": lambda: [True, False],
    "truth in an array": lambda: np.array([True]),
    "NumPy's truth": lambda: [np.True_],
    "a tensor's truth": lambda: [torch.tensor(True)],
    "nothing": lambda: [None],
    "bytes": lambda: b"abc",
    "more bytes": lambda: bytearray(b"abc"),
    "a view of bytes": lambda: memoryview(b"abc"),
    "a set": lambda: {2, 300},
    "pairs": lambda: {2: 300},
    "an integer": lambda: 5,
    "None": lambda: None,
    "a list of arrays": lambda: [np.array([2, 300])],
}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load(tiny_checkpoint)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_ids_in_every_form(form: Callable[[], Any]) -> None:
    found = token_ids(form())
    assert found == IDS and {type(token) for token in found} == {int}


@pytest.mark.parametrize("form", NONE.values(), ids=NONE)
def test_what_is_no_ids(form: Callable[[], Any]) -> None:
    with pytest.raises(InputError) as error:
        token_ids(form())
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_errors_tell_shape_and_dtype() -> None:
    with pytest.raises(InputError, match=r"token ids of shape \(2, 3\); give one dimension"):
        token_ids(torch.tensor([IDS, IDS]))
    with pytest.raises(InputError, match=r"array of torch.float32 and shape \(1, 2\): 2.0 is not"):
        token_ids(torch.tensor([[2.0, 300.0]]))
    with pytest.raises(InputError, match=r"array of float64 and shape \(2,\): 2.5 is not a token"):
        token_ids(np.array([2.5, 300.0]))


def test_texts_are_no_ids() -> None:
    with pytest.raises(InputError, match="'2' is not a token id"):
        token_ids(["2", "300"])


def test_one_id() -> None:
    assert [token_id(one) for one in (5, np.uint8(5), torch.tensor(5), np.array(5))] == [5] * 4
    for other in (5.0, True, np.True_, torch.tensor(True), torch.tensor([5]), "5", None):
        with pytest.raises(InputError, match="is not a token id"):
            token_id(other)


def test_an_iterator_without_end() -> None:
    with pytest.raises(InputError, match=f"more than {MOST_IDS} token ids"):
        token_ids(count())


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_wherever_ids_enter(model: Model, form: Callable[[], Any]) -> None:
    settings: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "ignore_eos": True}
    wanted = model.generate(IDS, **settings)
    assert model.generate(form(), **settings).token_ids == wanted.token_ids
    assert model.generate(Prompt(form()), **settings).prompt_token_ids == tuple(IDS)
    assert len([*model.stream(form(), **settings)]) == 2
    assert len([*model.session().stream(form(), Sampling(**settings))]) == 2
    assert torch.equal(model.logits(form()), model.logits(IDS))
    assert model.tokens(form()).ids == tuple(IDS) == model.prompt(form()).ids
    assert torch.equal(model.forward(form()).logits, model.forward(IDS).logits)
    session = model.session()
    session.write(form())
    assert session.ids == IDS and session.read(form()).shape == (model.config.vocab_size,)
    tokenizer = model.tokenizer
    assert tokenizer.decode(form()) == tokenizer.decode(IDS)
    assert tokenizer.pieces(form()) == tokenizer.pieces(IDS)


@pytest.mark.parametrize("form", NONE.values(), ids=NONE)
def test_nowhere_else(model: Model, form: Callable[[], Any]) -> None:
    """One line each, before anything runs."""
    session = model.session()
    for taker in (
        model.generate,
        model.stream,
        model.logits,
        model.forward,
        model.tokens,
        session.read,
        lambda ids: session.write(ids),
        lambda ids: next(session.stream(ids, Sampling())),
        lambda ids: model.generate(Prompt(ids)),
        model.tokenizer.decode,
        model.tokenizer.pieces,
    ):
        with pytest.raises(InputError):
            taker(form())
    assert session.ids == []


@pytest.mark.parametrize("empty", [[], (), np.array([], np.int64), torch.tensor([]), iter(())])
def test_an_empty_prompt(model: Model, empty: Any) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        model.generate(empty)


@pytest.mark.parametrize("token", [-1, 512, 1 << 70, np.int64(-5), np.uint64(2**63)])
def test_ids_outside_of_the_vocabulary(model: Model, token: Any) -> None:
    for taker in (model.generate, model.logits, model.session().read):
        with pytest.raises(InputError, match=f"token id {int(token)} is outside 0 to 511"):
            taker([2, token])
    with pytest.raises(InputError, match="out of range"):
        model.tokenizer.decode([token])


@pytest.mark.parametrize("field", ["pictures", "recordings"])
def test_a_prompt_of_other_things(model: Model, field: str) -> None:
    for things in (("a.png",), "a.png", 5, [None], [np.zeros(3)]):
        with pytest.raises(InputError, match=f"a prompt's {field} are a list of"):
            model.generate(Prompt((2, 5), **{field: things}))


def test_one_message_alone(model: Model) -> None:
    with pytest.raises(InputError, match="a prompt is text, a list of messages or a list of"):
        model.generate({"role": "user", "content": "Hi"})  # type: ignore[arg-type]
