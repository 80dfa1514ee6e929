"""gemelo runs, cuts, adapts, serves and shows Gemma 3 and Gemma 3n models on the hardware you have.

The public names are the list below. They are imported on first use, so that `gemelo --help` never
loads torch.

    model = gemelo.load()                          # the embedded default, or a path or hub id
    print(model.generate("The capital of France is", temperature=0).text)
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would load typing, before Ctrl-C is heard (`__main__`)
if TYPE_CHECKING:
    from typing import Any

    from gemelo.api import Model, load
    from gemelo.config import ModelConfig
    from gemelo.config.sampling import Sampling
    from gemelo.engine.completion import Completion
    from gemelo.engine.continuation import Piece
    from gemelo.engine.engine import Engine
    from gemelo.engine.kv import KVCache
    from gemelo.engine.session import Session
    from gemelo.errors import GemeloError
    from gemelo.inputs.prompt.chat import Prompt
    from gemelo.inputs.tokenizer.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "Completion": "gemelo.engine.completion",
    "Engine": "gemelo.engine.engine",
    "GemeloError": "gemelo.errors",
    "KVCache": "gemelo.engine.kv",
    "Model": "gemelo.api",
    "ModelConfig": "gemelo.config",
    "Piece": "gemelo.engine.continuation",
    "Prompt": "gemelo.inputs.prompt.chat",
    "Sampling": "gemelo.config.sampling",
    "Session": "gemelo.engine.session",
    "Tokenizer": "gemelo.inputs.tokenizer.tokenizer",
    "load": "gemelo.api",
}

__all__ = [
    "Completion",
    "Engine",
    "GemeloError",
    "KVCache",
    "Model",
    "ModelConfig",
    "Piece",
    "Prompt",
    "Sampling",
    "Session",
    "Tokenizer",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gemelo' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
