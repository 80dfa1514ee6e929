"""Processor config: preprocessor_config.json and processor_config.json, checked.

Hugging Face keeps it in preprocessor_config.json, later versions in processor_config.json with an
object for each tower. Most of it repeats what the towers were built for, and a file that asks for
anything else is refused by the name of the setting: a tower given other numbers than it was trained
on answers all the same, and wrongly. What is left to choose becomes the default `VisionOptions`:
Pan & Scan and its thresholds for Gemma 3, the image size for Gemma 3n. A setting that nobody here
knows is listed in `notices`.

    preprocessor = read_preprocessor([(path, {"do_pan_and_scan": True})], config)
    preprocessor.vision_options, preprocessor.thresholds, preprocessor.notices
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from gemelo.config import ModelConfig
from gemelo.config.checks import is_number
from gemelo.errors import FileFormatError, InputError, UnsupportedError
from gemelo.inputs.media import mel
from gemelo.inputs.media.audio import SAMPLING_RATE
from gemelo.inputs.media.panscan import DEFAULT, PanScan
from gemelo.inputs.prompt.media_loader import VisionOptions

FILES = ("preprocessor_config.json", "processor_config.json")  # the later one counts more
_PARTS = ("image_processor", "feature_extractor")
_SWITCH = "do_pan_and_scan"
_PREFIX = "pan_and_scan_"
_THRESHOLDS = {f"{_PREFIX}{field.name}": field.name for field in fields(PanScan)}
_SAME = 1e-6  # how far apart two numbers may be that are the same, written by different people
_LISTED = 8  # settings in a notice before "and n more"

_IMAGE_SETTINGS: dict[str, Any] = {
    "do_resize": True,
    "resample": 2,  # bilinear
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_center_crop": False,
    "do_pad": False,
}
_AUDIO_SETTINGS: dict[str, Any] = {
    "feature_size": mel.NUM_MELS,
    "sampling_rate": SAMPLING_RATE,
    "frame_length": mel.FRAME_LENGTH,
    "frame_length_ms": 1000.0 * mel.FRAME_LENGTH / SAMPLING_RATE,
    "hop_length": mel.HOP_LENGTH,
    "hop_length_ms": 1000.0 * mel.HOP_LENGTH / SAMPLING_RATE,
    "fft_length": mel.FFT_LENGTH,
    "fft_overdrive": True,
    "min_frequency": mel.MIN_FREQUENCY,
    "max_frequency": mel.MAX_FREQUENCY,
    "preemphasis": mel.PREEMPHASIS,
    "preemphasis_htk_flavor": True,
    "mel_floor": mel.MEL_FLOOR,
    "dither": 0.0,
    "input_scale_factor": 1.0,
}
# Settings on which nothing depends that a tower is given, or by themselves nothing.
_WITHOUT_EFFECT = {
    *("processor_class", "image_processor_type", "feature_extractor_type", "auto_map"),
    *("data_format", "input_data_format", "return_tensors", "return_attention_mask"),
    *("device", "disable_grouping", "default_to_square", "crop_size", "pad_size"),
    *("do_convert_rgb", "padding_side", "padding_value", "chat_template"),
    *("do_normalize", "image_mean", "image_std", "size", "image_seq_length", "audio_seq_length"),
    *("per_bin_mean", "per_bin_stddev", *_IMAGE_SETTINGS, *_AUDIO_SETTINGS),
}


@dataclass(frozen=True)
class Preprocessor:
    """What a model's files leave to choose: whether long pictures are cropped if nobody says so,
    from when on they are, and Gemma 3n's image size in pixels (None for its greatest)."""

    do_pan_and_scan: bool = False
    thresholds: PanScan = DEFAULT
    image_size: int | None = None
    notices: tuple[str, ...] = ()

    @property
    def vision_options(self) -> VisionOptions:
        """How images and videos are preprocessed if nobody says otherwise."""
        return VisionOptions(self.thresholds if self.do_pan_and_scan else None, self.image_size)


class Setting(NamedTuple):
    """A value, and the file that has it."""

    where: Path
    value: Any


def read_preprocessor(
    files: Iterable[tuple[Path, Mapping[str, Any]]], config: ModelConfig
) -> Preprocessor:
    """The preprocessor of a model of `config`, from its files' JSON objects; later ones count more.

    Raises UnsupportedError for a setting that its towers were not built for, FileFormatError for
    one that makes no sense.
    """
    if not config.is_multimodal:
        return Preprocessor()
    by_name = settings(files)
    wanted = built_for(config)
    for name, setting in by_name.items():
        if name in wanted:
            _check(name, setting, wanted[name])
    if config.vision is not None and config.vision.do_pan_and_scan:
        notices = _notices(by_name, {*_WITHOUT_EFFECT, _SWITCH, *_THRESHOLDS})
        return Preprocessor(_switch(by_name), _thresholds(by_name), None, notices)
    size = by_name["size"].value if {"size"} <= by_name.keys() & wanted.keys() else None
    image_size = None if size is None else int(size["height"])
    return Preprocessor(image_size=image_size, notices=_notices(by_name, _WITHOUT_EFFECT))


