"""Models on this machine: each by the name that runs it, where it lies and how large it is.

They are the embedded default, what the hub library's cache holds (a row for each GGUF file), what
Ollama has, what lies in the working folder, and what conversions wrote elsewhere. Headers alone are
read, without torch (`headers`), so the list is quick. An mmproj is no row: it is part of the model
beside it.

    for one in stored(): print(one.name, one.size_bytes, one.mmproj)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemelo.checkpoints import hub_cache, locate, ollama, written
from gemelo.checkpoints.gguf_names import is_gguf, mmproj_of, models, parts_of, quantisation
from gemelo.checkpoints.headers import runs
from gemelo.checkpoints.hub import size_of
from gemelo.errors import UnavailableError

Origin = Literal["demo", "hub", "ollama", "folder", "written"]


@dataclass(frozen=True)
class Stored:
    """A model found on this machine; `path` is None for one that its first use puts together.

    mmproj is the file with its towers that lies beside it; origin says who keeps it: gemelo, the
    hub's library, Ollama, or the user.
    """

    name: str
    path: Path | None
    size_bytes: int
    mmproj: Path | None = None
    origin: Origin = "folder"


def stored() -> Iterator[Stored]:
    """Models that run without a network, by names that run; none twice."""
    names, places = set[str](), set[str]()
    for find in (_in_folder, _demo, _on_hub, _of_ollama, _written):
        for one in find():
            place = one.name if one.path is None else os.path.realpath(one.path)
            again = one.origin == "written" and place in places
            if one.name not in names and not again:
                names.add(one.name)
                places.add(place)
                yield one


def _demo() -> Iterator[Stored]:
    with suppress(UnavailableError):
        path = locate.cache_folder() / locate.DEMO_FILE
        if locate.is_whole(path):
            yield Stored(locate.DEMO, path, locate.DEMO_BYTES, origin="demo")
        elif locate.is_installed():
            yield Stored(locate.DEMO, None, locate.DEMO_BYTES, origin="demo")


def _on_hub() -> Iterator[Stored]:
    for repository, snapshot in hub_cache.cached():
        if hub_cache.has_directory(snapshot) and runs(snapshot):
            own = [file for file in snapshot.iterdir() if not is_gguf(file.name)]
            yield Stored(repository, snapshot, sum(map(size_of, own)), origin="hub")
        files = hub_cache.gguf_files(snapshot)
        types = Counter(quantisation(file) for file in models(files))
        for file in models(files):
            if runs(snapshot / file):
                type = quantisation(file)
                tag = type if type and types[type] == 1 else file
                beside = mmproj_of(files, file)
                yield _gguf(f"{repository}:{tag}", snapshot, file, beside, "hub")


def _of_ollama() -> Iterator[Stored]:
    for name, blob in ollama.listed():
        if runs(blob):
            yield Stored(name, blob, size_of(blob), origin="ollama")


def _in_folder() -> Iterator[Stored]:
    """GGUF files and model directories of the working folder, by paths that lead there."""
    here = Path()
    with suppress(OSError):
        here = Path.cwd()
    entries = _entries(here)
    files = [name for name in entries if is_gguf(name) and os.path.isfile(here / name)]
    for file in models(files):
        if runs(here / file):
            yield _gguf(file, here, file, mmproj_of(files, file), "folder")
    for name in entries:
        folder = here / name
        if os.path.isfile(folder / "config.json") and runs(folder):
            yield _directory(name, folder, "folder")


def _written() -> Iterator[Stored]:
    for one in written.written():
        if not runs(one.path):
            continue
        if one.path.is_dir():
            yield _directory(str(one.path), one.path, "written")
        else:
            beside = [name for name in _entries(one.path.parent) if is_gguf(name)]
            mmproj = mmproj_of(beside, one.path.name)
            yield _gguf(str(one.path), one.path.parent, one.path.name, mmproj, "written")


def _gguf(name: str, folder: Path, file: str, mmproj: str | None, origin: Origin) -> Stored:
    size_bytes = sum(size_of(folder / part) for part in parts_of(file))
    beside = None if mmproj is None else folder / mmproj
    return Stored(name, folder / file, size_bytes, beside, origin)


def _directory(name: str, folder: Path, origin: Origin) -> Stored:
    size_bytes = sum(size_of(folder / file) for file in _entries(folder))
    return Stored(name, folder, size_bytes, origin=origin)


def _entries(folder: Path) -> list[str]:
    """Names of what is in a folder, in order; none of one that cannot be read."""
    with suppress(OSError):
        return sorted(os.listdir(folder))
    return []
