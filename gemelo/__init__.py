"""gemelo runs Gemma 3 and Gemma 3n models on the hardware you have, in every size they contain.

    model = gemelo.load()                          # the embedded default, or a path or hub id
    print(model.generate("The capital of France is", temperature=0).text)

docs/python.md is a tour; `help(gemelo.Model)`, `help(gemelo.Sampling)` and so on say the rest.

- Models: load, Model, Engine, Session, KVCache, PromptLike, Message, Prompt, Tokens, EmbeddingSpan
- Many callers: AsyncEngine, AsyncStream, Request
- Answers: Sampling, SamplingSettings, Completion, Choice, Piece, FinishReason, Timings, Stats,
  CausalLMOutput
- Text: Tokenizer, TextStream, render_chat
- Pictures, sound, video: read_image, Picture, read_audio, stream_audio, Samples, read_video, Video,
  Frame, Readable, AudioStream, MediaLoader, VisionOptions, PanScan, MediaPart, TextPart,
  transcribe, Segment, Task
- Sub-models of a Gemma 3n: Submodel, Draft, Policy, Moment, latency_policy, memory_policy,
  difficulty_policy, RebuildMode
- Files: pull, convert, slice, Converted, WeightFormat, TargetFormat, KVFormat, TablePlacement
- Configs: ModelConfig, Gemma3Config, Gemma3nConfig, LayerConfig, VisionConfig, Vision3nConfig,
  AudioConfig, Modalities, PlaceholderTokens, parameter_shapes
- Errors: GemeloError, InputError, ContextLengthError, SessionBusyError, FileFormatError,
  UnsupportedError, UnavailableError, MissingExtraError, ModelClosedError

Names are imported on first use, so that `gemelo --help` never loads torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would load typing, before Ctrl-C is heard (`__main__`)
if TYPE_CHECKING:
    from typing import Any

    from gemelo.api.async_engine import AsyncEngine, AsyncStream
    from gemelo.api.load import load
    from gemelo.api.model import Message, Model, PromptLike
    from gemelo.checkpoints.convert import Converted, convert, slice
    from gemelo.checkpoints.hub import pull
    from gemelo.config import (
        AudioConfig,
        Gemma3Config,
        Gemma3nConfig,
        LayerConfig,
        Modalities,
        ModelConfig,
        PlaceholderTokens,
        Submodel,
        Vision3nConfig,
        VisionConfig,
    )
    from gemelo.config.options import (
        FinishReason,
        KVFormat,
        RebuildMode,
        TablePlacement,
        TargetFormat,
        WeightFormat,
    )
    from gemelo.config.parameters import parameter_shapes
    from gemelo.config.sampling import Sampling, SamplingSettings
    from gemelo.config.speech_task import Task
    from gemelo.engine.completion import Choice, Completion
    from gemelo.engine.continuation import Piece
    from gemelo.engine.elastic.policy import Moment, Policy
    from gemelo.engine.elastic.policy import difficulty as difficulty_policy
    from gemelo.engine.elastic.policy import latency as latency_policy
    from gemelo.engine.elastic.policy import memory as memory_policy
    from gemelo.engine.elastic.speculative import Draft
    from gemelo.engine.engine import Engine
    from gemelo.engine.kv import KVCache
    from gemelo.engine.media.audio_stream import AudioStream
    from gemelo.engine.request import Request
    from gemelo.engine.session import Session
    from gemelo.engine.timings import Stats, Timings
    from gemelo.engine.tokens import EmbeddingSpan, Tokens
    from gemelo.errors import (
        ContextLengthError,
        FileFormatError,
        GemeloError,
        InputError,
        MissingExtraError,
        ModelClosedError,
        SessionBusyError,
        UnavailableError,
        UnsupportedError,
    )
    from gemelo.inputs.media.audio import Samples, read_audio, stream_audio
    from gemelo.inputs.media.file_objects import Readable
    from gemelo.inputs.media.image import Picture, read_image
    from gemelo.inputs.media.panscan import PanScan
    from gemelo.inputs.media.parts import MediaPart, TextPart
    from gemelo.inputs.media.video import Frame, Video, read_video
    from gemelo.inputs.prompt.chat import Prompt
    from gemelo.inputs.prompt.chat import render as render_chat
    from gemelo.inputs.prompt.media_loader import MediaLoader, VisionOptions
    from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer as Tokenizer
    from gemelo.inputs.tokenizer.tokenizer import TextStream
    from gemelo.models.outputs import CausalLMOutput
    from gemelo.transcription import Segment, transcribe

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "gemelo.api.async_engine.AsyncEngine",
    "AsyncStream": "gemelo.api.async_engine.AsyncStream",
    "AudioConfig": "gemelo.config.AudioConfig",
    "AudioStream": "gemelo.engine.media.audio_stream.AudioStream",
    "CausalLMOutput": "gemelo.models.outputs.CausalLMOutput",
    "Choice": "gemelo.engine.completion.Choice",
    "Completion": "gemelo.engine.completion.Completion",
    "ContextLengthError": "gemelo.errors.ContextLengthError",
    "Converted": "gemelo.checkpoints.convert.Converted",
    "Draft": "gemelo.engine.elastic.speculative.Draft",
    "EmbeddingSpan": "gemelo.engine.tokens.EmbeddingSpan",
    "Engine": "gemelo.engine.engine.Engine",
    "FileFormatError": "gemelo.errors.FileFormatError",
    "FinishReason": "gemelo.config.options.FinishReason",
    "Frame": "gemelo.inputs.media.video.Frame",
    "GemeloError": "gemelo.errors.GemeloError",
    "Gemma3Config": "gemelo.config.Gemma3Config",
    "Gemma3nConfig": "gemelo.config.Gemma3nConfig",
    "InputError": "gemelo.errors.InputError",
    "MissingExtraError": "gemelo.errors.MissingExtraError",
    "KVCache": "gemelo.engine.kv.KVCache",
    "KVFormat": "gemelo.config.options.KVFormat",
    "LayerConfig": "gemelo.config.LayerConfig",
    "MediaLoader": "gemelo.inputs.prompt.media_loader.MediaLoader",
    "MediaPart": "gemelo.inputs.media.parts.MediaPart",
    "Message": "gemelo.api.model.Message",
    "Modalities": "gemelo.config.Modalities",
    "Model": "gemelo.api.model.Model",
    "ModelClosedError": "gemelo.errors.ModelClosedError",
    "ModelConfig": "gemelo.config.ModelConfig",
    "Moment": "gemelo.engine.elastic.policy.Moment",
    "PanScan": "gemelo.inputs.media.panscan.PanScan",
    "Picture": "gemelo.inputs.media.image.Picture",
    "Piece": "gemelo.engine.continuation.Piece",
    "PlaceholderTokens": "gemelo.config.PlaceholderTokens",
    "Policy": "gemelo.engine.elastic.policy.Policy",
    "Prompt": "gemelo.inputs.prompt.chat.Prompt",
    "PromptLike": "gemelo.api.model.PromptLike",
    "Readable": "gemelo.inputs.media.file_objects.Readable",
    "RebuildMode": "gemelo.config.options.RebuildMode",
    "Samples": "gemelo.inputs.media.audio.Samples",
    "Request": "gemelo.engine.request.Request",
    "Sampling": "gemelo.config.sampling.Sampling",
    "SamplingSettings": "gemelo.config.sampling.SamplingSettings",
    "Segment": "gemelo.transcription.Segment",
    "Session": "gemelo.engine.session.Session",
    "SessionBusyError": "gemelo.errors.SessionBusyError",
    "Stats": "gemelo.engine.timings.Stats",
    "Submodel": "gemelo.config.Submodel",
    "TablePlacement": "gemelo.config.options.TablePlacement",
    "TargetFormat": "gemelo.config.options.TargetFormat",
    "Task": "gemelo.config.speech_task.Task",
    "TextPart": "gemelo.inputs.media.parts.TextPart",
    "TextStream": "gemelo.inputs.tokenizer.tokenizer.TextStream",
    "Timings": "gemelo.engine.timings.Timings",
    "Tokenizer": "gemelo.inputs.prompt.pretrained_tokenizer.PreTrainedTokenizer",
    "Tokens": "gemelo.engine.tokens.Tokens",
    "UnavailableError": "gemelo.errors.UnavailableError",
    "UnsupportedError": "gemelo.errors.UnsupportedError",
    "Video": "gemelo.inputs.media.video.Video",
    "Vision3nConfig": "gemelo.config.Vision3nConfig",
    "VisionConfig": "gemelo.config.VisionConfig",
    "VisionOptions": "gemelo.inputs.prompt.media_loader.VisionOptions",
    "WeightFormat": "gemelo.config.options.WeightFormat",
    "convert": "gemelo.checkpoints.convert.convert",
    "difficulty_policy": "gemelo.engine.elastic.policy.difficulty",
    "latency_policy": "gemelo.engine.elastic.policy.latency",
    "load": "gemelo.api.load.load",
    "memory_policy": "gemelo.engine.elastic.policy.memory",
    "parameter_shapes": "gemelo.config.parameters.parameter_shapes",
    "pull": "gemelo.checkpoints.hub.pull",
    "read_audio": "gemelo.inputs.media.audio.read_audio",
    "read_image": "gemelo.inputs.media.image.read_image",
    "read_video": "gemelo.inputs.media.video.read_video",
    "render_chat": "gemelo.inputs.prompt.chat.render",
    "slice": "gemelo.checkpoints.convert.slice",
    "stream_audio": "gemelo.inputs.media.audio.stream_audio",
    "transcribe": "gemelo.transcription.transcribe",
}

__all__ = [
    "AsyncEngine",
    "AsyncStream",
    "AudioConfig",
    "AudioStream",
    "CausalLMOutput",
    "Choice",
    "Completion",
    "ContextLengthError",
    "Converted",
    "Draft",
    "EmbeddingSpan",
    "Engine",
    "FileFormatError",
    "FinishReason",
    "Frame",
    "GemeloError",
    "Gemma3Config",
    "Gemma3nConfig",
    "InputError",
    "KVCache",
    "KVFormat",
    "LayerConfig",
    "MediaLoader",
    "MediaPart",
    "Message",
    "MissingExtraError",
    "Modalities",
    "Model",
    "ModelClosedError",
    "ModelConfig",
    "Moment",
    "PanScan",
    "Picture",
    "Piece",
    "PlaceholderTokens",
    "Policy",
    "Prompt",
    "PromptLike",
    "Readable",
    "RebuildMode",
    "Request",
    "Samples",
    "Sampling",
    "SamplingSettings",
    "Segment",
    "Session",
    "SessionBusyError",
    "Stats",
    "Submodel",
    "TablePlacement",
    "TargetFormat",
    "Task",
    "TextPart",
    "TextStream",
    "Timings",
    "Tokenizer",
    "Tokens",
    "UnavailableError",
    "UnsupportedError",
    "Video",
    "Vision3nConfig",
    "VisionConfig",
    "VisionOptions",
    "WeightFormat",
    "convert",
    "difficulty_policy",
    "latency_policy",
    "load",
    "memory_policy",
    "parameter_shapes",
    "pull",
    "read_audio",
    "read_image",
    "read_video",
    "render_chat",
    "slice",
    "stream_audio",
    "transcribe",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gemelo' has no attribute {name!r}")
    from importlib import import_module

    module, _, own_name = _HOMES[name].rpartition(".")
    value = getattr(import_module(module), own_name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
