"""The mmproj beside a GGUF: which of the files that lie there has the towers of this model.

llama.cpp is told the mmproj by name or takes one of the same repository; here the folder is looked
at. A file counts by its name (`mmproj` in it), and fits if its towers project to the model's width.
Of one mmproj in several precisions the first of f16, bf16, q8_0 and f32 is taken; of several that
fit the one that is named as the model is. One of another model is passed over in silence, since a
folder may hold many models; what is ambiguous or broken is a notice.

    source = with_companion(open_source(path))
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gemelo.checkpoints.gguf_names import is_mmproj, precision_order, quantisation
from gemelo.checkpoints.mmproj import with_mmproj, with_own_towers
from gemelo.checkpoints.source import Source
from gemelo.errors import FileFormatError, GemeloError, listed

_FILLERS = {"mmproj", "model", "gguf"}


def companions(path: Path) -> list[Path]:
    """The mmproj files that may be a GGUF file's: those of its folder, or where the hub's cache
    has the model in an inner folder, those of the repository."""
    if not path.is_file():
        return []
    beside = _mmprojs(path.parent, path.name)
    top = next((up for up in path.parents if _is_snapshot(up)), None)
    return beside if beside or top is None else _mmprojs(top, path.name)


def with_companion(source: Source) -> Source:
    """The source with the towers that are in its file or lie beside it; itself where none do, or
    none fit."""
    if source.gguf_metadata is None:
        return source
    if source.tower_file is not None:
        return _with_its_own(source)
    fitting, broken = list[Source](), list[str]()
    for path in companions(source.path):
        try:
            fitting.append(with_mmproj(source, path))
        except FileFormatError as error:
            broken.append(f"{error}; it lies beside the model and is left out")
        except GemeloError:
            continue  # another model's
    if not fitting:
        return dataclasses.replace(source, notices=(*source.notices, *broken))
    return _one_of(source, fitting)


def _with_its_own(source: Source) -> Source:
    try:
        return with_own_towers(source)
    except GemeloError as error:
        notices = (*source.notices, f"{error}; its vision tower is left out")
        return dataclasses.replace(source, notices=notices)


def _one_of(source: Source, fitting: Sequence[Source]) -> Source:
    """The source with the towers that are meant; itself, with a notice, where that is not clear."""
    names = {one.mmproj.name: one for one in fitting if one.mmproj is not None}
    models = {_model(name) for name in names}
    if len(models) > 1:
        models &= {_model(source.path.name)}
    if len(models) == 1:
        own = [name for name in names if _model(name) in models]
        return names[min(own, key=precision_order)]
    notice = (
        f"{listed(sorted(names))} lie beside the model and fit it, so none is taken; --mmproj FILE "
        "takes one"
    )
    return dataclasses.replace(source, notices=(*source.notices, notice))


def _model(name: str) -> str:
    """What is left of a file's name without its ending, its precision and the word mmproj."""
    stem = name.lower().removesuffix(".gguf")
    precision = quantisation(name).lower()
    words = re.split(r"[-.]", re.sub(rf"(?<![a-z0-9]){re.escape(precision)}(?![a-z0-9])", "", stem))
    return "-".join(word for word in words if word and word not in _FILLERS)


def _mmprojs(folder: Path, but: str) -> list[Path]:
    with suppress(OSError):
        return sorted(
            folder / name for name in os.listdir(folder) if is_mmproj(name) and name != but
        )
    return []


def _is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
