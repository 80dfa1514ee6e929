"""The vision tower and the audio encoder at work: a prompt's media to embeddings among its ids.

A tower's work is the dear part of a prompt, and a conversation shows the same picture at every
turn; so what was encoded lately is remembered by its content. The same content is the key by which
a session knows whether its cache holds this picture or another.

    encoders = MediaEncoders(tree, config)
    tokens = encoders.tokens(prompt)          # for Session.stream(tokens)

J tokens of a picture or a recording, D decoder width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b

import torch
from torch import Tensor

from gemelo.config import ModelConfig, PlaceholderTokens
from gemelo.engine.media.audio_stream import AudioStream
from gemelo.engine.tokens import EmbeddingSpan, Tokens
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.audio import Samples
from gemelo.inputs.media.image import Picture, pixel_values
from gemelo.inputs.media.mel import check_min_samples
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.prompt.media_loader import num_audio_tokens
from gemelo.models.multimodal import Tree

REMEMBERED = 128  # pictures and recordings: 256 tokens of Gemma 3 4B in bfloat16 are 1.3 MB


class MediaEncoders:
    """The towers of a model, and what they were given lately."""

    def __init__(self, tree: Tree, config: ModelConfig) -> None:
        self.tree, self.config, self.modalities = tree, config, config.modalities
        self._remembered: OrderedDict[bytes, Tensor] = OrderedDict()

    def tokens(self, prompt: Prompt) -> Tokens:
        """A prompt's ids, with the embeddings of its pictures and recordings in place.

        Raises InputError unless its ids have a placeholder for each of these embeddings.
        """
        image, audio = self.modalities.image, self.modalities.audio
        spans: list[EmbeddingSpan] = []
        if image is not None:
            both_ways = self.config.bidirectional_image_tokens > 0
            seen = map(self._seen, prompt.pictures)
            spans += placed(prompt.ids, image, [*seen], "pictures", both_ways)
        if audio is not None:
            heard = map(self._heard, prompt.recordings)
            spans += placed(prompt.ids, audio, [*heard], "recordings", False)
        return Tokens(prompt.ids, sorted(spans, key=lambda span: span.begin))

    def encode_image(self, picture: Picture, image_size: int) -> Tensor:
        """Embeddings (J, D) of a picture in a square of `image_size` pixels.

        Raises UnsupportedError for a model without a vision tower.
        """
        if self.modalities.image is None:
            raise UnsupportedError("the model has no vision tower: it cannot take pictures")
        return self._seen(picture.resized(image_size))[1]

    def encode_audio(self, samples: Samples) -> Tensor:
        """Embeddings (J, D) of a recording: its own, without what fills the places after it.

        Raises InputError for one that is too short for a token.
        """
        stream = self.audio_stream()
        check_min_samples(len(samples.values))
        return stream.whole(samples.values)

    def audio_stream(self) -> AudioStream:
        """The audio encoder for a sound that is still going on; UnsupportedError without one."""
        return AudioStream(self.tree, self.config.audio)

    @torch.inference_mode()
    def audio_padding(self, num_samples: int, num_tokens: int) -> Tensor:
        """Embeddings (J, D) for the placeholders of a recording beyond its own num_tokens."""
        count = num_audio_tokens(self.config, num_samples) - num_tokens
        return self.tree.silence()[0].expand(count, -1)

    @torch.inference_mode()
    def _seen(self, picture: Picture) -> tuple[bytes, Tensor]:
        vision = self.config.vision
        assert vision is not None
        square = picture.resized(picture.size[0])  # itself, unless a prompt was made by hand
        values = pixel_values(square, vision.image_mean, vision.image_std)
        return self._known(values, lambda: self.tree.encode_image(values[None])[0])

    @torch.inference_mode()
    def _heard(self, samples: Samples) -> tuple[bytes, Tensor]:
        def hear() -> Tensor:
            embeds = self.encode_audio(samples)
            return torch.cat([embeds, self.audio_padding(len(samples.values), len(embeds))])

        return self._known(samples.values, hear)

    def _known(self, values: Tensor, make: Callable[[], Tensor]) -> tuple[bytes, Tensor]:
        """A key of the content, and what a tower makes of it, perhaps remembered."""
        key = content_key(values)
        # Taken out and put back at the end, a step each that no other thread can be in between.
        made = self._remembered.pop(key, None)
        if made is None:
            made = make()
        self._remembered[key] = made
        with suppress(KeyError):  # others may have emptied it
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return key, made


def content_key(values: Tensor) -> bytes:
    """Equal for equal numbers in equal shapes, and for no others that anybody could find."""
    held = values.detach().cpu().contiguous()
    digest = blake2b(repr((held.dtype, *held.shape)).encode(), digest_size=16)
    digest.update(held.numpy().data)
    return digest.digest()


def placed(
    ids: Sequence[int],
    tokens: PlaceholderTokens,
    made: Sequence[tuple[bytes, Tensor]],
    noun: str,
    both_ways: bool,
) -> Iterator[EmbeddingSpan]:
    """What towers made, at the places that ids have for it, in order."""
    places = [at for at, token in enumerate(ids) if token == tokens.token_id]
    wanted = sum(len(embeds) for _, embeds in made)
    if len(places) != wanted:
        raise InputError(
            f"the prompt has {len(places)} placeholders for {len(made)} {noun}, which make {wanted}"
        )
    used = 0
    for key, embeds in made:
        here = places[used : used + len(embeds)]
        if here[-1] - here[0] + 1 != len(here):
            raise InputError(f"the prompt's placeholders for {noun} are not one after the other")
        yield EmbeddingSpan(here[0], embeds, key, both_ways)
        used += len(here)
