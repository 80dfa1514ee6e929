"""The stub of the extension is what the extension says, and its enums have the names used here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

from gemelo.config import LAYER_TYPES
from gemelo.config.options import KVFormat
from gemelo.engine.programs.backends import _KINDS, _STORED
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS
from tests.native import needs_native

pytestmark = needs_native


def test_the_stub_is_what_the_extension_says() -> None:
    """`python dev/stub.py` writes it."""
    path = Path(__file__).parents[2] / "dev" / "stub.py"
    spec = importlib.util.spec_from_file_location("stub", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.STUB.read_text(encoding="utf-8") == module.stub()


def test_formats_are_known_and_numbered_as_in_a_file() -> None:
    for name in cpu.FORMATS:
        assert native.extension.Format[name.upper()].value == FORMATS[name].ggml_id


def test_layouts_have_the_same_names() -> None:
    assert list(cpu.Layout.__members__) == list(native.extension.Layout.__members__)


def test_caches_and_layer_types_have_names_there() -> None:
    assert tuple(_STORED) == get_args(KVFormat)
    assert set(_STORED.values()) == set(native.extension.CacheFormat.__members__)
    # A call has the slots of both types in the order of `KVCache.tables`.
    assert [_KINDS[kind] for kind in LAYER_TYPES] == list(native.extension.LayerType.__members__)
