"""The library's `Model`: prompts of every kind, completions, sub-models of one file."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemelo.api import Model, load
from gemelo.checkpoints.convert import slice as slice_
from gemelo.checkpoints.load import load_checkpoint
from gemelo.config import Gemma3nConfig, Submodel, absent_arguments
from gemelo.config.sampling import Sampling
from gemelo.engine.device import set_threads
from gemelo.engine.engine import Engine
from gemelo.engine.memory.residency import used_bytes
from gemelo.errors import FileFormatError, InputError, UnsupportedError
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.kernels import native
from gemelo.kernels.quants import FORMATS, Packed
from tests.matformer import CONFIG, PROMPT, SMALL, UPPER, tiny_gemma3n
from tests.multimodal import write
from tests.native import needs_native
from tests.quantised import native_of

GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load(tiny_checkpoint)


@pytest.fixture
def elastic(tiny_checkpoint: Path) -> Model:
    """A Gemma 3n in the place of the checkpoint's own decoder."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    return Model(
        checkpoint, Engine(native_of(tiny_gemma3n(CONFIG)), checkpoint.tokenizer, chunk=16)
    )


def test_text_and_its_ids_are_the_same_prompt(model: Model) -> None:
    ids = model.tokenizer.encode("the capital")
    text = model.generate("the capital", **GREEDY)
    assert text.prompt_token_ids == tuple(ids) and ids[0] == 2
    assert model.generate(ids, **GREEDY).token_ids == text.token_ids
    assert text.text == model.tokenizer.decode(text.token_ids)


def test_stream_is_generate_in_pieces(model: Model) -> None:
    pieces = list(model.stream("the capital", **GREEDY))
    whole = model.generate("the capital", **GREEDY)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.token_ids)
    assert pieces[-1].finish_reason == whole.finish_reason == "length"


@needs_native
@pytest.mark.parametrize(
    ("repack", "tokens", "reason"),
    [
        (False, 2, r"in use: .*\.weight"),
        (True, 1, r"in use: .*\.weight"),  # before the weights have moved
        (True, 2, r"in use, to \d+ bytes; load it"),
    ],
)
@pytest.mark.parametrize("kind", ["gguf", "directory"])
def test_a_file_that_is_cut_short_is_an_error(
    tiny_directory: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    kind: str,
    repack: bool,
    tokens: int,
    reason: str,
) -> None:
    """In the middle of a turn, where weights are read from the file, and before the next."""
    path = tmp_path / "model"
    if kind == "gguf":
        shutil.copy(tiny_checkpoint, path)
        file = path
    else:
        shutil.copytree(tiny_directory, path)
        file = path / "model.safetensors"
    model = load(path, repack=repack)
    stream = model.stream("the capital", **GREEDY)
    for _ in range(tokens):
        next(stream)
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(FileFormatError, match=f"cut short while it was {reason}"):
        list(stream)
    with pytest.raises(FileFormatError, match=rf"{file} was cut short .* load it again"):
        model.generate("the", **GREEDY)
    with pytest.raises(FileFormatError, match=rf"{file} was cut short"):
        model.scores(model.tokenizer.encode("the"))
    assert load(tiny_checkpoint).generate("the", **GREEDY).text  # others go on


def test_choices_seed_and_logprobs(model: Model) -> None:
    completion = model.generate("the", n=3, max_tokens=6, seed=1, logprobs=2, ignore_eos=True)
    assert len(completion.choices) == 3 and completion.seed == 1
    assert all(len(choice.logprobs) == 6 for choice in completion.choices)
    assert all(len(top) == 2 for top in completion.choices[1].top_logprobs)
    assert completion.text == completion.choices[0].text


def test_messages_need_a_template_and_use_it(model: Model) -> None:
    messages = [{"role": "user", "content": "hi <end_of_turn> there"}]
    with pytest.raises(UnsupportedError, match="base model"):
        model.chat(messages)
    tokenizer = dataclasses.replace(model.tokenizer, chat_template=TEMPLATE)
    checkpoint = dataclasses.replace(model.checkpoint, tokenizer=tokenizer)
    chatty = Model(checkpoint, Engine(model.engine.decoder, tokenizer))
    prompt = chatty.chat(messages, **GREEDY).prompt_token_ids
    assert prompt[0] == 2 and prompt.count(2) == 1
    assert prompt.count(106) == 1, "a control string in a message stays text"


