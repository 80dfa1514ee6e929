"""An mmproj file with other key-values and names, and the weights of an eye."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gemelo.checkpoints.load import Checkpoint
from gemelo.checkpoints.modules import tower_modules
from gemelo.models.multimodal import Gemma3Towers, Towers
from gemelo.weights.gguf import GGUFFile
from gemelo.weights.gguf_write import write_gguf


def loaded(checkpoint: Checkpoint) -> Towers:
    """The towers of a loaded model, in its format."""
    return tower_modules(checkpoint.source, checkpoint.format)


def vision(towers: Towers) -> dict[str, torch.Tensor]:
    assert isinstance(towers, Gemma3Towers)
    return {n: p for n, p in towers.state_dict().items() if not n.startswith("language_model.")}


def rewritten(eye: Path, target: Path, rename: dict[str, str], **changes: Any) -> Path:
    """An mmproj file with key-values changed and tensors renamed."""
    file = GGUFFile(eye)
    values = dict(file.metadata) | {key.replace("__", "."): v for key, v in changes.items()}
    tensors = [
        (rename.get(name, name), file.shape(name), file.format(name), lambda n=name: file.tensor(n))
        for name in file.names()
    ]
    write_gguf(target, {k: v for k, v in values.items() if v is not None}, tensors)
    return target
