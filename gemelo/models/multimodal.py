"""A whole checkpoint as one module tree: the decoder, and the towers that it came with.

The names of the tree are gemelo's canonical parameter names (`language_model.`, `vision_tower.`,
`multi_modal_projector.`), which every file format is mapped to, so that nothing in a checkpoint is
without a place. A text-only model is the same tree with the decoder alone.

    tree = tree_of(config);  hidden = tree.language_model(ids, positions)
"""

from __future__ import annotations

from torch import Tensor, nn

from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig
from gemelo.errors import UnsupportedError
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.siglip import Projector, Siglip


class Gemma3Tree(nn.Module):
    """Decoder, and SigLIP with its projector where `config.vision` is set."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        self.language_model = Gemma3(config)
        if config.vision is not None:
            self.vision_tower = Siglip(config.vision)
            self.multi_modal_projector = Projector(config, config.vision)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, side, side) in [-1, 1] -> soft tokens (N, mm_tokens_per_image, D)."""
        return self.multi_modal_projector(self.vision_tower(pixels))  # type: ignore[no-any-return]


class Gemma3nTree(nn.Module):
    """Gemma 3n's decoder; its towers stay in the file."""

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__()
        self.language_model = Gemma3n(config)


Tree = Gemma3Tree | Gemma3nTree


def tree_of(config: ModelConfig) -> Tree:
    """The modules of a model, their weights yet to come."""
    if isinstance(config, Gemma3Config):
        return Gemma3Tree(config)
    if isinstance(config, Gemma3nConfig):
        return Gemma3nTree(config)
    raise UnsupportedError(f"{config.model_type} has no network here")
