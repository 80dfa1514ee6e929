"""Option groups: what typer is shown of a command, what the command is given, whose defaults."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass

import pytest
import typer
from typer.testing import CliRunner

from gemelo.api import load
from gemelo.cli import options
from gemelo.cli.chat import ChatSampling
from gemelo.cli.groups import (
    Elastic,
    Frames,
    Loading,
    SamplingOptions,
    checked_sampling,
    grouped,
)
from gemelo.cli.transcribe import AudioLoading, TranscriptSampling
from gemelo.config.sampling import CHAT, TRANSCRIPTION, Sampling
from gemelo.engine.session import Session
from gemelo.inputs.prompt.media_loader import VisionOptions


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    port: int = 8080


def test_a_command_is_shown_with_the_fields_and_given_the_values() -> None:
    given: list[object] = []

    @grouped
    def serve(
        ctx: typer.Context, *, address: Address, model: options.Model = None, loading: Loading
    ) -> None:
        """Serve."""
        given.extend((ctx.params["port"], address, model, loading))

    app = typer.Typer()
    app.command()(serve)
    shown = [one for one in inspect.signature(serve).parameters if one != "ctx"]
    fields = [field.name for field in dataclasses.fields(Loading)]
    assert shown == ["host", "port", "model", *fields] and serve.__doc__ == "Serve."
    words = ["--port", "1", "--format", "q8_0", "-m", "x", "--no-repack"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    assert given == [1, Address(port=1), "x", Loading(format="q8_0", repack=False)]
    assert CliRunner().invoke(app, ["--format", "q9"]).exit_code == 2
    assert CliRunner().invoke(app, ["--loading", "x"]).exit_code == 2


@pytest.mark.parametrize(
    ("group", "values"),
    [
        (SamplingOptions, Sampling()),
        (ChatSampling, CHAT),
        (TranscriptSampling, TRANSCRIPTION),
    ],
)
def test_defaults_of_sampling_are_the_librarys(group: type, values: Sampling) -> None:
    assert checked_sampling(group()) == values


def test_every_setting_of_sampling_is_an_option() -> None:
    names = {field.name for field in dataclasses.fields(Sampling)}
    assert {field.name for field in dataclasses.fields(SamplingOptions)} == names


def test_defaults_of_loading_are_the_librarys() -> None:
    known = inspect.signature(load).parameters
    for name, value in vars(Loading()).items():
        assert known[name].default == value, name
    assert AudioLoading().shared() == Loading()
    assert AudioLoading(weights="q4_0", threads=3).shared() == Loading(format="q4_0", threads=3)
    assert Elastic().rebuild == inspect.signature(Session.use).parameters["rebuild"].default
    assert Frames().fps == VisionOptions().fps