def settings(files: Iterable[tuple[Path, Mapping[str, Any]]]) -> dict[str, Setting]:
    """Every setting that has a value, by its name; those of a part count more than the whole's."""
    by_name: dict[str, Setting] = {}
    for where, raw in files:
        parts = [{name: value for name, value in raw.items() if name not in _PARTS}]
        for name in _PARTS:
            part = {} if raw.get(name) is None else raw[name]
            if not isinstance(part, Mapping):
                raise FileFormatError(f"{where} has {name} = {part!r:.60}; expected an object")
            parts.append(dict(part))
        for part in parts:
            by_name |= {n: Setting(where, value) for n, value in part.items() if value is not None}
    return {name: setting for name, setting in by_name.items() if not name.startswith("_")}


def built_for(config: ModelConfig) -> dict[str, tuple[Any, ...]]:
    """The values that a setting may have, by its name, for the towers that a model has."""
    modalities = config.modalities
    one: dict[str, Any] = {}
    if modalities.image is not None:
        one |= _IMAGE_SETTINGS | {"image_seq_length": modalities.image.num_tokens}
    if modalities.audio is not None:
        one |= _AUDIO_SETTINGS | {"audio_seq_length": modalities.audio.num_tokens}
    known: dict[str, tuple[Any, ...]] = {}
    if config.vision is not None:
        mean, std = config.vision.image_mean, config.vision.image_std
        one["do_normalize"] = (mean, std) != (0, 1)
        if one["do_normalize"]:  # else the two say nothing
            one |= {"image_mean": mean, "image_std": std}
        sizes = config.vision.image_sizes
        known["size"] = tuple({"height": side, "width": side} for side in sizes)
    known |= {name: (value,) for name, value in one.items()}
    if modalities.audio is not None:
        known |= {"per_bin_mean": (), "per_bin_stddev": ()}
    return known


def _check(name: str, setting: Setting, wanted: tuple[Any, ...]) -> None:
    where, value = setting
    if any(_same(value, one) for one in wanted):
        return
    able = " or ".join(map(str, wanted)) or "none"
    raise UnsupportedError(
        f"{where} has {name} = {value!r:.60}, and the model's towers were built for {able}: "
        "correct it, or leave it out"
    )


def _same(value: Any, wanted: Any) -> bool:
    """Whether a setting is what it should be; for a number, all of a list may be it."""
    if isinstance(wanted, float):
        least, most = wanted * (1 - _SAME), wanted * (1 + _SAME)
        numbers = value if isinstance(value, list) and value else [value]
        return all(is_number(number) and least <= number <= most for number in numbers)
    if isinstance(wanted, dict) and isinstance(value, Mapping):
        value = {name: number for name, number in value.items() if number is not None}
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        return is_number(value) and bool(value == wanted)
    return type(value) is type(wanted) and bool(value == wanted)


def _switch(by_name: Mapping[str, Setting]) -> bool:
    if _SWITCH not in by_name:
        return False
    setting = by_name[_SWITCH]
    if not isinstance(setting.value, bool):
        raise FileFormatError(
            f"{setting.where} has {_SWITCH} = {setting.value!r:.60}; expected true or false"
        )
    return setting.value


def _thresholds(by_name: Mapping[str, Setting]) -> PanScan:
    thresholds = {
        _THRESHOLDS[name]: setting for name, setting in by_name.items() if name in _THRESHOLDS
    }
    try:
        return PanScan(**{name: setting.value for name, setting in thresholds.items()})
    except InputError as error:
        where = thresholds[str(error).partition(" ")[0]].where  # it begins with what is wrong
        raise FileFormatError(f"{where}: {_PREFIX}{error}") from None


def _notices(by_name: Mapping[str, Setting], known: set[str]) -> tuple[str, ...]:
    """A sentence for each file on the settings that nobody here knows."""
    unknown: dict[str, list[str]] = {}
    for name, setting in by_name.items():
        if name not in known:
            unknown.setdefault(setting.where.name, []).append(f"{name!r:.40}")
    notices = []
    for file, names in unknown.items():
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        listed = ", ".join(names[:_LISTED])
        notices.append(f"{file} has settings of no effect here: {listed}{more}")
    return tuple(notices)
