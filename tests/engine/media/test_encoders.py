"""Pictures and recordings by the library: from files and messages to the reference's scores."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gemelo.api import Model, load
from gemelo.engine.media.audio_stream import TOKENS_AT_ONCE, AudioStream
from gemelo.engine.media.encoders import MediaEncoders, content_key, embedding_spans
from gemelo.errors import (
    ContextLengthError,
    FileFormatError,
    InputError,
    MissingExtraError,
    UnsupportedError,
)
from gemelo.inputs.media.image import read_image
from gemelo.inputs.media.mel import log_mel
from gemelo.inputs.media.panscan import PanScan
from gemelo.inputs.media.parts import MediaPart, TextPart
from gemelo.inputs.prompt.chat import Prompt, render_completion, render_gemma_template
from gemelo.inputs.prompt.media_loader import VisionOptions, place_media
from gemelo.models.multimodal import Gemma3Tree
from tests.multimodal import (
    AWAKE,
    BOA,
    BOI,
    EOI,
    EYED,
    IMAGE,
    awake,
    eyed,
    photograph,
    recording,
    twin,
)

TOLERANCE = 3e-4
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def sees(eyed_directory: Path) -> Model:
    return load(eyed_directory)


@pytest.fixture(scope="module")
def hears(awake_directory: Path) -> Model:
    return load(awake_directory)


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def audio(source: Any) -> dict[str, Any]:
    return {"type": "audio", "audio": source}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def scores(model: Model, prompt: Prompt) -> Tensor:
    return torch.from_numpy(model.session().read(model.encoders.tokens(prompt)))


# ---- pictures ------------------------------------------------------------------------------------


def test_a_message_with_pictures_is_what_the_reference_makes_of_it(sees: Model) -> None:
    pictures = [photograph(), photograph(64, 20, seed=1)]
    prompt = sees.prompt(user(image(pictures[0]), text("the"), image(pictures[1])))
    assert prompt.ids.count(IMAGE) == 32 and prompt.ids[:2] == (2, 105)
    resized = [np.asarray(p.resize((32, 32), 2)) for p in pictures]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 127.5 - 1
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        told = twin(EYED)(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == IMAGE).long())
    assert relative(scores(sees, prompt), told.logits[0, -1]) <= TOLERANCE
    assert len(sees.generate(prompt, **GREEDY).token_ids) == 4


def test_a_template_and_turns_say_the_same(sees: Model) -> None:
    messages = user(text("  the "), image(photograph(70, 30)), text("of"))
    vision_options = VisionOptions(PanScan(min_crop_size=16))
    ours = render_gemma_template(
        messages, sees.tokenizer, media_loader=sees.media_loader(vision_options)
    )
    prompt = sees.prompt(messages, vision_options)
    assert ours.ids == prompt.ids and len(prompt.pictures) == 3
    assert prompt.ids.count(BOI) == prompt.ids.count(EOI) == 3
    assert scores(sees, prompt).shape == (512,)


def test_a_conversation_encodes_a_picture_once_and_reads_it_once(eyed_directory: Path) -> None:
    model = load(eyed_directory)
    messages = user(image(photograph()), text("the"))
    model.generate(messages, **GREEDY)
    made = model.encoders.towers.encode_image
    model.encoders.towers.encode_image = None  # type: ignore[assignment, method-assign]
    messages += [{"role": "assistant", "content": "of"}, *user(text("an"))]
    again = model.generate(messages, **GREEDY)
    assert again.timings.reused_tokens > 16  # the picture's, after which every prompt is cut
    model.encoders.towers.encode_image = made  # type: ignore[method-assign]
    assert again.token_ids == load(eyed_directory).generate(messages, **GREEDY).token_ids


@pytest.mark.parametrize("num_views", [1, 3])
def test_every_view_is_resized_once(
    eyed_directory: Path, monkeypatch: pytest.MonkeyPatch, num_views: int
) -> None:
    model = load(eyed_directory)
    sizes: list[tuple[int, int]] = []
    plain = Image.Image.resize

    def counted(image: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        sizes.append(size)
        return plain(image, size, *options)

    monkeypatch.setattr(Image.Image, "resize", counted)
    vision_options = VisionOptions(PanScan(min_crop_size=16) if num_views > 1 else None)
    parts = [MediaPart("image", photograph(70, 30)), TextPart("the")]
    prompt = model.prompt([{"role": "user", "content": parts}], vision_options)
    assert len(prompt.pictures) == num_views and prompt.pictures[0].size == (32, 32)
    model.generate(prompt, **GREEDY)
    assert sizes == [(32, 32)] * num_views


def test_encode_image_is_the_tower(sees: Model, hears: Model, tmp_path: Path) -> None:
    photograph().save(tmp_path / "a.png")
    soft = sees.encode_image(tmp_path / "a.png")
    assert soft.shape == (16, 96)
    assert torch.equal(soft, sees.encode_image(photograph()))
    sizes = [hears.encode_image(photograph(), image_size) for image_size in (None, 256, 768)]
    assert torch.equal(sizes[0], sizes[2]) and not torch.equal(sizes[0], sizes[1])
    assert sizes[0].shape == (16, 64)
    with pytest.raises(InputError, match="an image size of 300 pixels: give one of 256, 512, 768"):
        hears.encode_image(photograph(), 300)
    with pytest.raises(InputError, match="takes pictures of 32 pixels"):
        sees.encode_image(photograph(), 256)


def test_towers_are_loaded_once_and_at_the_first_picture(eyed_directory: Path) -> None:
    """Threads that show the first pictures at once wait for one that loads."""
    model, loaded = load(eyed_directory), []

    def load_towers() -> Gemma3Tree:
        loaded.append(threading.get_ident())
        time.sleep(0.05)
        return eyed()

    encoders = MediaEncoders(load_towers, model.config)
    encoders.tokens(model.prompt("the"))
    prompts = [model.prompt(user(image(photograph(seed=seed)), text("the"))) for seed in range(4)]
    assert not loaded
    with ThreadPoolExecutor(4) as threads:
        made = [*threads.map(encoders.tokens, prompts)]
    assert len(loaded) == 1
    for tokens in made:
        (span,) = tokens.spans
        assert span.embeds.dtype == np.float32 and span.embeds.shape == (16, 96)
    assert np.array_equal(made[1].spans[0].embeds, encoders.tokens(prompts[1]).spans[0].embeds)


def test_towers_that_could_not_be_loaded_are_loaded_again(eyed_directory: Path) -> None:
    model, errors = load(eyed_directory), [FileFormatError("a.gguf was cut short")]

    def load_towers() -> Gemma3Tree:
        if errors:
            raise errors.pop()
        return eyed()

    encoders = MediaEncoders(load_towers, model.config)
    with pytest.raises(FileFormatError, match="cut short"):
        encoders.encode_image(read_image(photograph()), 32)
    assert encoders.encode_image(read_image(photograph()), 32).shape == (16, 96)


def test_towers_need_torch(eyed_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(eyed_directory)
    prompt = model.prompt(user(image(photograph()), text("the")))
    encoders = MediaEncoders(eyed, model.config)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"sounds need the extra media \(torch is not inst"):
        encoders.tokens(prompt)
    with pytest.raises(UnsupportedError, match="no audio encoder"):
        encoders.audio_stream()


# ---- recordings ----------------------------------------------------------------------------------


def test_a_recording_and_a_picture_are_what_the_reference_makes_of_them(hears: Model) -> None:
    sound, picture = recording(1.2), photograph(256, 256)
    vision_options = VisionOptions(image_size=256)
    prompt = hears.prompt(user(audio(sound), image(picture), text("the")), vision_options)
    assert prompt.ids.count(497) == 12 and prompt.ids.count(481) == 16
    mel = torch.from_numpy(log_mel(sound))[None]
    with torch.inference_mode():
        told = twin(AWAKE)(
            input_ids=torch.tensor([prompt.ids]),
            pixel_values=torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255,
            input_features=mel,
            input_features_mask=torch.ones(mel.shape[:2], dtype=torch.bool),
        )
    assert relative(scores(hears, prompt), told.logits[0, -1]) <= TOLERANCE


@pytest.mark.parametrize("seed", [0, 1])
def test_any_pieces_give_the_same_tokens(hears: Model, seed: int) -> None:
    sound = recording(3.0)
    whole = hears.encode_audio(sound)
    assert whole.shape == (19, 64)
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(0, len(sound), 9))
    stream = hears.audio_stream()
    parts = [stream.push(piece) for piece in np.split(sound, cuts)]
    # All but the tail, and what waits to be encoded together, is there before the end.
    assert sum(map(len, parts)) >= len(whole) - TOKENS_AT_ONCE
    assert relative(torch.cat([*parts, stream.finish()]), whole) <= 1e-5
    again = torch.cat([stream.push(sound), stream.finish()])
    assert relative(again, whole) <= 1e-5  # the stream began anew


def test_what_a_stream_keeps_does_not_grow(hears: Model) -> None:
    stream = hears.audio_stream()
    sizes = []
    for _ in range(30):
        stream.push(recording(1.0))
        sizes.append(stream.nbytes)
    assert max(sizes[8:]) <= max(sizes[:8]) + 4 * 512
    assert max(sizes) < 1 << 18


def test_the_far_side_of_thirty_seconds(hears: Model) -> None:
    prompt = hears.prompt(user(audio(recording(31.0)), text("the")))
    assert prompt.ids.count(497) == 194
    (notice,) = prompt.notices
    assert "lasts 31 s" in notice and "trained on 30 s" in notice
    assert torch.isfinite(scores(hears, prompt)).all()


# ---- what is wrong -------------------------------------------------------------------------------


def test_a_model_without_a_sense_says_so(sees: Model, hears: Model, tiny_directory: Path) -> None:
    blind = load(tiny_directory)
    with pytest.raises(UnsupportedError, match="no audio encoder and cannot take the recording"):
        sees.prompt(user(audio(recording())))
    with pytest.raises(UnsupportedError, match="no audio encoder"):
        sees.encode_audio(recording())
    with pytest.raises(UnsupportedError, match="no vision tower"):
        blind.encode_image(photograph())
    with pytest.raises(UnsupportedError, match="no audio encoder"):
        AudioStream(awake(), None)
    with pytest.raises(UnsupportedError, match="reads text only"):
        render_completion([MediaPart("image", photograph())], blind.tokenizer, blind.media_loader())


def test_bad_media_are_one_clear_line(hears: Model, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    bad = [
        (image(str(tmp_path / "none.png")), "no such file"),
        (image(str(tmp_path / "broken.png")), "broken.png cannot be read as a picture"),
        (audio(np.zeros(0, np.float32)), "no sound"),
        (
            audio(np.zeros(100, np.float32)),
            "lasts 0.0063 s, too short for an audio token",
        ),
        (audio(np.full(9000, np.nan, np.float32)), "sample nan at index 0"),
    ]
    for part, reason in bad:
        with pytest.raises(InputError, match=reason):
            hears.prompt(user(part, text("the")))


def test_a_recording_is_long_enough_for_a_token_or_refused(hears: Model) -> None:
    assert len(hears.encode_audio(np.zeros(513, np.float32))) == 1
    for short in (512, 1):
        with pytest.raises(InputError, match="too short for an audio token: give one of 0.0321 s"):
            hears.encode_audio(np.zeros(short, np.float32))


def test_more_than_the_context_holds(eyed_directory: Path) -> None:
    model = load(eyed_directory, context=60)
    pictures = [image(photograph(seed=seed)) for seed in range(4)]
    with pytest.raises(ContextLengthError, match="64 of them for 4 pictures"):
        model.prompt(user(*pictures, text("the")))


def test_places_and_pictures_are_as_many(sees: Model) -> None:
    with pytest.raises(InputError, match="3 placeholders for 0 pictures"):
        sees.generate([2, IMAGE, IMAGE, IMAGE, 300], **GREEDY)
    tokens = sees.media_loader().modalities.image
    assert tokens is not None
    apart = [IMAGE] * 8 + [7] + [IMAGE] * 8
    with pytest.raises(InputError, match="not one after the other"):
        [*embedding_spans(apart, tokens, [(b"", torch.zeros(16, 4))], "pictures", True)]


def test_keys_tell_contents_apart() -> None:
    a = np.arange(6.0, dtype=np.float32)
    assert content_key(a) == content_key(a.copy()) != content_key(a + 1)
    assert content_key(a) == content_key(np.repeat(a, 2)[::2])
    assert len({content_key(b) for b in (a, a.reshape(2, 3), a.view(np.int32))}) == 3


# ---- plain prompts -------------------------------------------------------------------------------


def test_placeholders_in_a_plain_prompt(hears: Model) -> None:
    media_loader = hears.media_loader(VisionOptions(image_size=256))
    first, second = MediaPart("image", photograph()), MediaPart("image", photograph(seed=1))
    sound = MediaPart("audio", recording())
    said = "the <image_soft_token> of <image_soft_token>an"
    parts = place_media(said, [first, sound, second], media_loader.modalities)
    words = [part.text for part in parts if isinstance(part, TextPart)]
    assert parts[0] is sound and parts[2] is first and parts[4] is second
    assert words == ["the ", " of ", "an"]
    prompt = render_completion(parts, hears.tokenizer, media_loader)
    assert prompt.ids[0] == 2 and prompt.ids.count(BOA) == 1 and prompt.ids.count(BOI) == 2
    assert place_media("the", [first], media_loader.modalities) == (first, TextPart("the"))
    assert place_media(said, [], media_loader.modalities) == (TextPart(said),)
    with pytest.raises(InputError, match="2 times for 1 files"):
        place_media(said, [first], media_loader.modalities)
    plain = render_completion([TextPart("<bos>the")], hears.tokenizer, hears.media_loader())
    assert list(plain.ids) == hears.tokenizer.encode("the")
