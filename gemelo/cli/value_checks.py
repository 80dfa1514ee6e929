"""Checks of option values: what is wrong with one by itself, before anything heavy is loaded.

A missing file, an unknown sub-model or a device that is none would be found when the model is
loaded, and fetched before that. typer calls these when it has parsed an option. Errors begin with
the parameter's name, which `parsing` shows as the option that was typed.

    Image = Annotated[list[str] | None, typer.Option(callback=files_there)]
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import typer

from gemelo.checkpoints.locate import expanded, resolve
from gemelo.cli.parsing import TYPED
from gemelo.config.options import MAX_THREADS
from gemelo.errors import InputError
from gemelo.inputs.media.parts import REMOTE

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_PATH = re.compile(r"[/~]|\.{1,2}/")
_TABLES = (".toml", ".json")
_KINDS = ("latency", "memory", "difficulty")


def model_there(ctx: typer.Context, value: str | None) -> str | None:
    """A model, or the environment's where none is named; a path has to be there."""
    typed = ctx.meta.get(TYPED)
    is_named = typed is not None and {"model", "model_argument"} & set(typed.names)
    name = value if value is not None or is_named else os.environ.get("GEMELO_MODEL")
    if name is not None and (name == value == "" or _PATH.match(name) or _is_gguf(name)):
        resolve(name)  # which fetches nothing for a path
    return value


def _is_gguf(name: str) -> bool:
    """Whether a name is a file's in a folder that is here, so that no hub is asked for it."""
    return name.lower().endswith(".gguf") and ":" not in name and expanded(name).parent.is_dir()


def file_there(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """A file's name; an empty one, as from an unset variable of a shell, is refused."""
    if value is not None:
        _check_file(parameter, value)
    return value


def files_there(parameter: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Several."""
    for name in value or ():
        _check_file(parameter, name)
    return value


def _check_file(parameter: typer.CallbackParam, name: str) -> None:
    option = max(parameter.opts, key=len)
    if name == "":
        raise InputError(f"{option} is empty: name a file")
    if name.lower().startswith((*REMOTE, "data:")):
        return
    try:
        there = os.path.exists(name) or expanded(name).exists()
    except (OSError, ValueError) as error:  # too long for a name, forbidden, a NUL
        raise InputError(f"{option} {name}: {getattr(error, 'strerror', error)}") from None
    if not there:
        raise InputError(f"{option} {name}: no such file")


def submodel_known(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """A sub-model's name, or a file that is there."""
    if value is not None:
        _check_submodel(parameter, value)
    return value


def draft_known(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """NAME or NAME:int4 of a sub-model that drafts."""
    if value is not None:
        name, _, bits = value.partition(":")
        if bits not in ("", "int4"):
            raise InputError(f"{parameter.name} = {value}; expected NAME or NAME:int4")
        _check_submodel(parameter, name)
    return value


def _check_submodel(parameter: typer.CallbackParam, name: str) -> None:
    if name.endswith(_TABLES):
        if not Path(name).exists():
            raise InputError(f"{max(parameter.opts, key=len)} {name}: no such file")
        return
    from gemelo.config import Gemma3nConfig, Submodel

    Submodel.named(name, Gemma3nConfig())  # E4B has all of them


def policy_known(parameter: typer.CallbackParam, value: str | None) -> str | None:
    """KIND:NUMBER."""
    if value is not None:
        kind_and_number(value)
    return value


def kind_and_number(text: str) -> tuple[str, float]:
    """The parts of a policy's KIND:NUMBER."""
    kind, _, value = text.partition(":")
    try:
        number = float(value)
    except ValueError:
        kind = ""
    if kind not in _KINDS:
        raise InputError(
            f"--policy {text}: expected latency:TOKENS_PER_S, memory:GIB or difficulty:ENTROPY"
        )
    return kind, number


def device_known(parameter: typer.CallbackParam, value: str) -> str:
    """auto, cpu, cuda or cuda:N; whether it is there, torch knows."""
    if not _DEVICE.fullmatch(value):
        mac = "; on a Mac the CPU runs it" if value == "mps" else ""
        raise InputError(f"{parameter.name} = {value}; expected auto, cpu, cuda or cuda:N{mac}")
    return value


def threads_possible(parameter: typer.CallbackParam, value: int | None) -> int | None:
    """From one thread up."""
    if value is not None and not 1 <= value <= MAX_THREADS:
        raise InputError(f"{parameter.name} = {value}; expected 1 to {MAX_THREADS}")
    return value


def at_least_one(parameter: typer.CallbackParam, value: int | None) -> int | None:
    """A count that cannot be 0."""
    if value is not None and value < 1:
        raise InputError(f"{parameter.name} = {value}; expected a whole number from 1 up")
    return value


def above_zero(parameter: typer.CallbackParam, value: float) -> float:
    """A rate."""
    if not value > 0:  # NaN is not
        raise InputError(f"{parameter.name} = {value:g}; expected a number above 0")
    return value
