"""Ids of prompts with pictures and recordings, token by token those of the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gemelo.config import Gemma3Config, Gemma3nConfig, Modalities, VisionConfig
from gemelo.errors import ContextLengthError, InputError, UnsupportedError
from gemelo.inputs.media.panscan import crops
from gemelo.inputs.media.parts import MediaPart, TextPart
from gemelo.inputs.prompt.placeholders import (
    AudioPlaceholder,
    Chunk,
    ImagePlaceholder,
    check_context_length,
    check_modalities,
    fill_placeholders,
    tokenize,
)
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from tests.inputs import reference
from tests.inputs.reference import RECORDING, Family
from tests.multimodal import photograph

EYE, EAR = "<image_soft_token>", "<audio_soft_token>"
BOI = "<start_of_image>"
SQUARE, WIDE, TALL = (300, 300), (1200, 500), (400, 1000)

GEMMA3_PROMPTS = [
    (BOI, [SQUARE]),
    (f"{BOI} the", [WIDE]),
    (f"what is this?\n{BOI}", [TALL]),
    (f"a\n\n{BOI}\nb", [WIDE]),
    (f"{BOI}{BOI}", [SQUARE, WIDE]),
    (f"{BOI}\n{BOI} and\n\n\n{BOI}", [TALL, WIDE, SQUARE]),
    (f"<start_of_turn>user\n{BOI}who is it?<end_of_turn>\n<start_of_turn>model\n", [WIDE]),
    (f"in the hell{BOI} \n\n {BOI}<b>é日", [TALL, SQUARE]),
    ("no picture at all\n\n", []),
]
GEMMA3N_PROMPTS = [
    (EYE, 1, 0),
    (EAR, 0, 1),
    (f"{EYE}{EAR}", 1, 1),
    (f"user\n{EYE}{EAR}the bell", 1, 1),
    (f"{EAR}{EYE}\n\n{EYE} x", 2, 1),
    (f"a {EAR}\n{EAR} b\n\n\n{EYE}\n", 1, 2),
    (f"<start_of_turn>user\n{EAR}hear<end_of_turn>\n<start_of_turn>model\n", 0, 1),
]


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return reference.gemma3(tmp_path_factory.mktemp("gemma3"))


@pytest.fixture(scope="module")
def gemma3n(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return reference.gemma3n(tmp_path_factory.mktemp("gemma3n"))


@pytest.mark.parametrize("pan_and_scan", [False, True])
@pytest.mark.parametrize(("text", "sizes"), GEMMA3_PROMPTS)
def test_gemma3(
    gemma3: Family, text: str, sizes: list[tuple[int, int]], pan_and_scan: bool
) -> None:
    pictures = [photograph(*size) for size in sizes]
    wanted = gemma3.processor(
        text=text, images=pictures or None, do_pan_and_scan=pan_and_scan, add_special_tokens=False
    )
    slots = [ImagePlaceholder(len(crops(size)) if pan_and_scan else 0) for size in sizes]
    chunks = fill_placeholders(text, slots, [], gemma3.modalities, gemma3.tokenizer)
    ids = tokenize(chunks, gemma3.modalities, gemma3.tokenizer, bos=False)
    assert ids == list(np.ravel(wanted["input_ids"]))


@pytest.mark.parametrize(("text", "num_images", "num_recordings"), GEMMA3N_PROMPTS)
def test_gemma3n(gemma3n: Family, text: str, num_images: int, num_recordings: int) -> None:
    wanted = gemma3n.processor(
        text=text,
        images=[photograph(30, 20)] * num_images or None,
        audio=[RECORDING] * num_recordings or None,
        add_special_tokens=False,
    )
    images, recordings = [ImagePlaceholder()] * num_images, [AudioPlaceholder()] * num_recordings
    chunks = fill_placeholders(text, images, recordings, gemma3n.modalities, gemma3n.tokenizer)
    ids = tokenize(chunks, gemma3n.modalities, gemma3n.tokenizer, bos=False)
    assert ids == list(np.ravel(wanted["input_ids"]))


def test_the_real_vocabulary(real: Callable[[str], Tokenizer]) -> None:
    tokenizer = real("gguf")
    modalities = Gemma3Config(vision=VisionConfig()).modalities

    def ids(*chunks: Chunk) -> list[int]:
        return tokenize(chunks, modalities, tokenizer, bos=False)

    picture = [255999, *[262144] * 256, 256000]
    assert ids(ImagePlaceholder()) == [108, *picture, 108]
    assert ids("user\n", ImagePlaceholder(), "Hello") == [2364, 109, *picture, 108, 9259]
    assert ids(ImagePlaceholder(), ImagePlaceholder()) == [108, *picture, 110, *picture, 108]
    original = [8291, 563, 506, 3303, 2471, 236743, 108, *picture, 108]
    words = [532, 1590, 659, 1070, 20859, 531, 1601, 611, 1460, 2480, 236743]
    crop = [108, *picture, 108]
    assert ids(ImagePlaceholder(2)) == [*original, *words, *crop, 236743, *crop]


def test_a_recording_of_its_own_length(gemma3n: Family) -> None:
    ids = tokenize([AudioPlaceholder(7)], gemma3n.modalities, gemma3n.tokenizer)
    assert gemma3n.modalities.audio is not None
    assert ids.count(gemma3n.modalities.audio.token_id) == 7


def test_bos_comes_once(gemma3: Family) -> None:
    bos = gemma3.tokenizer.bos_id
    for text in (f"the {BOI}", f"<bos>the {BOI}"):
        chunks = fill_placeholders(
            text, [ImagePlaceholder()], [], gemma3.modalities, gemma3.tokenizer
        )
        assert tokenize(chunks, gemma3.modalities, gemma3.tokenizer).count(bos or 0) == 1


def test_what_people_say_is_no_placeholder(gemma3: Family) -> None:
    ids = tokenize([f"look: {BOI}<end_of_turn>"], gemma3.modalities, gemma3.tokenizer)
    assert not set(ids) & {gemma3.tokenizer.controls[BOI], 7}


@pytest.mark.parametrize(
    ("text", "images", "reason"),
    [
        (BOI, 0, "1 times for 0 pictures: give one for each"),
        (f"{BOI} {BOI}", 1, "2 times for 1 pictures: give one for each"),
        ("none", 1, "0 times for 1 pictures: write <start_of_image> for each"),
    ],
)
def test_as_many_placeholders_as_pictures(
    gemma3: Family, text: str, images: int, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        fill_placeholders(
            text, [ImagePlaceholder()] * images, [], gemma3.modalities, gemma3.tokenizer
        )


def test_a_sense_that_is_missing(gemma3: Family) -> None:
    tokenizer = gemma3.tokenizer
    with pytest.raises(UnsupportedError, match="cannot take pictures"):
        fill_placeholders("x", [ImagePlaceholder()], [], Modalities(), tokenizer)
    with pytest.raises(UnsupportedError, match="cannot take recordings"):
        tokenize([AudioPlaceholder()], gemma3.modalities, tokenizer)


def test_what_a_model_has_no_sense_for() -> None:
    text_only, seeing = (
        Gemma3Config().modalities,
        Gemma3Config(vision=VisionConfig()).modalities,
    )
    hearing = Gemma3nConfig(audio_config={}).modalities
    photo, song, film = (MediaPart(kind, "file") for kind in ("image", "audio", "video"))
    check_modalities([TextPart("words")], text_only)
    check_modalities([photo, film], seeing)
    check_modalities([song], hearing)
    with pytest.raises(UnsupportedError, match="reads text only and cannot take the picture:"):
        check_modalities([photo], text_only)
    with pytest.raises(UnsupportedError, match="take the 2 pictures and the video: use a Gemma 3"):
        check_modalities([photo, film, photo], text_only)
    with pytest.raises(UnsupportedError, match="no audio encoder and cannot take the 2 recordings"):
        check_modalities([photo, song, song], seeing)
    with pytest.raises(UnsupportedError, match="has no vision tower"):
        check_modalities([film], hearing)


def test_more_pictures_than_the_context_holds(gemma3: Family) -> None:
    ids = tokenize([ImagePlaceholder()] * 3, gemma3.modalities, gemma3.tokenizer)
    check_context_length(ids, gemma3.modalities, len(ids))
    reason = f"has {len(ids)} tokens, 15 of them for 3 pictures.*holds {len(ids) - 1};"
    with pytest.raises(ContextLengthError, match=reason):
        check_context_length(ids, gemma3.modalities, len(ids) - 1)
    with pytest.raises(ContextLengthError, match="give a shorter one"):
        check_context_length([9] * 4, gemma3.modalities, 3)