@pytest.mark.parametrize("prompt", ["", [], [1.5], ["a", 5], [5, "a"], [["a"]], ["a", None]])
def test_prompts_that_are_none(model: Model, prompt: object) -> None:
    if prompt == "":
        assert model.generate("", **GREEDY).prompt_token_ids == (2,)
        return
    with pytest.raises(InputError):
        model.generate(prompt, **GREEDY)  # type: ignore[arg-type]


def test_all_prompts_of_a_list_are_checked_before_one_is_run(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "_generate", lambda *words: pytest.fail("one was run"))
    with pytest.raises(InputError, match="half of a surrogate pair"):
        model.generate(["the capital", "\ud800"])


def test_a_list_of_texts_is_as_many_prompts(model: Model) -> None:
    texts = ["the capital", "of", "the capital of the"]
    wanted = [load_again(model).generate(text, **GREEDY) for text in texts]
    for batch in (texts, tuple(texts)):
        found = load_again(model).generate(batch, **GREEDY)
        assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
        assert [one.prompt_token_ids for one in found] == [one.prompt_token_ids for one in wanted]
    (alone,) = model.generate(["the capital"], seed=3, max_tokens=4)
    assert alone.token_ids == model.generate("the capital", seed=3, max_tokens=4).token_ids
    for taker in (
        model.stream,
        model.scores,
        model.logits,
        model.forward,
        model.tokens,
        model.prompt,
    ):
        with pytest.raises(InputError, match=r"a list of 3 texts .* one after the other"):
            taker(texts)
    with pytest.raises(InputError, match="prompt 1 of a list is of type int: all are texts"):
        model.generate(["the", 5])  # type: ignore[list-item]


def load_again(model: Model) -> Model:
    """The same weights without a session to go on with."""
    return Model(model.checkpoint, model.engine)


def test_tokens_are_a_prompt(model: Model) -> None:
    tokens = model.tokens("the capital")
    wanted = model.generate("the capital", **GREEDY).token_ids
    assert model.generate(tokens, **GREEDY).token_ids == wanted
    assert np.array_equal(model.scores(tokens), model.scores("the capital"))


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        ("max_new_tokens", "max_new_tokens is called max_tokens here"),
        ("temp", "temp is called temperature here"),
        ("do_sample", "no setting do_sample: temperature=0 takes the likeliest"),
        ("streamer", r"no setting streamer: model.stream\(prompt\)"),
        ("output_hidden_states", r"model.forward\(prompt, output_hidden_states=True\)"),
        ("input_ids", "the prompt is the first argument"),
        ("images", r"media go into messages, as \[\{.role"),
        ("temprature", "unknown sampling setting 'temprature'; did you mean temperature"),
        ("topp", "'topp'; did you mean top_p"),
        ("max_new_token", "'max_new_token'; did you mean max_tokens"),
        ("banana", "'banana'; known: temperature, "),
    ],
)
def test_settings_of_others_are_told_by_their_names_here(
    model: Model, setting: str, cure: str
) -> None:
    for ask in (model.generate, model.stream, model.session().stream):
        with pytest.raises(InputError, match=cure):
            ask([2, 300], **{setting: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"device": None}, "device None is not one of auto, cpu"),
        ({"device": ["cpu"]}, "is not one of auto, cpu"),
        ({"device": 0.5}, "device 0.5 is not one of auto, cpu"),
        ({"threads": "2"}, "threads = '2'; expected 1 to"),
        ({"context": "1k"}, "context = '1k'; expected a whole number of tokens"),
        ({"context": 100.0}, "context = 100.0; expected a whole number of tokens"),
        ({"kv_format": "q8"}, "kv_format 'q8' is not one of plain, bf16, int8"),
        ({"ple": "gpu"}, "ple = 'gpu'; not one of disk, ram, device"),
        ({"format": "int4"}, "format 'int4' is not one of native, bf16"),
        ({"format": torch.bfloat16}, "is not one of native, bf16"),
    ],
)
def test_loading_with_what_is_none(
    tiny_checkpoint: Path, setting: dict[str, object], text: str
) -> None:
    with pytest.raises(InputError, match=text):
        load(tiny_checkpoint, **setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("setting", "cure"),
    [
        (
            "torch_dtype",
            'setting torch_dtype: weights stay in the format of their file; format="bf16"',
        ),
        ("dtype", 'format="bf16" or "f32" widens them'),
        ("device_map", 'device="auto" is CUDA where there is one'),
        ("load_in_4bit", 'format="q8_0" or "q4_0" quantises'),
        ("quantization_config", 'format="q8_0" or "q4_0" quantises'),
        ("trust_remote_code", "no code of a model is ever run"),
        ("attn_implementation", "attention is computed in one way"),
        ("n_ctx", "context=N is the most tokens"),
    ],
)
def test_loading_as_others_do_says_what_it_is_here(
    tiny_checkpoint: Path, setting: str, cure: str
) -> None:
    with pytest.raises(InputError, match=cure):
        load(tiny_checkpoint, **{setting: True})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=cure):
        load(**{setting: None})  # type: ignore[arg-type]


