"""Hearing: sound in as it is recorded, soft tokens out as soon as they are settled.

A spectrogram, an encoder and an embedder, all of which take a sound in pieces of any size; a whole
recording is a stream that is finished at once. What is kept between two pieces is a few megabytes,
after a second as after a day, and the tokens do not depend on how the sound was cut. A token stands
for 160 ms and is settled 92 ms after these have begun, so that after the last sample there is next
to nothing left to do.

    stream = AudioStream(tree)
    for piece in microphone: soft = stream.push(piece)      # (J, D), J perhaps 0
    tail = stream.finish()

J soft tokens, D decoder width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemelo.config import AudioConfig
from gemelo.errors import UnsupportedError
from gemelo.inputs.mel import NUM_MELS, LogMel
from gemelo.models.multimodal import Gemma3nTree, Tree


class AudioStream:
    """A sound that is still going on, as the decoder will hear it."""

    def __init__(self, tree: Tree, config: AudioConfig | None) -> None:
        """Raises UnsupportedError for a model without an ear."""
        if config is None or not isinstance(tree, Gemma3nTree):
            raise UnsupportedError("the model has no ear: use a Gemma 3n with its audio tower")
        if config.input_feat_size != NUM_MELS:
            raise UnsupportedError(
                f"audio_config has input_feat_size = {config.input_feat_size}; gemelo makes "
                f"spectrograms of {NUM_MELS}"
            )
        self.tree, self.mel = tree, LogMel()
        self.state = tree.audio_tower.fresh()

    @property
    def nbytes(self) -> int:
        """What is kept between two pieces."""
        return self.mel.nbytes + self.state.nbytes

    @torch.inference_mode()
    def push(self, samples: Any) -> Tensor:
        """Samples (N,) at 16 kHz -> the soft tokens (J, D) that they settle, J perhaps 0.

        Raises InputError for a sample that is no number, and then has not heard any of them.
        """
        mel = self._frames(self.mel.push(samples))
        features, self.state = self.tree.audio_tower(mel, self.state)
        return self._embedded(features)

    @torch.inference_mode()
    def finish(self) -> Tensor:
        """The soft tokens (J, D) that only the end settles; ready for a new sound."""
        features = self.tree.audio_tower.finish(self._frames(self.mel.finish()), self.state)
        self.state = self.tree.audio_tower.fresh()
        return self._embedded(features)

    def whole(self, samples: Any) -> Tensor:
        """All soft tokens (J, D) of a sound that is all there."""
        return torch.cat([self.push(samples), self.finish()])

    def _frames(self, mel: Tensor) -> Tensor:
        """Spectrogram frames as the encoder takes them, (1, M, 128)."""
        return mel[None].to(self.tree.embed_audio.soft_embedding_norm.weight.device)

    def _embedded(self, features: Tensor) -> Tensor:
        soft: Tensor = self.tree.embed_audio(features)
        return soft[0]
