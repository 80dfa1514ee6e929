"""Modalities: what a model takes in beside text, and the tokens that stand for it in a prompt.

A template leaves one placeholder for an image or a recording; it becomes a marker, as many
placeholder tokens as the tower makes embeddings, and a closing marker.

    config.modalities.image.token_id, config.modalities.audio is None
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlaceholderTokens:
    """How one modality is written: the template's placeholder, and ids of markers and tokens."""

    placeholder: str
    begin_token_id: int
    token_id: int
    end_token_id: int
    num_tokens: int  # of one image; of one recording, in the reference


@dataclass(frozen=True)
class Modalities:
    """What a model can take in beside text; None for what it cannot."""

    image: PlaceholderTokens | None = None
    audio: PlaceholderTokens | None = None