def test_what_nobody_means_is_python_s_own_error(tiny_checkpoint: Path) -> None:
    with pytest.raises(TypeError, match="banana"):
        load(tiny_checkpoint, banana=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("function", "table"),
    [
        (load, absent_arguments.LOADING),
        (Model.generate, absent_arguments.GENERATING),
        (Model.stream, absent_arguments.GENERATING),
        (Model.chat, absent_arguments.GENERATING),
        (Sampling, absent_arguments.GENERATING),
        (Model.forward, absent_arguments.FORWARDING),
        (PreTrainedTokenizer.__call__, absent_arguments.TOKENIZING),
        (PreTrainedTokenizer.encode, absent_arguments.TOKENIZING),
        (PreTrainedTokenizer.apply_chat_template, absent_arguments.TEMPLATING),
    ],
)
def test_nothing_that_is_taken_is_refused(
    function: Callable[..., Any], table: Mapping[str, str]
) -> None:
    taken = inspect.signature(function).parameters
    assert len(taken) > 2 and not taken.keys() & table.keys()
    assert all(sentence and "\n" not in sentence for sentence in table.values())


def test_a_prompt_by_another_name_or_none_at_all(model: Model) -> None:
    encoded = model.tokenizer("the capital")
    for ask in (model.generate, model.stream, model.forward):
        with pytest.raises(InputError, match="input_ids: the prompt is the first argument"):
            ask(**encoded)  # type: ignore[call-overload]
        with pytest.raises(InputError, match=r'of what a tokenizer gave, take \["input_ids"\]'):
            ask(encoded)
        with pytest.raises(InputError, match="no prompt, but None: a prompt is text, a list of m"):
            ask(None)
    with pytest.raises(InputError, match="no setting labels: there is no loss"):
        model.forward("the", labels=[1])  # type: ignore[call-arg]
    assert model.generate(encoded["input_ids"], **GREEDY).token_ids


def test_a_setting_that_is_none_in_a_value_of_its_own() -> None:
    with pytest.raises(InputError, match="'temprature'; did you mean temperature"):
        Sampling(temprature=1)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="max_new_tokens is called max_tokens here"):
        Sampling(max_new_tokens=1)  # type: ignore[call-arg]
    assert dataclasses.replace(Sampling(0.5), top_k=3) == Sampling(0.5, 3)
    assert pickle.loads(pickle.dumps(Sampling(0.5, 3))) == Sampling(0.5, 3)


def test_a_model_stays_in_its_process(model: Model) -> None:
    for one in (model, model.session()):
        for move in (pickle.dumps, copy.copy, copy.deepcopy, ForkingPickler.dumps):
            with pytest.raises(UnsupportedError, match="neither pickled nor copied: call gemelo.l"):
                move(one)


def test_where_a_model_lies(model: Model) -> None:
    assert model.device == "cpu"


@pytest.mark.parametrize("messages", ["hi", ["hi"], [], {"role": "user", "content": "hi"}, [2, 5]])
def test_chat_takes_messages_alone(model: Model, messages: object) -> None:
    with pytest.raises(InputError, match=r"chat takes a list of messages: \[\{"):
        model.chat(messages)  # type: ignore[arg-type]


def test_unknown_settings_are_named(model: Model) -> None:
    with pytest.raises(InputError, match="'temprature'; did you mean temperature"):
        model.generate("x", temprature=1)


