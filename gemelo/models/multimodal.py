"""Multimodal models: the towers of a family, and decoder and towers as one module tree.

The names of the modules are gemelo's canonical parameter names (`vision_tower.`, `embed_vision.`,
`language_model.` and so on), which every file format is mapped to, so that nothing in a checkpoint
is without a place. `Towers` turn pictures and sounds into embeddings for the decoder, which need
not be of modules; both families do it by one name, `encode_image`; only Gemma 3n takes audio. A
`Tree` has the decoder too, under the same names, for whoever runs all of it in PyTorch.

    towers = towers_of(config)
    features = towers.encode_image(pixels)      # (N, 3, side, side) -> (N, J, D)
    tree = tree_of(config);  hidden = tree.language_model(ids, positions)

N images, J image tokens, B rows, T tokens, M spectrogram frames, D decoder width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gemelo.config import Gemma3Config, Gemma3nConfig, ModelConfig
from gemelo.errors import UnsupportedError
from gemelo.models.conformer import Conformer
from gemelo.models.decoder import Decoder
from gemelo.models.embedder import MultimodalEmbedder
from gemelo.models.gemma3 import Gemma3
from gemelo.models.gemma3n import Gemma3n
from gemelo.models.mobilenet import MobileNetTower
from gemelo.models.siglip import Projector, Siglip


class Towers(nn.Module):
    """Vision tower and audio encoder of a model; `audio_tower` and `embed_audio` are there where
    `config.audio` is set."""

    audio_tower: Conformer
    embed_audio: MultimodalEmbedder

    @abstractmethod
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, side, side) as pixel values -> image features (N, J, D)."""

    def encode_audio(self, mel: Tensor) -> Tensor:
        """Whole clips of one length, mel (B, M, 128) -> audio features (B, ceil(M / 16), D)."""
        return self.embed_audio(self.audio_tower.encode(mel))

    def silence(self) -> Tensor:
        """What fills the places that a recording is too short for: (1, 1, D)."""
        embedder = self.embed_audio
        weight = embedder.soft_embedding_norm.weight
        return embedder.embed(torch.tensor([[embedder.pad_id]], device=weight.device))


class Gemma3Towers(Towers):
    """SigLIP with its projector, where `config.vision` is set."""

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__()
        if config.vision is not None:
            self.vision_tower = Siglip(config.vision)
            self.multi_modal_projector = Projector(config, config.vision)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, side, side) in [-1, 1] -> features (N, mm_tokens_per_image, D)."""
        pixels = pixels.to(self.vision_tower.embeddings.patch_embedding.weight)
        return self.multi_modal_projector(self.vision_tower(pixels))


class Gemma3nTowers(Towers):
    """MobileNet-V5 with its embedder where `config.vision` is set, the audio encoder with its own
    where `config.audio` is."""

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__()
        vision, audio, width = config.vision, config.audio, config.hidden_size
        if vision is not None:
            self.vision_tower = MobileNetTower(vision)
            self.embed_vision = MultimodalEmbedder(
                vision.vocab, vision.hidden_size, width, vision.rms_norm_eps
            )
        if audio is not None:
            self.audio_tower = Conformer(audio)
            self.embed_audio = MultimodalEmbedder(
                audio.vocab, audio.hidden_size, width, audio.rms_norm_eps
            )

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, side, side) in [0, 1] -> features (N, 256, D)."""
        pixels = pixels.to(self.vision_tower.timm_model.conv_stem.conv.weight)
        return self.embed_vision(self.vision_tower(pixels))


def decoder_of(config: ModelConfig) -> Decoder:
    """The decoder of a model, its weights yet to come. Raises as `towers_of` does."""
    if isinstance(config, Gemma3Config):
        return Gemma3(config)
    if isinstance(config, Gemma3nConfig):
        return Gemma3n(config)
    raise _no_network(config)


def towers_of(config: ModelConfig) -> Towers:
    """The towers of a model, their weights yet to come; without parameters if it reads text only.

    Raises UnsupportedError for a family that has no network here.
    """
    if isinstance(config, Gemma3Config):
        return Gemma3Towers(config)
    if isinstance(config, Gemma3nConfig):
        return Gemma3nTowers(config)
    raise _no_network(config)


# ---- with the decoder ----------------------------------------------------------------------------


class Tree(Towers):
    """A decoder and its towers; a text-only model is the decoder alone."""

    language_model: Decoder


class Gemma3Tree(Gemma3Towers, Tree):
    """Gemma 3's decoder, and its towers."""

    language_model: Gemma3

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config)
        self.language_model = Gemma3(config)


class Gemma3nTree(Gemma3nTowers, Tree):
    """Gemma 3n's decoder, and its towers, which have the embeddings of their own ids."""

    language_model: Gemma3n

    def __init__(self, config: Gemma3nConfig) -> None:
        super().__init__(config)
        self.language_model = Gemma3n(config)
        embedders = [m for m in self.children() if isinstance(m, MultimodalEmbedder)]
        if embedders:
            self.language_model.modality_embeddings = TowerEmbeddings(embedders)


class TowerEmbeddings:
    """Embeddings of the ids that belong to towers; what `Gemma3n.modality_embeddings` is."""

    def __init__(self, embedders: Sequence[MultimodalEmbedder]) -> None:
        self.embedders = embedders
        self.first = min(embedder.vocab.start for embedder in embedders)

    def contains(self, ids: Tensor) -> bool:
        """Whether there are such ids."""
        return int(ids.max()) >= self.first

    def replace(self, x: Tensor, ids: Tensor) -> Tensor:
        """The embeddings x (B, T, D) of ids (B, T), with theirs in place."""
        x = x.clone()
        for embedder in self.embedders:
            own = (ids >= embedder.vocab.start) & (ids < embedder.vocab.stop)  # (B, T)
            if own.any():
                x[own] = embedder.embed(ids[own][None])[0].to(x.dtype)
        return x


def tree_of(config: ModelConfig) -> Tree:
    """The modules of a model, their weights yet to come. Raises as `towers_of` does."""
    if isinstance(config, Gemma3Config):
        return Gemma3Tree(config)
    if isinstance(config, Gemma3nConfig):
        return Gemma3nTree(config)
    raise _no_network(config)


def _no_network(config: ModelConfig) -> UnsupportedError:
    return UnsupportedError(f"{config.model_type} has no network here")
