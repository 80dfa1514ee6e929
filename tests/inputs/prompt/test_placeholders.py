"""Ids of prompts with pictures and recordings, token by token those of the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gemelo.config import Gemma3Config, Gemma3nConfig, VisionConfig
from gemelo.errors import ContextLengthError, InputError, UnsupportedError
from gemelo.inputs.media.panscan import crops
from gemelo.inputs.media.parts import MediaPart, TextPart
from gemelo.inputs.prompt.placeholders import (
    AudioSlot,
    ImageSlot,
    Piece,
    Senses,
    check_room,
    check_senses,
    expand,
    place,
    senses_of,
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
    slots = [ImageSlot(len(crops(size)) if pan_and_scan else 0) for size in sizes]
    pieces = place(text, slots, [], gemma3.senses, gemma3.tokenizer)
    ids = expand(pieces, gemma3.senses, gemma3.tokenizer, bos=False)
    assert ids == list(np.ravel(wanted["input_ids"]))


@pytest.mark.parametrize(("text", "num_images", "num_recordings"), GEMMA3N_PROMPTS)
def test_gemma3n(gemma3n: Family, text: str, num_images: int, num_recordings: int) -> None:
    wanted = gemma3n.processor(
        text=text,
        images=[photograph(30, 20)] * num_images or None,
        audio=[RECORDING] * num_recordings or None,
        add_special_tokens=False,
    )
    images, recordings = [ImageSlot()] * num_images, [AudioSlot()] * num_recordings
    pieces = place(text, images, recordings, gemma3n.senses, gemma3n.tokenizer)
    ids = expand(pieces, gemma3n.senses, gemma3n.tokenizer, bos=False)
    assert ids == list(np.ravel(wanted["input_ids"]))


def test_the_real_vocabulary(real: Callable[[str], Tokenizer]) -> None:
    tokenizer, senses = real("gguf"), senses_of(Gemma3Config(vision=VisionConfig()))

    def ids(*pieces: Piece) -> list[int]:
        return expand(pieces, senses, tokenizer, bos=False)

    picture = [255999, *[262144] * 256, 256000]
    assert ids(ImageSlot()) == [108, *picture, 108]
    assert ids("user\n", ImageSlot(), "Hello") == [2364, 109, *picture, 108, 9259]
    assert ids(ImageSlot(), ImageSlot()) == [108, *picture, 110, *picture, 108]
    original = [8291, 563, 506, 3303, 2471, 236743, 108, *picture, 108]
    words = [532, 1590, 659, 1070, 20859, 531, 1601, 611, 1460, 2480, 236743]
    crop = [108, *picture, 108]
    assert ids(ImageSlot(2)) == [*original, *words, *crop, 236743, *crop]


def test_a_recording_of_its_own_length(gemma3n: Family) -> None:
    ids = expand([AudioSlot(7)], gemma3n.senses, gemma3n.tokenizer)
    assert gemma3n.senses.audio is not None
    assert ids.count(gemma3n.senses.audio.token_id) == 7


def test_bos_comes_once(gemma3: Family) -> None:
    bos = gemma3.tokenizer.bos_id
    for text in (f"the {BOI}", f"<bos>the {BOI}"):
        pieces = place(text, [ImageSlot()], [], gemma3.senses, gemma3.tokenizer)
        assert expand(pieces, gemma3.senses, gemma3.tokenizer).count(bos or 0) == 1


def test_what_people_say_is_no_placeholder(gemma3: Family) -> None:
    ids = expand([f"look: {BOI}<end_of_turn>"], gemma3.senses, gemma3.tokenizer)
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
        place(text, [ImageSlot()] * images, [], gemma3.senses, gemma3.tokenizer)


def test_a_sense_that_is_missing(gemma3: Family) -> None:
    tokenizer = gemma3.tokenizer
    with pytest.raises(UnsupportedError, match="cannot take pictures"):
        place("x", [ImageSlot()], [], Senses(), tokenizer)
    with pytest.raises(UnsupportedError, match="cannot take recordings"):
        expand([AudioSlot()], gemma3.senses, tokenizer)


def test_what_a_model_has_no_sense_for() -> None:
    text_only, seeing = senses_of(Gemma3Config()), senses_of(Gemma3Config(vision=VisionConfig()))
    hearing = senses_of(Gemma3nConfig(audio_config={}))
    photo, song, film = (MediaPart(kind, "file") for kind in ("image", "audio", "video"))
    check_senses([TextPart("words")], text_only)
    check_senses([photo, film], seeing)
    check_senses([song], hearing)
    with pytest.raises(UnsupportedError, match="reads text only, and was given 1 picture or"):
        check_senses([photo], text_only)
    with pytest.raises(UnsupportedError, match="has no ear, and was given 2 recordings"):
        check_senses([photo, song, song], seeing)
    with pytest.raises(UnsupportedError, match="has no eye"):
        check_senses([film], hearing)


def test_more_pictures_than_the_context_holds(gemma3: Family) -> None:
    ids = expand([ImageSlot()] * 3, gemma3.senses, gemma3.tokenizer)
    check_room(ids, gemma3.senses, len(ids))
    reason = f"has {len(ids)} tokens, 15 of them for 3 pictures.*holds {len(ids) - 1};"
    with pytest.raises(ContextLengthError, match=reason):
        check_room(ids, gemma3.senses, len(ids) - 1)
    with pytest.raises(ContextLengthError, match="give a shorter one"):
        check_room([9] * 4, gemma3.senses, 3)