def test_sampling_is_a_value_or_keywords(model: Model) -> None:
    chosen = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
    whole = model.generate("the capital", **GREEDY)
    assert model.generate("the capital", sampling=chosen).token_ids == whole.token_ids
    pieces = model.stream("the capital", sampling=chosen)
    assert [token for piece in pieces for token in piece.token_ids] == list(whole.token_ids)
    for ask in (model.generate, model.stream, model.chat):
        with pytest.raises(InputError, match="both sampling= and seed= were given"):
            ask("the capital", sampling=chosen, seed=1)


def test_loading_counts_once(tiny_checkpoint: Path) -> None:
    fresh = load(tiny_checkpoint)
    first, second = fresh.generate("x", **GREEDY), fresh.generate("x", **GREEDY)
    assert first.timings.load_s > 0 and second.timings.load_s == 0
    assert first.timings.time_to_first_token_s > first.timings.prefill_s


def test_a_submodel_is_a_model_of_the_same_bytes(elastic: Model) -> None:
    small = elastic.submodel(SMALL)
    assert small.config.num_hidden_layers == 12 and elastic.config.num_hidden_layers == 14
    assert small.engine.decoder.weights is elastic.engine.decoder.weights
    before = small.scores(PROMPT)
    assert before.shape == (len(PROMPT), 512)
    elastic.engine.decoder.weights["layers.11.mlp.up_proj.weight"].blocks[:64] = 0
    assert np.abs(small.scores(PROMPT) - before).max() > 1e-3, "it reads the whole's own memory"
    session = small.session()
    session.generate(PROMPT, **GREEDY)
    assert set(session.stats.tokens) == {"small"}


def test_a_session_can_change_size_and_draft(elastic: Model) -> None:
    wanted = elastic.submodel(UPPER).generate(PROMPT, **GREEDY).token_ids
    session = elastic.session()
    session.use(UPPER)
    assert session.generate(PROMPT, **GREEDY).token_ids == wanted
    session.use("whole")
    plain = elastic.generate(PROMPT, **GREEDY).token_ids
    for draft in (session.speculate(SMALL, gamma=3), elastic.draft(SMALL, gamma=3)):
        session = elastic.session()
        session.draft = draft
        assert session.generate(PROMPT, **GREEDY).token_ids == plain
        assert draft.rounds > 0
        assert len(repr(draft)) < 400, "its network is left out"


def test_a_submodel_drafts_with_weights_of_its_own(awake_directory: Path) -> None:
    """Of what the sub-model is cut from, and not of the file's whole."""
    whole = load(awake_directory)
    last = whole.config.num_hidden_layers - 1
    part = whole.submodel(Submodel(whole.config.ffn_widths[:last], (last,)))
    draft = part.draft("whole", gamma=2, format="f32")
    assert draft.decoder.config.ffn_widths == part.config.ffn_widths
    name = "embed_tokens.weight"
    found, own = draft.decoder.weights[name], part.engine.decoder.weights[name]
    assert np.array_equal(found.blocks, own.blocks) and found.address != own.address
    session = part.session()
    session.draft = draft
    plain = part.generate(PROMPT, **GREEDY).token_ids
    assert session.generate(PROMPT, **GREEDY).token_ids == plain


def test_more_threads_than_cores_are_not_taken(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "num_cores", lambda: 2)
    before = torch.get_num_threads()
    try:
        assert not load(tiny_checkpoint, threads=2).checkpoint.notices
        (notice,) = load(tiny_checkpoint, threads=5).checkpoint.notices
        assert notice == "threads = 5: this process has 2 cores, so 2 are used"
        assert torch.get_num_threads() == 2
    finally:
        set_threads(before)


