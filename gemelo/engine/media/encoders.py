"""Perception: pictures and recordings through their towers, to where a prompt has places for them.

A tower's work is the dear part of a prompt, and a conversation shows the same picture at every
turn; so what was seen or heard lately is remembered by its content. The same content is the key by
which a session knows whether its cache holds this picture or another.

    perception = Perception(tree, config)
    soft = perception.of(prompt)          # runs for Session.stream(prompt.ids, ..., soft=soft)

J soft tokens, D decoder width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b

import torch
from torch import Tensor

from gemelo.config import ModelConfig
from gemelo.engine.media.audio_stream import AudioStream
from gemelo.engine.tokens import Soft
from gemelo.errors import InputError, UnsupportedError
from gemelo.inputs.media.audio import Samples
from gemelo.inputs.media.image import Picture, pixels
from gemelo.inputs.media.mel import check_span
from gemelo.inputs.prompt.chat import Prompt
from gemelo.inputs.prompt.media_loader import num_places
from gemelo.inputs.prompt.placeholders import Marks, senses_of
from gemelo.models.multimodal import Tree

REMEMBERED = 128  # pictures and recordings: 256 tokens of Gemma 3 4B in bfloat16 are 1.3 MB


class Perception:
    """The towers of a model, and what they were given lately."""

    def __init__(self, tree: Tree, config: ModelConfig) -> None:
        self.tree, self.config, self.senses = tree, config, senses_of(config)
        self._remembered: OrderedDict[bytes, Tensor] = OrderedDict()

    def of(self, prompt: Prompt) -> list[Soft]:
        """The runs of soft tokens of a prompt, in order.

        Raises InputError unless its ids have a place for each of its pictures and recordings.
        """
        eye, ear = self.senses.image, self.senses.audio
        runs: list[Soft] = []
        if eye is not None:
            together = self.config.bidirectional_image_tokens > 0
            seen = map(self._seen, prompt.pictures)
            runs += placed(prompt.ids, eye, [*seen], "pictures", together)
        if ear is not None:
            heard = map(self._heard, prompt.recordings)
            runs += placed(prompt.ids, ear, [*heard], "recordings", False)
        return sorted(runs, key=lambda run: run.begin)

    def see(self, picture: Picture, side: int) -> Tensor:
        """Soft tokens (J, D) of a picture in a square of `side` pixels.

        Raises UnsupportedError for a model without an eye.
        """
        if self.senses.image is None:
            raise UnsupportedError("the model has no eye: it cannot take pictures")
        return self._seen(picture.squeezed(side))[1]

    def hear(self, samples: Samples) -> Tensor:
        """Soft tokens (J, D) of a recording: its own, without what fills the places after it.

        Raises InputError for one that is too short for a token.
        """
        stream = self.stream()
        check_span(len(samples.values))
        return stream.whole(samples.values)

    def stream(self) -> AudioStream:
        """An ear for a sound that is still going on. Raises UnsupportedError if there is none."""
        return AudioStream(self.tree, self.config.audio)

    def silence(self, count: int) -> Tensor:
        """Soft tokens (count, D) for the places that a recording is too short to fill."""
        return self.tree.silence()[0].expand(count, -1)

    @torch.inference_mode()
    def _seen(self, picture: Picture) -> tuple[bytes, Tensor]:
        vision = self.config.vision
        assert vision is not None
        values = pixels(picture, picture.size[0], vision.image_mean, vision.image_std)
        return self._known(values, lambda: self.tree.encode_image(values[None])[0])

    @torch.inference_mode()
    def _heard(self, samples: Samples) -> tuple[bytes, Tensor]:
        count = num_places(self.config, len(samples.values))

        def hear() -> Tensor:
            soft = self.hear(samples)
            return torch.cat([soft, self.silence(count - len(soft))])

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
    ids: Sequence[int], marks: Marks, made: Sequence[tuple[bytes, Tensor]], noun: str, block: bool
) -> Iterator[Soft]:
    """What towers made, at the places that ids have for it, in order."""
    places = [at for at, token in enumerate(ids) if token == marks.token_id]
    wanted = sum(len(embeds) for _, embeds in made)
    if len(places) != wanted:
        raise InputError(
            f"the prompt has {len(places)} soft tokens for {len(made)} {noun}, which make {wanted}"
        )
    used = 0
    for key, embeds in made:
        here = places[used : used + len(embeds)]
        if here[-1] - here[0] + 1 != len(here):
            raise InputError(f"the prompt's soft tokens for {noun} are not one after the other")
        yield Soft(here[0], embeds, key, block)
        used += len(here)
