"""Option groups: dataclasses whose fields are typer options, expanded into a command's signature.

A command names a group once, as a parameter of its type, and is given the value; `grouped` shows
typer the group's fields in that parameter's place. So an option that several commands have is
written once, with its default, and the help lists it where the group stands. The defaults of
sampling are those of the library's `Sampling`; a test holds the others against `gemelo.load`.

    @grouped
    def serve(model: options.Model = None, *, loading: Loading, sampling: SamplingOptions) -> None:
        load(model, **loading.arguments())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer

from gemelo.cli import options
from gemelo.cli.terminal import checked_text
from gemelo.config.sampling import Sampling
from gemelo.errors import InputError

Command = Callable[..., None]


def grouped(command: Command) -> Command:
    """The command as typer reads it: with the fields of its groups in the place of each."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if _is_group(hint)}
    expanded: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if name in groups:
            expanded += _parameters(groups[name])
        else:
            expanded.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    return with_parameters(run, expanded)


def with_parameters(run: Command, parameters: Iterable[Parameter]) -> Command:
    """A function as typer reads it: with these parameters, whatever it was written with."""
    shown = list(parameters)
    run.__dict__["__signature__"] = Signature(shown)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def model_first(command: Command) -> Command:
    """A command with `model` as an option, which takes the model as its first word too."""
    expanded = grouped(command)

    @wraps(expanded)
    def run(model_argument: str | None, **values: Any) -> None:
        if model_argument is not None and values["model"] is not None:
            raise InputError(
                f"both MODEL {model_argument} and --model {values['model']} are given; give one "
                "of them"
            )
        model = values["model"] if model_argument is None else model_argument
        expanded(**values | {"model": model})

    first = Parameter(
        "model_argument",
        Parameter.KEYWORD_ONLY,
        default=None,
        annotation=options.ModelArgument,
    )
    others = signature(expanded).parameters.values()
    context = [one for one in others if one.annotation is typer.Context]
    rest = [one for one in others if one.annotation is not typer.Context]
    return with_parameters(run, [*context, first, *rest])


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def _parameters(group: Any) -> list[Parameter]:
    """The fields of a group as parameters of a command."""
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


# ---- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elastic:
    """Which sub-model of a Gemma 3n runs, drafts, or is chosen as needed."""

    submodel: options.Submodel = None
    speculate: options.Speculate = None
    policy: options.Policy = None
    rebuild: options.Rebuild = "off"

    def __post_init__(self) -> None:
        if self.speculate is not None and self.policy is not None:
            raise InputError(
                "--speculate and --policy exclude each other: both choose the sub-model"
            )
        if self.submodel is not None and self.policy is not None:
            raise InputError(
                f"--submodel {self.submodel} does nothing beside --policy {self.policy}, which "
                "chooses the sub-model before every token; leave one of them out"
            )

    @property
    def limits_memory(self) -> bool:
        """Whether the policy keeps a limit on memory, by letting mapped pages go."""
        return (self.policy or "").startswith("memory:")


@dataclass(frozen=True)
class Loading:
    """How a model is loaded, by the names of `gemelo.load`."""

    ple: options.Ple = None
    mmproj: options.Mmproj = None
    repack: options.Repack = True
    format: options.Format = "native"
    threads: options.Threads = None
    context: options.Context = None
    kv_format: options.KVCacheFormat = None
    device: options.Device = "auto"


# ---- pictures and sound --------------------------------------------------------------------------


@dataclass(frozen=True)
class Attachments:
    """The files that a prompt comes with."""

    image: options.Image = None
    audio: options.Audio = None
    video: options.Video = None


@dataclass(frozen=True)
class Frames:
    """How pictures and videos are looked at."""

    fps: options.Fps = 1.0
    image_size: options.ImageSize = None
    pan_and_scan: options.PanAndScan = None


@dataclass(frozen=True)
class Crops:
    """The thresholds of Pan & Scan, None for those that are not given."""

    min_crop_size: options.MinCropSize = None
    max_num_crops: options.MaxNumCrops = None
    min_ratio_to_activate: options.MinRatio = None


# ---- sampling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplingOptions:
    """All of `Sampling`'s fields, by their names."""

    max_tokens: options.MaxTokens = Sampling.max_tokens
    temperature: options.Temperature = Sampling.temperature
    top_k: options.TopK = Sampling.top_k
    top_p: options.TopP = Sampling.top_p
    min_p: options.MinP = Sampling.min_p
    repetition_penalty: options.RepetitionPenalty = Sampling.repetition_penalty
    presence_penalty: options.PresencePenalty = Sampling.presence_penalty
    frequency_penalty: options.FrequencyPenalty = Sampling.frequency_penalty
    logit_bias: options.LogitBias = None
    seed: options.Seed = Sampling.seed
    stop: options.Stop = None
    ignore_eos: options.IgnoreEos = Sampling.ignore_eos
    n: options.Count = Sampling.n
    logprobs: options.Logprobs = Sampling.logprobs


def checked_sampling(group: object) -> Sampling:
    """The settings that a group of sampling options makes, checked."""
    settings = vars(group)
    stops = settings.get("stop") or ()
    biases = settings.get("logit_bias") or ()
    return Sampling.of(
        settings
        | {"stop": tuple(checked_text("--stop", text) for text in stops)}
        | {"logit_bias": dict(map(_bias, biases))}
    )


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise InputError(f"--logit-bias {text}: expected ID=V, for example 506=-5") from None
