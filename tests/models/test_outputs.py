"""Hidden states and attention probabilities are transformers', tensor by tensor; nothing stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gemelo.api import Model, load
from gemelo.checkpoints.convert import convert
from gemelo.checkpoints.load import load_checkpoint
from gemelo.engine.engine import Engine
from gemelo.inputs.media.mel import log_mel
from gemelo.inputs.prompt.media_loader import VisionOptions
from gemelo.models.decoder import Decoder
from gemelo.models.layers import KV, Attention, attend, eager_attend
from gemelo.models.outputs import CausalLMOutput, forward
from tests.conftest import TINY, tiny_model
from tests.gemma3n import VARIANTS, write_3n
from tests.matformer import CONFIG, PROMPT, SMALL, tiny_gemma3n
from tests.multimodal import AWAKE, EYED, IMAGE, photograph, recording, twin
from tests.quantised import native_of
from tests.twins import gemma3_twin, gemma3n_twin

TOKENS = 29  # past every tiny window
IDS = torch.randint(3, 300, (1, TOKENS), generator=torch.Generator().manual_seed(1))


def whole(decoder: Decoder, ids: Tensor = IDS) -> CausalLMOutput:
    positions = torch.arange(ids.shape[1])[None]
    return forward(decoder, ids, positions, output_hidden_states=True, output_attentions=True)


@torch.inference_mode()
def told_by(reference: nn.Module, **facts: Any) -> Any:
    """What transformers gives for a batch of one."""
    return reference(**facts, output_hidden_states=True, output_attentions=True)


def largest(found: tuple[Tensor, ...] | None, wanted: list[Tensor], relative: bool) -> float:
    """The largest difference of tensors whose shapes agree."""
    assert found is not None
    assert [one.shape for one in found] == [one.shape for one in wanted]
    scales = [float(one.abs().max()) if relative else 1.0 for one in wanted]
    pairs = zip(found, wanted, scales, strict=True)
    return max(float((a - b).abs().max()) / scale for a, b, scale in pairs)


def compare(found: CausalLMOutput, told: Any, tolerance: float, relative: bool = False) -> None:
    batch = -3  # of hidden states: in front of it are the streams, if any
    states = [one.squeeze(batch) for one in told.hidden_states]
    assert all(one.shape[batch] == 1 for one in told.hidden_states)
    assert largest(found.hidden_states, states, relative) <= tolerance
    rows = [one[0] for one in told.attentions]
    assert largest(found.attentions, rows, relative) <= tolerance
    assert largest((found.logits,), [told.logits[0]], relative) <= tolerance
    assert found.logits.dtype == torch.float32


@pytest.mark.parametrize("config", TINY.values(), ids=TINY.keys())
def test_every_tensor_of_gemma3(config: Any) -> None:
    model = tiny_model(config)
    found = whole(model)
    compare(found, told_by(gemma3_twin(model), input_ids=IDS), 1e-4)
    assert found.hidden_states is not None
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state), "after the final norm"


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_tensor_of_gemma3n(config: Any) -> None:
    model = tiny_gemma3n(config)
    found = whole(model)
    compare(found, told_by(gemma3n_twin(model), input_ids=IDS, use_cache=True), 3e-4)
    assert found.hidden_states is not None
    streams = found.hidden_states[-1]
    assert streams.shape == (config.altup_num_inputs, TOKENS, config.hidden_size)
    merged = model.norm(model.merge(streams[:, None]))[0]
    assert torch.equal(merged, found.last_hidden_state)


def test_a_picture_of_gemma3(eyed_directory: Path) -> None:
    """Its tokens look at each other both ways."""
    model, picture = load(eyed_directory), photograph()
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "the"}]
    prompt = model.prompt([{"role": "user", "content": content}])
    found = model.forward(prompt, output_hidden_states=True, output_attentions=True)
    pixels = torch.from_numpy(np.array(picture.resize((32, 32), 2))).permute(2, 0, 1)[None]
    ids = torch.tensor([prompt.ids])
    told = told_by(
        twin(EYED),
        input_ids=ids,
        pixel_values=pixels / 127.5 - 1,
        token_type_ids=(ids == IMAGE).long(),
    )
    compare(found, told, 3e-4, relative=True)
    assert found.attentions is not None
    first, last = prompt.ids.index(IMAGE), prompt.ids.index(IMAGE) + 15
    assert float(found.attentions[0][0, first, last]) > 0


def test_a_picture_and_a_recording_of_gemma3n(awake_directory: Path) -> None:
    model, picture, sound = load(awake_directory), photograph(256, 256), recording(1.2)
    content = [{"type": "audio", "audio": sound}, {"type": "image", "image": picture}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "the"}]}]
    prompt = model.prompt(messages, VisionOptions(image_size=256))
    found = model.forward(prompt, output_hidden_states=True, output_attentions=True)
    mel = torch.from_numpy(log_mel(sound))[None]
    told = told_by(
        twin(AWAKE),
        input_ids=torch.tensor([prompt.ids]),
        pixel_values=torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255,
        input_features=mel,
        input_features_mask=torch.ones(mel.shape[:2], dtype=torch.bool),
    )
    compare(found, told, 3e-4, relative=True)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("family", ["gemma3", "gemma3n"])
def test_a_quantised_file_is_its_weights_in_floats(
    tiny_checkpoint: Path, tmp_path: Path, family: str
) -> None:
    path = tiny_checkpoint
    if family == "gemma3n":
        path = tmp_path / "tiny-3n.gguf"
        convert(write_3n(tmp_path / "tiny"), path, "q4_0")
    found, wanted = (
        load(path, format=format).forward(PROMPT, output_hidden_states=True, output_attentions=True)
        for format in ("native", "f32")
    )
    assert wanted.hidden_states is not None and wanted.attentions is not None
    assert largest(found.hidden_states, list(wanted.hidden_states), False) <= 3e-4
    assert largest(found.attentions, list(wanted.attentions), False) <= 3e-4
    assert largest((found.logits,), [wanted.logits], False) <= 3e-4


def test_a_submodel_has_its_own_layers(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    elastic = Model(
        checkpoint, Engine(native_of(tiny_gemma3n(CONFIG)), checkpoint.tokenizer, chunk=16)
    )
    small = elastic.submodel(SMALL)
    found = small.forward(PROMPT, output_hidden_states=True, output_attentions=True)
    assert found.hidden_states is not None and found.attentions is not None
    assert (len(found.hidden_states), len(found.attentions)) == (13, 12)
    assert float((found.logits - small.logits(PROMPT)).abs().max()) <= 3e-4
    assert float((found.logits - elastic.logits(PROMPT)).abs().max()) > 3e-2


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Model:
    return load(tiny_checkpoint)


def test_nothing_stays_on_the_model(model: Model) -> None:
    """What others run meanwhile are the modules as they were."""
    decoder = model._modules.module
    before = dict(decoder.named_modules())
    answer = model.generate(PROMPT, temperature=0, max_tokens=4).token_ids
    outputs = [
        model.forward(PROMPT, output_hidden_states=True, output_attentions=True) for _ in range(2)
    ]
    assert dict(decoder.named_modules()) == before
    attentions = [one for one in before.values() if isinstance(one, Attention)]
    assert len(attentions) == 7 and all(one.attention_interface is attend for one in attentions)
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert model.generate(PROMPT, temperature=0, max_tokens=4).token_ids == answer


@pytest.mark.usefixtures("exact")
def test_only_what_is_asked_for(model: Model) -> None:
    plain = model.forward("the capital")
    assert plain.hidden_states is None and plain.attentions is None
    states = model.forward("the capital", output_hidden_states=True)
    assert states.attentions is None and torch.equal(states.logits, plain.logits)
    looks = model.forward("the capital", output_attentions=True)
    assert looks.hidden_states is None
    assert float((looks.logits - plain.logits).abs().max()) < 1e-4
    count = len(model.tokenizer.encode("the capital"))
    assert repr(states) == (
        f"CausalLMOutput(logits {(count, 512)}, last_hidden_state {(count, 96)}, "
        f"hidden_states 8 x {(count, 96)})"
    )


def test_outputs_may_be_learnt_from(model: Model) -> None:
    """A probe on hidden states has gradients of its own."""
    states = model.forward("the capital", output_hidden_states=True).hidden_states
    assert states is not None
    probe = nn.Linear(96, 2)
    probe(states[3]).sum().backward()
    assert probe.weight.grad is not None


def test_probabilities_are_within_the_window(model: Model) -> None:
    ids = [2, *range(300, 330)]
    attentions = model.forward(ids, output_attentions=True).attentions
    assert attentions is not None
    for layer, rows in enumerate(attentions):
        assert float((rows.sum(-1) - 1).abs().max()) < 1e-5
        window = model.config.window(model.config.layer(layer).type)
        seen = (rows[0] > 0).sum(-1).tolist()
        limit = len(ids) if window is None else window
        assert seen == [min(count + 1, limit) for count in range(len(ids))]


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_eager_attention_is_the_fast_one(heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, count, 9, 8, generator=generator) for count in (heads[0], *[heads[1]] * 2)
    )
    mask = torch.ones(9, 9, dtype=torch.bool).tril().expand(2, 1, 9, 9)
    y, probabilities = eager_attend(q, KV(k, v), mask, 0.3)
    assert float((y - attend(q, KV(k, v), mask, 0.3)).abs().max()) < 1e-5
    assert probabilities.shape == (2, 4, 9, 9)
