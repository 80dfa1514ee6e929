"""Cut decoder: a sub-model with weights of its own, read again from the file in another format.

A draft that shares the model's weights costs no memory; one of its own in four bits reads half as
many bytes a token.

    decoder = cut_decoder(path, [submodel], "q4_0", "cpu")
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemelo.checkpoints.load import decoder_weights
from gemelo.checkpoints.open import open_source
from gemelo.checkpoints.slice import cut, without_padding, without_towers
from gemelo.config import Submodel
from gemelo.config.options import WeightFormat
from gemelo.engine.decoder import Decoder
from gemelo.engine.device import decoder_on
from gemelo.errors import InputError


def cut_decoder(
    path: Path, submodels: Sequence[Submodel], format: WeightFormat, device: str
) -> Decoder:
    """The last of sub-models, each of which is one of those before it.

    Raises InputError for a format that its widths do not take.
    """
    source = without_padding(without_towers(open_source(path)))
    for submodel in submodels:
        source = cut(source, submodel)
    try:
        weights, _ = decoder_weights(source, format)
        return decoder_on(device, source.config, weights)
    except InputError as error:
        raise InputError(
            f"a draft in {format}, its embeddings in q8_0: {error}; a draft without a format "
            "shares the model's weights"
        ) from None
