"""The reference's processors, small: few soft tokens, small squares, a small vocabulary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gemelo.config import Gemma3Config, Gemma3nConfig, Modalities, VisionConfig
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.inputs.tokenizer.vocabulary import CONTROL, Vocabulary
from tests.inputs.conftest import as_json, small_vocabulary

MARKERS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
    "audio_token": "<audio_soft_token>",
}
IMAGE_TOKENS, AUDIO_TOKENS = 5, 3
RECORDING = np.zeros(4000, np.float32)


@dataclass(frozen=True)
class Family:
    """The reference's processor and what it needs to be compared with."""

    processor: Any
    modalities: Modalities
    tokenizer: Tokenizer


@cache
def gemma3_pixels(side: int) -> Any:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    return Gemma3ImageProcessorPil(size={"height": side, "width": side})


@cache
def gemma3n_pixels(side: int) -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    return SiglipImageProcessorPil(
        size={"height": side, "width": side}, do_normalize=False, resample=2
    )


def gemma3(folder: Path) -> Family:
    from transformers import Gemma3Processor

    tokenizer, twin = tokenizers(folder)
    ids = tokenizer.controls
    config = Gemma3Config(
        vision=VisionConfig(),
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )
    processor = Gemma3Processor(gemma3_pixels(16), twin, image_seq_length=IMAGE_TOKENS)
    return Family(processor, config.modalities, tokenizer)


def gemma3n(folder: Path) -> Family:
    from transformers import Gemma3nAudioFeatureExtractor, Gemma3nProcessor

    tokenizer, twin = tokenizers(folder)
    ids = tokenizer.controls
    config = Gemma3nConfig(
        vision_config={},
        audio_config={},
        vision_soft_tokens_per_image=IMAGE_TOKENS,
        audio_soft_tokens_per_image=AUDIO_TOKENS,
        boi_token_id=ids["<start_of_image>"],
        eoi_token_id=ids["<end_of_image>"],
        image_token_id=ids["<image_soft_token>"],
        boa_token_id=ids["<start_of_audio>"],
        eoa_token_id=ids["<end_of_audio>"],
        audio_token_id=ids["<audio_soft_token>"],
    )
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        gemma3n_pixels(16),
        twin,
        image_seq_length=IMAGE_TOKENS,
        audio_seq_length=AUDIO_TOKENS,
    )
    return Family(processor, config.modalities, tokenizer)


def tokenizers(folder: Path) -> tuple[Tokenizer, Any]:
    """The small vocabulary with the markers of both families, for us and for the reference."""
    import transformers

    metadata = small_vocabulary()
    markers = list(MARKERS.values())
    metadata["tokenizer.ggml.tokens"] += markers
    for key, value in (("scores", -1000.0), ("token_type", CONTROL)):
        held = metadata[f"tokenizer.ggml.{key}"]
        added = np.full(len(markers), value, held.dtype)
        metadata[f"tokenizer.ggml.{key}"] = np.concatenate([held, added])
    written = as_json(Vocabulary.from_gguf(metadata), merges=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**written, "truncation": None}, ensure_ascii=False))
    twin: Any = transformers
    twin = twin.PreTrainedTokenizerFast(tokenizer_file=str(path), extra_special_tokens=MARKERS)
    return Tokenizer.from_gguf(metadata), twin