def test_what_a_model_and_an_answer_say_of_themselves(model: Model) -> None:
    assert re.fullmatch(
        r"Model\(tiny-q8_0\.gguf: gemma3_text, 7 layers, \d+ MB of weights in q8_0, "
        r"context 256\)",
        repr(model),
    )
    completion = model.generate("the", **GREEDY)
    assert str(completion) == completion.text
    assert repr(completion) == f"Completion({completion.text!r}, 12 tokens, length)"
    several = model.generate("the", n=2, max_tokens=200, ignore_eos=True, logprobs=3)
    assert repr(several).endswith(", 200 tokens, length, 2 choices)")
    assert "..." in repr(several) and len(repr(several)) < 200
    session = model.session()
    session.write([2, 300])
    assert repr(session) == "Session(2 of 256 tokens)"
    assert repr(model.tokenizer) == (
        "Tokenizer(512 tokens, bos 2, eos 1, pad 0, stops [1, 106], without a chat template)"
    )
    ids = model.tokenizer.encode("the capital")
    assert np.array_equal(model.scores("the capital"), model.scores(ids))


def test_what_parts_of_a_gemma3n_say_of_themselves(awake_directory: Path) -> None:
    model = load(awake_directory)
    folder = awake_directory.name
    assert re.fullmatch(
        rf"Model\({folder}: gemma3n, 12 layers, \d+ MB of weights in f32, "
        r"takes image and audio, context 1024\)",
        repr(model),
    )
    part = Submodel((96,) * 5 + (64,) * 6, (7,), "mine")
    assert repr(part) == (
        "Submodel(ffn_widths=(96,) * 5 + (64,) * 6, skipped_layers=(7,), name='mine')"
    )
    assert eval(repr(part)) == part and eval(repr(Submodel((), ()))) == Submodel((), ())
    small = model.submodel(part)
    assert repr(small).startswith(f"Model(mine of {folder}: gemma3n, 11 layers, ")
    assert repr(small.session()) == "Session(0 of 1024 tokens, mine is active)"


def test_a_part_says_its_own_megabytes(awake_directory: Path, tmp_path: Path) -> None:
    """Those of a slice, and not the whole's."""
    model, target = load(awake_directory), tmp_path / "half"
    written = slice_(awake_directory, target, "half", text_only=True).size_bytes
    small = model.submodel("half")
    whole = small.engine.views.whole
    assert whole is not None
    found = used_bytes(small.engine.decoder, whole)
    assert found == written
    assert f"{found / 1e6:.0f} MB of weights" in repr(small)
    assert found < 0.9 * model.checkpoint.weights.nbytes


def test_a_model_says_all_its_formats_the_largest_first(tiny_checkpoint: Path) -> None:
    model = load(tiny_checkpoint)
    weights = model.checkpoint.weights
    for index, format in enumerate(("q4_0", "q4_0", "q4_0", "q4_1", "q5_0")):
        name = f"layers.{index}.mlp.gate_proj.weight"
        block, (rows, columns) = FORMATS[format], weights[name].shape
        blocks = np.zeros((rows, block.row_bytes(columns)), np.uint8)
        weights.replaced(name, Packed(blocks, block))
    assert "MB of weights in q8_0, q4_0, q5_0, q4_1, context" in repr(model)


def test_a_draft_s_own_format_may_not_fit(tmp_path: Path) -> None:
    config = Gemma3nConfig(
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=16,
        head_dim=16,
        hidden_size_per_layer_input=32,
        num_hidden_layers=12,
        num_kv_shared_layers=6,
        intermediate_size=(64,) * 12,
    )
    model = load(write(tmp_path / "narrow", config))
    with pytest.raises(
        InputError, match=r"a draft in q4_0, .* 16 columns cannot be q8_0, .* choose bf16"
    ):
        model.draft("half", format="q4_0")


def test_loading_counts_for_the_first_turn(model: Model) -> None:
    fresh = Model(model.checkpoint, model.engine, load_s=3.0)
    first, second = (fresh.generate("the", **GREEDY).timings for _ in range(2))
    assert (first.load_s, second.load_s) == (3.0, 0.0) and fresh.load_s == 3.0


def test_loading_is_counted_though_a_session_was_never_used(model: Model) -> None:
    fresh = Model(model.checkpoint, model.engine, load_s=3.0)
    unused, used, later = (fresh.session() for _ in range(3))
    ids = model.tokenizer.encode("the")
    for session, load_s in ((used, 3.0), (later, 0.0), (unused, 0.0)):
        assert session.generate(ids, **GREEDY).timings.load_s == load_s


def test_gemma3_has_no_submodels(model: Model) -> None:
    for ask in (model.submodel, model.release, model.draft):
        with pytest.raises(InputError, match="no sub-models"):
            ask("E2B")
