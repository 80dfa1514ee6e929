"""Sub-models (MatFormer, Mix-n-Match) as values: which layers run, and how wide they are.

The same value is what a slice copies, a view shares, a draft runs, a search tries and a loss
samples. It has names for the published ones (E2B, and the mixes of the slicing table), or is
written out, or comes from a TOML or JSON file. What would not work is refused with words: a layer
that gives its keys to others cannot be skipped, a width must be whole quantisation blocks.

    e2b = Submodel.named("E2B", config)
    small = e2b.config(config)              # the config.json of that model alone
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from typing import Any, Self, TypeVar

from gemelo.config.checks import is_number
from gemelo.config.gemma3n import Gemma3nConfig
from gemelo.config.model import ModelConfig
from gemelo.errors import FileFormatError, InputError
from gemelo.text_files import read_object

Config = TypeVar("Config", bound=ModelConfig)

_MAX_BYTES = 1 << 20  # of a file that describes one
_MOST_LISTED = 3  # names in an error
GROUP = 32  # neurons: the smallest block of the quantised formats, so that a prefix cuts none

# Gemma 3n's published mixes (slicing table of the model card): layers of full width; the others
# have half. All are cut from 35 layers; the first two skip the block 20-24.
_ALL = range(35)
_BLOCK = (20, 21, 22, 23, 24)
_PUBLISHED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # name: (wide layers, skipped layers)
    "E2B": ((), _BLOCK),
    "E1.96B-layer": ((4,), _BLOCK),
    "E2.54B-layer": ((4, *_BLOCK), ()),
    "E2.69B-layer": ((4, 9, 14, 19, *_BLOCK), ()),
    "E2.98B-layer": ((*range(15, 25), *range(30, 35)), ()),
    "E3.18B-layer": ((4, *range(9, 25), 29, 34), ()),
    "E3.39B-layer": ((4, *range(9, 30), 34), ()),
    "E3.59B-layer": ((*range(4, 30), 34), ()),
    "E3.79B-layer": (tuple(range(4, 35)), ()),
    "E2.49B-block": (_BLOCK, ()),
    "E2.73B-block": (tuple(range(15, 25)), ()),
    "E2.98B-block": (tuple(range(10, 25)), ()),
    "E3.24B-block": (tuple(range(10, 30)), ()),
    "E3.49B-block": (tuple(range(5, 30)), ()),
    "E3.79B-block": (tuple(range(5, 35)), ()),
}
E4B = "E4B"
E4B_WIDTH, E2B_WIDTH = 16384, 8192  # neurons of a wide layer, and of one of half width
WHOLE, HALF = "whole", "half"  # of any model
_FEW = ("E2B", "E2.49B-block", "E2.98B-block", "E3.49B-block")


@dataclass(frozen=True)
class Submodel:
    """ffn_widths has an entry for every kept layer, in order; skipped_layers are the whole's."""

    ffn_widths: tuple[int, ...]
    skipped_layers: tuple[int, ...] = ()
    name: str = dataclasses.field(default="", compare=False)

    def __repr__(self) -> str:
        """As Python reads it, equal widths beside each other put together."""
        runs = [(width, len([*run])) for width, run in groupby(self.ffn_widths)]
        widths = " + ".join(f"({width},) * {count}" for width, count in runs) or "()"
        name = f", name={self.name!r}" if self.name else ""
        return f"Submodel(ffn_widths={widths}, skipped_layers={self.skipped_layers}{name})"

    @classmethod
    def whole(cls, config: ModelConfig, name: str = "") -> Self:
        """All of it, by the name that it has if it is a published size."""
        return cls(config.ffn_widths, (), name or name_of(config))

    @classmethod
    def half(cls, config: ModelConfig, from_layer: int = 0) -> Self:
        """Feed-forwards from a layer on at half their width, in whole blocks; nothing skipped."""
        widths = tuple(
            width if layer < from_layer else max(GROUP, width // 2 // GROUP * GROUP)
            for layer, width in enumerate(config.ffn_widths)
        )
        whole = name_of(config)
        name = HALF if whole == WHOLE else f"{HALF} of {whole}"
        return cls(widths, (), name if not from_layer else f"{name} from layer {from_layer}")

    @classmethod
    def easy(cls, config: ModelConfig) -> Self:
        """Half the width wherever it leaves no trace in the KV cache: from the last layer that owns
        keys on, whose feed-forward comes after them."""
        return cls.half(config, from_layer=config.kv_layers[-1])

    @classmethod
    def by_size(cls, config: ModelConfig) -> list[Self]:
        """A few sub-models to choose among, the smallest first: published ones that a model holds,
        if it is E4B or cut from it by widths alone; else its half and itself."""
        whole = cls.whole(config)
        few = [cls.published(name) for name in _FEW]
        fitting = [part for part in few if not part.missing_in(config) and part != whole]
        return [*(fitting or [cls.half(config)]), whole]

    @classmethod
    def published(cls, name: str) -> Self:
        """A size of the slicing table, by its whole name. Layers and widths are E4B's."""
        wide, skipped = (_ALL, ()) if name == E4B else _PUBLISHED[name]
        kept = [layer for layer in _ALL if layer not in skipped]
        widths = tuple(E4B_WIDTH if layer in wide else E2B_WIDTH for layer in kept)
        return cls(widths, skipped, name)

    @classmethod
    def named(cls, name: str, config: ModelConfig) -> Self:
        """A sub-model by its name (case and a unique beginning are enough): a published one, which
        means that very model and no other, or of any model its `half` or the `whole`."""
        if name.lower() in (WHOLE, HALF):
            return cls.whole(config) if name.lower() == WHOLE else cls.half(config)
        chosen = cls.published(_full_name(name))
        if name_of(config) == chosen.name:
            return cls.whole(config)
        if reason := chosen.missing_in(config):
            raise InputError(
                f"sub-model {chosen.name!r} is cut from {reason}; give `{WHOLE}`, `{HALF}`, or "
                "ffn_widths in a .toml or .json file"
            )
        return chosen.checked(config)

    @classmethod
    def read(cls, path: Path, config: ModelConfig) -> Self:
        """From a TOML or JSON file: `ffn_widths` (a number or a list), `skipped_layers`, `name`."""
        raw = read_object(path, _MAX_BYTES)
        if set(raw) - {"ffn_widths", "skipped_layers", "name"}:
            raise FileFormatError(f"{path}: expected ffn_widths, skipped_layers and name")
        skipped = _whole_numbers(path, "skipped_layers", raw.get("skipped_layers", []))
        widths = raw.get("ffn_widths")
        if isinstance(widths, int):
            widths = [widths] * (config.num_hidden_layers - len(skipped))
        ffn_widths = _whole_numbers(path, "ffn_widths", widths)
        return cls(ffn_widths, skipped, _own_name(path, raw)).checked(config)

    @classmethod
    def of(cls, choice: str | Self, config: ModelConfig) -> Self:
        """A sub-model, a published name, or the path of a file that describes one."""
        if isinstance(choice, Submodel):
            return choice.checked(config)
        if not isinstance(choice, str):
            raise InputError(f"sub-model {choice!r:.80}; expected a name, a file or a Submodel")
        if choice.endswith((".toml", ".json")):
            return cls.read(Path(choice), config)
        return cls.named(choice, config)

    def missing_in(self, config: ModelConfig) -> str:
        """What a published sub-model is cut from and a model is not; "" if it can be cut."""
        layers, widths = config.num_hidden_layers, config.ffn_widths
        if layers != len(_ALL):
            return f"{len(_ALL)} layers and this model has {layers}: it is a part of {E4B}"
        for layer, width in zip(self.kept_layers(config), self.ffn_widths, strict=True):
            if widths[layer] < width:
                return (
                    f"{E4B}, with {width} neurons in layer {layer}, of which this model has "
                    f"{widths[layer]}"
                )
        if max(widths) > E4B_WIDTH or not self.published(E4B).fits(config):
            return f"{E4B}, whose layers are others than this model's"
        return ""

    def kept_layers(self, config: ModelConfig) -> tuple[int, ...]:
        """The whole's layers that run, in order."""
        return tuple(layer for layer in config.layers if layer not in self.skipped_layers)

    def config(self, config: Config) -> Config:
        """The config of this sub-model as a model of its own."""
        return config.nested(self.kept_layers(config), self.ffn_widths)

    def checked(self, config: ModelConfig) -> Self:
        """Itself, if it can be cut from a model of `config`; else an `InputError` that says why."""
        layers, skipped = config.num_hidden_layers, self.skipped_layers
        for layer in skipped:
            if layer not in config.layers:
                raise InputError(f"skipped layer {layer} is outside 0 to {layers - 1}")
        if len(set(skipped)) != len(skipped):
            raise InputError(f"skipped_layers names a layer twice: {list(skipped)}")
        donors = {layer.kv_donor for layer in config.layer_configs if layer.kv_donor is not None}
        if lost := sorted(donors & set(skipped)):
            raise InputError(
                f"layer {lost[0]} cannot be skipped: the last {config.num_kv_shared_layers} layers "
                "attend over its keys and values"
            )
        kept = self.kept_layers(config)
        if len(self.ffn_widths) != len(kept):
            raise InputError(
                f"{len(self.ffn_widths)} ffn_widths for {len(kept)} kept layers "
                f"({layers} less {len(skipped)} skipped); give one for each"
            )
        for layer, width in zip(kept, self.ffn_widths, strict=True):
            most = config.ffn_widths[layer]
            if not 0 < width <= most or width % GROUP:
                raise InputError(
                    f"layer {layer}: a feed-forward width of {width} is not a multiple of {GROUP} "
                    f"from {GROUP} to {most}"
                )
        self._check_name(config)
        return self

    def _check_name(self, config: ModelConfig) -> None:
        """A published name is of that size alone, or statistics would tell of another model."""
        asked = self.name.upper()
        if asked in map(str.upper, names()) and name_of(self.config(config)).upper() != asked:
            raise InputError(
                f"{self.name!r} is the name of a published size, and this sub-model is another; "
                "give it a name of its own"
            )

    def fits(self, config: ModelConfig) -> bool:
        """Whether a model's layers are those that a published sub-model keeps of E4B's."""
        own = self.config(Gemma3nConfig())
        return (own.layer_types, own.kv_layers) == (config.layer_types, config.kv_layers)

    def owns_all_keys(self, config: ModelConfig) -> bool:
        """Whether its cache has the whole's shape, so that the two can take turns on one cache."""
        return not any(layer in config.kv_layers for layer in self.skipped_layers)

    def same_keys(self, other: Submodel, config: ModelConfig) -> bool:
        """Whether both write the very same cache: they agree on every layer that owns keys.

        The layers above those may differ: they leave no trace in the cache. Of the last layer that
        owns keys only what comes before them counts, and its feed-forward comes after.
        """
        owners = [layer for layer in config.kv_layers if layer not in self.skipped_layers]
        if owners != [layer for layer in config.kv_layers if layer not in other.skipped_layers]:
            return False
        ours, theirs = self._width_of(config), other._width_of(config)
        return all(ours[layer] == theirs[layer] for layer in owners[:-1])

    def _width_of(self, config: ModelConfig) -> dict[int, int]:
        return dict(zip(self.kept_layers(config), self.ffn_widths, strict=True))


def names() -> list[str]:
    """The published sub-models, the whole that they are cut from first."""
    return [E4B, *_PUBLISHED]


def names_in(config: ModelConfig) -> list[str]:
    """The published sub-models that a model holds, itself among them if it is one."""
    own = name_of(config)
    return [n for n in names() if n == own or not Submodel.published(n).missing_in(config)]


def name_of(config: ModelConfig) -> str:
    """The published name of a model by its layers and widths; `whole` of any other."""
    for name in names():
        size = Submodel.published(name)
        if size.ffn_widths == config.ffn_widths and size.fits(config):
            return name
    return WHOLE


def _full_name(name: str) -> str:
    """A published name from one in any case or its unique beginning."""
    matches = [key for key in names() if key.upper().startswith(name.upper())]
    exact = [key for key in matches if key.upper() == name.upper()]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    close = matches or _closest(name)
    first = f"{', '.join(close[:_MOST_LISTED])}{', ...' if len(close) > _MOST_LISTED else ''}"
    raise InputError(
        f"sub-model {name!r:.40} is "
        + (f"ambiguous: {first}" if matches else f"unknown; closest: {first}")
        + f"; `gemelo show sizes` lists what a model has, and `{HALF}`, `{WHOLE}` or a .toml or "
        ".json file will do, too"
    )


def _closest(name: str) -> list[str]:
    """Published names by how much they look like a name, the closest first."""

    def likeness(key: str) -> float:
        return SequenceMatcher(None, name.lower(), key.lower()).ratio()

    return sorted(names(), key=likeness, reverse=True)[:_MOST_LISTED]


def _own_name(path: Path, raw: dict[str, Any]) -> str:
    name = raw.get("name", path.stem)
    if not isinstance(name, str):
        raise FileFormatError(f"{path}: name is {name!r:.60}; expected a text")
    return name


def _whole_numbers(path: Path, name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | dict):
        raise FileFormatError(f"{path}: {name} is {value!r}; expected whole numbers")
    numbers = tuple(value)
    if not all(isinstance(item, int) and is_number(item) for item in numbers):
        raise FileFormatError(f"{path}: {name} is {value!r}; expected whole numbers")
    return numbers
