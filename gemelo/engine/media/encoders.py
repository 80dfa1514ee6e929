"""Multimodal encoders: pictures and recordings of a prompt to embeddings among its token ids.

A tower's work is the dear part of a prompt, and a conversation shows the same picture at every
turn; so what was encoded lately is remembered by its content. The same content is the key by which
a session knows whether its cache holds this picture or another. Towers run in PyTorch,
which a decoder need not: both are loaded at the first picture or sound, and what a decoder is given
is NumPy's.

    encoders = MediaEncoders(load_towers, config)
    tokens = encoders.tokens(prompt)          # for Session.stream(tokens)

J tokens of a picture or a recording, D decoder width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gemelo.config import ModelConfig, PlaceholderTokens
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.engine.turns import Line
from gemelo.errors import InputError, UnsupportedError
from gemelo.extras import require
from gemelo.inputs.media.audio import Samples
from gemelo.inputs.media.audio_channels import Floats
from gemelo.inputs.media.image import Picture, pixel_values
from gemelo.inputs.media.mel import check_min_samples
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.prompt.media_loader import check_audio_encoder, num_audio_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from gemelo.engine.media.audio_stream import AudioStream
    from gemelo.models.multimodal import Towers

REMEMBERED = 128  # pictures and recordings: 256 tokens of Gemma 3 4B in bfloat16 are 1.3 MB


class MediaEncoders:
    """The towers of a model, and what they were given lately."""

    def __init__(self, load_towers: Callable[[], Towers], config: ModelConfig) -> None:
        """load_towers is called once, by whichever thread has the first picture or sound; again
        only if it raised."""
        self.config, self.modalities = config, config.modalities
        self._load_towers, self._line = load_towers, Line()
        self._loaded: list[Towers] = []  # none or one
        self._remembered: OrderedDict[bytes, Tensor] = OrderedDict()

    @property
    def towers(self) -> Towers:
        """The towers, loaded if they are not yet. Raises MissingExtraError without PyTorch."""
        if not self._loaded:
            require("torch", "media", what="pictures and sounds")
            with self._line.lock:
                if not self._loaded:
                    self._loaded.append(self._load_towers())
        return self._loaded[0]

    def tokens(self, prompt: Prompt) -> Tokens:
        """A prompt's ids, with the embeddings of its pictures and recordings in place.

        Raises InputError unless its ids have a placeholder for each of these embeddings.
        """
        image, audio = self.modalities.image, self.modalities.audio
        spans: list[EmbeddingSpan] = []
        if image is not None:
            both_ways = self.config.bidirectional_image_tokens > 0
            images = map(self._image_embeds, prompt.pictures)
            spans += embedding_spans(prompt.ids, image, [*images], "pictures", both_ways)
        if audio is not None:
            recordings = map(self._audio_embeds, prompt.recordings)
            spans += embedding_spans(prompt.ids, audio, [*recordings], "recordings", False)
        return Tokens(prompt.ids, sorted(spans, key=lambda span: span.begin))

    def encode_image(self, picture: Picture, image_size: int) -> Tensor:
        """Embeddings (J, D) of a picture in a square of `image_size` pixels.

        Raises UnsupportedError for a model without a vision tower.
        """
        if self.modalities.image is None:
            raise UnsupportedError("the model has no vision tower: it cannot take pictures")
        return self._image_embeds(picture.resized(image_size))[1]

    def encode_audio(self, samples: Samples) -> Tensor:
        """Embeddings (J, D) of a recording: its own, without what fills the places after it.

        Raises InputError for one that is too short for a token.
        """
        stream = self.audio_stream()
        check_min_samples(len(samples.values))
        return stream.whole(samples.values)

    def audio_stream(self) -> AudioStream:
        """The audio encoder for a sound that is still going on; UnsupportedError without one."""
        check_audio_encoder(self.config.audio)
        towers = self.towers
        from gemelo.engine.media.audio_stream import AudioStream

        return AudioStream(towers, self.config.audio)

    def audio_padding(self, num_samples: int, num_tokens: int) -> Tensor:
        """Embeddings (J, D) for the placeholders of a recording beyond its own num_tokens."""
        count = num_audio_tokens(self.config, num_samples) - num_tokens
        silence = self.towers.silence
        import torch

        with torch.inference_mode():
            return silence()[0].expand(count, -1)

    def _image_embeds(self, picture: Picture) -> tuple[bytes, Tensor]:
        """A key of a picture, and its embeddings (J, D)."""
        vision = self.config.vision
        assert vision is not None
        square = picture.resized(picture.size[0])  # itself, unless a prompt was made by hand
        values = pixel_values(square, vision.image_mean, vision.image_std)
        return self._remember(values, lambda: self._encode_pixels(values))

    def _encode_pixels(self, values: Floats) -> Tensor:
        """Pixel values (3, side, side) -> embeddings (J, D)."""
        encode_image = self.towers.encode_image
        import torch

        with torch.inference_mode():
            return encode_image(torch.from_numpy(values)[None])[0]

    def _audio_embeds(self, samples: Samples) -> tuple[bytes, Tensor]:
        """A key of a recording, and its embeddings (J, D), those that fill its places included."""

        def encode() -> Tensor:
            embeds = self.encode_audio(samples)
            padding = self.audio_padding(len(samples.values), len(embeds))
            import torch

            with torch.inference_mode():
                return torch.cat([embeds, padding])

        return self._remember(samples.values, encode)

    def _remember(self, values: Floats, encode: Callable[[], Tensor]) -> tuple[bytes, Tensor]:
        """A key of the content, and its embeddings: those remembered, or else encoded now."""
        key = content_key(values)
        # Taken out and put back at the end, a step each that no other thread can be in between.
        embeds = self._remembered.pop(key, None)
        if embeds is None:
            embeds = encode()
        self._remembered[key] = embeds
        with suppress(KeyError):  # others may have emptied it
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return key, embeds


def as_array(embeds: Tensor) -> Floats:
    """Embeddings as a decoder takes them: (J, D) float32, the tensor's own memory if it can be."""
    array: Floats = embeds.detach().float().cpu().numpy()
    return np.ascontiguousarray(array)


def content_key(values: NDArray[Any]) -> bytes:
    """Equal for equal numbers in equal shapes, and for no others that anybody could find."""
    numbers = np.ascontiguousarray(values)
    digest = blake2b(repr((numbers.dtype.str, *values.shape)).encode(), digest_size=16)
    digest.update(numbers.data)
    return digest.digest()


def embedding_spans(
    ids: Sequence[int],
    tokens: PlaceholderTokens,
    encoded: Sequence[tuple[bytes, Tensor]],
    noun: str,
    both_ways: bool,
) -> Iterator[EmbeddingSpan]:
    """What towers encoded, as spans in place of the ids' placeholders, in order.

    Raises InputError unless there are as many placeholders, and each span's are consecutive.
    """
    placeholders = [index for index, token in enumerate(ids) if token == tokens.token_id]
    needed = sum(len(embeds) for _, embeds in encoded)
    if len(placeholders) != needed:
        raise InputError(
            f"the prompt has {len(placeholders)} placeholders for {len(encoded)} {noun}, "
            f"which make {needed}"
        )
    used = 0
    for key, embeds in encoded:
        indices = placeholders[used : used + len(embeds)]
        if indices[-1] - indices[0] + 1 != len(indices):
            raise InputError(f"the prompt's placeholders for {noun} are not one after the other")
        yield EmbeddingSpan(indices[0], as_array(embeds), key, both_ways)
        used += len(indices)
