"""What a model's preprocessor files may say, and what they may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gemelo.checkpoints.load import preprocessor_of
from gemelo.checkpoints.source import Source
from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig, VisionConfig
from gemelo.errors import FileFormatError, UnsupportedError
from gemelo.inputs.media.panscan import PanScan
from gemelo.inputs.prompt.media_loader import VisionOptions
from gemelo.inputs.prompt.processor_config import Preprocessor, read_preprocessor

EYE = Gemma3Config(vision=VisionConfig())
BOTH = Gemma3nConfig(vision_config={}, audio_config={})
PUBLISHED: dict[str, Any] = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}
HEARD: dict[str, Any] = {
    "dither": 0.0,
    "feature_extractor_type": "Gemma3nAudioFeatureExtractor",
    "feature_size": 128,
    "fft_length": 1024,
    "fft_overdrive": True,
    "frame_length": 512,
    "hop_length": 160,
    "input_scale_factor": 1.0,
    "max_frequency": 7600.0,
    "mel_floor": 1e-05,
    "min_frequency": 125.0,
    "padding_side": "right",
    "padding_value": 0.0,
    "per_bin_mean": None,
    "per_bin_stddev": None,
    "preemphasis": 0.97,
    "preemphasis_htk_flavor": True,
    "return_attention_mask": True,
    "sampling_rate": 16000,
}
SEEN_3N = PUBLISHED | {
    "do_normalize": False,
    "image_processor_type": "SiglipImageProcessorFast",
    "processor_class": "Gemma3nProcessor",
    "size": {"height": 768, "width": 768},
}
LATER: dict[str, Any] = {
    "image_processor": SEEN_3N,
    "feature_extractor": HEARD,
    "audio_seq_length": 188,
    "image_seq_length": 256,
    "processor_class": "Gemma3nProcessor",
}


def read(said: dict[str, Any], config: ModelConfig = EYE) -> Preprocessor:
    return read_preprocessor([(Path("m") / "preprocessor_config.json", said)], config)


def test_what_is_published_changes_nothing() -> None:
    assert read(PUBLISHED) == Preprocessor()
    assert read(SEEN_3N | HEARD, BOTH) == read(LATER, BOTH) == Preprocessor(image_size=768)
    assert read({}) == read({}, BOTH) == Preprocessor()
    assert Preprocessor().vision_options == VisionOptions()


def test_what_may_be_chosen() -> None:
    said = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 128}
    said |= {"pan_and_scan_max_num_crops": 3, "pan_and_scan_min_ratio_to_activate": 1.5}
    assert read(PUBLISHED | said).vision_options == VisionOptions(PanScan(128, 3, 1.5))
    off = read(said | {"do_pan_and_scan": False})
    assert off.thresholds == PanScan(128, 3, 1.5) and off.vision_options.pan_and_scan is None
    assert read({"size": {"height": 512, "width": 512}}, BOTH).vision_options == VisionOptions(
        image_size=512
    )


def test_a_model_without_towers_has_no_use_for_it() -> None:
    assert read({"image_mean": 7, "do_pan_and_scan": True}, Gemma3Config()) == Preprocessor()
    deaf = Gemma3nConfig(vision_config={})
    assert read({"feature_size": 80}, deaf) == Preprocessor()
    assert read({"size": {"height": 7}}, Gemma3nConfig(audio_config={})) == Preprocessor()


@pytest.mark.parametrize(
    ("config", "name", "value", "built_for"),
    [
        (EYE, "image_mean", [0.48, 0.46, 0.41], "0.5"),
        (EYE, "image_mean", [], "0.5"),
        (EYE, "image_std", [0.5, 0.5, 0.25], "0.5"),
        (EYE, "image_std", 10**400, "0.5"),
        (EYE, "rescale_factor", 1.0, "0.0039"),
        (EYE, "do_rescale", False, "True"),
        (EYE, "do_normalize", False, "True"),
        (EYE, "do_resize", "yes", "True"),
        (EYE, "do_center_crop", True, "False"),
        (EYE, "resample", 3, "2"),
        (EYE, "size", {"height": 448, "width": 448}, "'height': 896"),
        (EYE, "size", {"shortest_edge": 896}, "'height': 896"),
        (EYE, "size", [896], "'height': 896"),
        (EYE, "image_seq_length", 64, "256"),
        (BOTH, "size", {"height": 256, "width": 512}, "'height': 256"),
        (BOTH, "size", {"height": 896, "width": 896}, "'height': 768"),
        (BOTH, "do_normalize", True, "False"),
        (BOTH, "sampling_rate", 8000, "16000"),
        (BOTH, "hop_length_ms", 12.5, "10.0"),
        (BOTH, "per_bin_mean", [0.0] * 128, "none"),
        (BOTH, "audio_seq_length", 100, "188"),
        (BOTH, "feature_extractor", {"feature_size": 80}, "128"),
    ],
)
def test_what_the_towers_were_not_built_for(
    config: ModelConfig, name: str, value: Any, built_for: str
) -> None:
    with pytest.raises(UnsupportedError, match=built_for) as caught:
        read({name: value}, config)
    told = str(caught.value)
    assert told.startswith("m/preprocessor_config.json has ") and len(told) < 400


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("do_pan_and_scan", "yes", "expected true or false"),
        ("pan_and_scan_max_num_crops", 1, "pan_and_scan_max_num_crops is 1"),
        ("pan_and_scan_min_crop_size", "big", "pan_and_scan_min_crop_size is 'big'"),
        ("pan_and_scan_min_ratio_to_activate", float("inf"), "give a number from 1 up"),
        ("image_processor", [1], "expected an object"),
    ],
)
def test_what_makes_no_sense(name: str, value: Any, reason: str) -> None:
    with pytest.raises(FileFormatError, match=f"m/preprocessor_config.json.*{reason}"):
        read({name: value})


def test_what_nobody_knows_is_told() -> None:
    (notice,) = read({"do_flip": True, "_private": 1, "nothing": None}).notices
    assert notice == "preprocessor_config.json has settings of no effect here: 'do_flip'"
    (notice,) = read({"do_pan_and_scan": True}, BOTH).notices
    assert "'do_pan_and_scan'" in notice  # Gemma 3n is never shown crops by the reference
    (notice,) = read({f"x{number}": 1 for number in range(10)}).notices
    assert notice.endswith("'x7' and 2 more")


def test_both_files_are_read_and_the_later_one_counts_more(tmp_path: Path) -> None:
    earlier, later = tmp_path / "preprocessor_config.json", tmp_path / "processor_config.json"
    earlier.write_text(json.dumps({"do_pan_and_scan": True, "pan_and_scan_max_num_crops": 2}))
    later.write_text(json.dumps({"image_processor": {"pan_and_scan_max_num_crops": 3}}))
    source = Source(tmp_path, EYE, {}, lambda name: pytest.fail("no tensor is touched"))
    assert preprocessor_of(source).vision_options == VisionOptions(PanScan(max_num_crops=3))
    later.write_text("{")
    with pytest.raises(FileFormatError, match="processor_config.json: not readable as JSON"):
        preprocessor_of(source)
