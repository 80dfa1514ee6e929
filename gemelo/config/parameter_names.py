"""Shapes by name, nested as modules are: the name of a part stands before the names inside it.

part("mlp", {"up_proj.weight": (8, 4)})            # {"mlp.up_proj.weight": (8, 4)}
parts("layers", [layer, layer])                    # layers.0.mlp.up_proj.weight, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Shapes = dict[str, tuple[int, ...]]


def part(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """The shapes of what is called `name` inside something larger."""
    return {f"{name}.{inner}": shape for inner, shape in shapes.items()}


def parts(name: str, shapes: Iterable[Mapping[str, tuple[int, ...]]]) -> Shapes:
    """Those of a list called `name`, whose members are called by number."""
    named: Shapes = {}
    for index, one in enumerate(shapes):
        named |= part(f"{name}.{index}", one)
    return named


def affine(name: str, out_features: int, in_features: int) -> Shapes:
    """A linear map with a bias."""
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}
