"""Streaming audio encoder: samples as they are recorded to embeddings as soon as they are settled.

A spectrogram, an encoder and an embedder, all of which take a sound in pieces of any size; a whole
recording is a stream that is finished at once. What is kept between two pieces is a few megabytes,
after a second as after a day, and the tokens do not depend on how the sound was cut. A token stands
for 160 ms and is settled 92 ms after these have begun; the encoder runs when a second one is, since
it reads all its weights for a few rows as for many. After the last sample it runs once at most.

    stream = AudioStream(towers, config.audio)
    for piece in microphone: embeds = stream.push(piece)      # (J, D), J perhaps 0
    tail = stream.finish()

J embeddings, D decoder width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gemelo.config import AudioConfig
from gemelo.engine.turns import Turns
from gemelo.inputs.media.audio_channels import Floats
from gemelo.inputs.media.mel import NUM_MELS, LogMel
from gemelo.inputs.prompt.media_loader import check_audio_encoder
from gemelo.models.conformer import ConformerState
from gemelo.models.multimodal import Towers

TOKENS_AT_ONCE = 4  # at most three are late, and the weights are read a quarter as often


class AudioStream:
    """A sound that is still going on, as embeddings for the decoder."""

    def __init__(
        self, towers: Towers, config: AudioConfig | None, tokens_at_once: int = TOKENS_AT_ONCE
    ) -> None:
        """The encoder runs when so many embeddings are settled; their values are the same.

        Raises UnsupportedError for a model without an audio encoder.
        """
        check_audio_encoder(config)
        self.towers, self.mel, self.tokens_at_once = towers, LogMel(), tokens_at_once
        self.state: ConformerState
        self.turns = Turns("sound", "model.audio_stream()")
        self._begin()

    @property
    def nbytes(self) -> int:
        """What is kept between two pieces."""
        return self.mel.nbytes + self.waiting.nbytes + self.state.nbytes

    def push(self, samples: Any) -> Tensor:
        """Samples (N,) at 16 kHz -> the embeddings (J, D) that are ready, J perhaps 0.

        Raises InputError for a sample that is no number, and then takes none of them;
        SessionBusyError while another thread pushes.
        """
        return self.turns.once(self._push, samples)

    def finish(self) -> Tensor:
        """The embeddings (J, D) still to come; ready for a new sound."""
        return self.turns.once(self._finish)

    def whole(self, samples: Any) -> Tensor:
        """All embeddings (J, D) of a sound that is all there."""
        return self.turns.once(self._whole, samples)

    @torch.inference_mode()
    def _push(self, samples: Any) -> Tensor:
        self._queue(self.mel.push(samples))
        features, self.state = self.towers.audio_tower(self._frames(self._due()), self.state)
        return self._embed(features)

    @torch.inference_mode()
    def _finish(self) -> Tensor:
        self._queue(self.mel.finish())
        features = self.towers.audio_tower.finish(self._frames(self.waiting), self.state)
        self._begin()
        return self._embed(features)

    def _whole(self, samples: Any) -> Tensor:
        self._queue(self.mel.push(samples))
        return self._finish()

    def _begin(self) -> None:
        """The state before the first sample."""
        self.state = self.towers.audio_tower.init_state()
        self.waiting, self.num_encoded = no_frames(), 0

    def _queue(self, mel: Floats) -> None:
        """Spectrogram frames (M, 128) queue up for the encoder."""
        self.waiting = np.concatenate([self.waiting, mel])

    def _due(self) -> Floats:
        """The frames that wait, once they settle enough tokens; until then none."""
        settled = self.towers.audio_tower.num_settled
        num_frames = self.num_encoded + len(self.waiting)
        if settled(num_frames) - settled(self.num_encoded) < self.tokens_at_once:
            return no_frames()
        due, self.waiting, self.num_encoded = self.waiting, no_frames(), num_frames
        return due

    def _frames(self, mel: Floats) -> Tensor:
        """Spectrogram frames as the encoder takes them, (1, M, 128)."""
        device = self.towers.embed_audio.soft_embedding_norm.weight.device
        return torch.from_numpy(mel)[None].to(device)

    def _embed(self, features: Tensor) -> Tensor:
        """Encoder features (1, J, C) -> embeddings (J, D)."""
        embeds: Tensor = self.towers.embed_audio(features)
        return embeds[0]


def no_frames() -> Floats:
    """Spectrogram frames, none of them."""
    return np.zeros((0, NUM_MELS), np.float32)
