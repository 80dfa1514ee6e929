"""Optional packages: whether an extra is installed, and the one line that says how to install it.

gemelo installs what text on a CPU needs. Pictures, sound, a GPU and a microphone need more, which
pip's extras bring. A package is imported where it is first used, never at the top of a module, and
whoever uses it says so here: then a package that is missing, too old or broken is one line with the
command, not a traceback. A half installed extra is told from a missing one by the package's name.

    require("PIL", "media", what="pictures")
    from PIL import Image
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec

from gemelo.errors import MissingExtraError, one_line

_REASON_CHARS = 160  # of what an import raised


@dataclass(frozen=True)
class Requirement:
    """A package as the index names it, and its least version."""

    distribution: str
    least: str


# By the name under which Python imports them; pyproject.toml has the same.
REQUIREMENTS = {
    "torch": Requirement("torch", "2.6"),
    "PIL": Requirement("pillow", "11"),
    "av": Requirement("av", "14"),
    "sounddevice": Requirement("sounddevice", "0.5"),
}


def require(package: str, extra: str, what: str) -> None:
    """Import a package of an extra; `what` is the plural of that which needs it.

    Raises MissingExtraError for one that is missing, older than its range, or cannot be imported.
    """
    wanted = REQUIREMENTS[package]
    try:
        module = import_module(package)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise _missing(wanted, extra, what) from None
        raise _broken(wanted, what, error) from None
    except Exception as error:  # a shared library that is missing, another NumPy
        raise _broken(wanted, what, error) from None
    if _is_mere_folder(module.__spec__):
        raise _missing(wanted, extra, what)
    _check_version(wanted, str(getattr(module, "__version__", wanted.least)), extra, what)


def check_installed(package: str, extra: str, what: str) -> None:
    """The same by what pip has installed, in a millisecond: nothing is imported, and so one that is
    broken is not seen."""
    wanted = REQUIREMENTS[package]
    if package in sys.modules:
        loaded = sys.modules[package]
        is_there = loaded is not None and not _is_mere_folder(loaded.__spec__)
    else:
        is_there = is_found(package)
    if not is_there:
        raise _missing(wanted, extra, what)
    with suppress(PackageNotFoundError):  # it came in another way
        if version := installed_version(wanted.distribution):  # None of a folder that is left
            _check_version(wanted, version, extra, what)


def is_found(package: str) -> bool:
    """Whether Python would find a package that is not loaded yet, and not a mere folder."""
    spec = find_spec(package)
    return spec is not None and not _is_mere_folder(spec)


def _is_mere_folder(spec: ModuleSpec | None) -> bool:
    """Whether it is a folder without `__init__.py`, which Python imports as an empty package: what
    an uninstallation left, or one of that name where a program was started."""
    return spec is not None and spec.origin is None and spec.submodule_search_locations is not None


def _missing(wanted: Requirement, extra: str, what: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} need the extra {extra} ({wanted.distribution} is not installed): "
        f"pip install 'gemelo[{extra}]'"
    )


def _check_version(wanted: Requirement, version: str, extra: str, what: str) -> None:
    if _numbers(version) < _numbers(wanted.least):
        raise MissingExtraError(
            f"{what} need {wanted.distribution} >= {wanted.least}, and {version} is installed: "
            f"pip install 'gemelo[{extra}]'"
        )


def _broken(wanted: Requirement, what: str, error: Exception) -> MissingExtraError:
    reason = one_line(" ".join(f"{type(error).__name__}: {error}".split()), _REASON_CHARS)
    return MissingExtraError(
        f"{what} need {wanted.distribution}, which cannot be imported ({reason}): "
        f"pip install --force-reinstall '{wanted.distribution}>={wanted.least}'"
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 6, 0) of 2.6.0+cpu."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()
