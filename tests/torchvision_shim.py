"""timm, the oracle of Gemma 3n's eye, and transformers import a torchvision that they barely use.

A torchvision that was built for another torch than the one at hand (a CUDA build beside a CPU one,
as the registries have it) fails to import for want of its compiled operators. Nothing here calls
those: once their signatures are declared, it imports. One that works is left as it is.

    import tests.tvshim  # in conftest.py, so that it comes before any test imports either
"""

from __future__ import annotations

import importlib
import warnings
from importlib.util import find_spec

from torch import library

OPERATORS = ("nms", "qnms")


def declare() -> None:
    """The signatures, without anything behind them."""
    for name in OPERATORS:
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(f"torchvision::{name}", schema)


def load() -> None:
    """Import torchvision if there is one, with its operators declared where they are missing."""
    if find_spec("torchvision") is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its readers of pictures are missing too
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            declare()
            importlib.import_module("torchvision")


load()
