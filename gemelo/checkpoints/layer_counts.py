"""Layer counts: what a config claims, held against the layers that a file's tensors show.

A network is built before its names are compared with a file's, and a corrupt or hostile config may
ask for any number of layers. So each number of things that are made is compared with the names
first. What lacks only some is let through, since then a list of the missing names says more.

    check_counts(json.loads(text), {"language_model.layers.0.input_layernorm.weight": (64,), ...})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gemelo.config.config_json import section
from gemelo.errors import FileFormatError

MOST_MISSING = 16  # of what a config counts, before the two are taken for different models


class Counted(NamedTuple):
    """A number in a config: the object it stands in, its key, how the tensors that show it are
    called before their number, what there is besides those, and the part they are of."""

    part: str
    key: str
    prefix: str
    besides: int
    whole: tuple[str, ...]


DECODER = ("language_model.",)
SIGLIP = Counted(
    "vision_config",
    "num_hidden_layers",
    "vision_tower.encoder.layers.",
    0,
    ("vision_tower.", "multi_modal_projector."),
)
AUDIO_ENCODER = Counted(
    "audio_config",
    "conf_num_hidden_layers",
    "audio_tower.conformer.",
    0,
    ("audio_tower.", "embed_audio."),
)
COUNTED = (
    Counted("text_config", "num_hidden_layers", "language_model.layers.", 0, DECODER),
    Counted("text_config", "altup_num_inputs", "language_model.altup_projections.", 1, DECODER),
    SIGLIP,
    AUDIO_ENCODER,
)


def check_counts(raw: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise FileFormatError if a config.json counts far more than the canonical names show."""
    all_names = list(names)
    for counted in COUNTED:
        inside = section(raw, counted.part)
        alone = counted.part == "text_config" and counted.key not in inside
        claimed = (raw if alone else inside).get(counted.key)
        check_count(f"config: {counted.key}", claimed, counted, all_names)


def check_count(label: str, claimed: Any, counted: Counted, names: Iterable[str]) -> None:
    """The same of one number, by the name that its file has for it. What is no number is left to
    whoever reads it, and so is a part that the file holds nothing of."""
    if not isinstance(claimed, int):
        return
    own_names = [name for name in names if name.startswith(counted.whole)]
    shown = counted.besides + len(
        {
            name.removeprefix(counted.prefix).partition(".")[0]
            for name in own_names
            if name.startswith(counted.prefix)
        }
    )
    if own_names and claimed > shown + MOST_MISSING:
        raise FileFormatError(
            f"{label} is {claimed}, for {shown} that the tensors show; one of the two is of "
            "another model, or broken"
        )
