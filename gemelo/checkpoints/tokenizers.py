"""The tokenizer of a checkpoint: from a GGUF's key-values, or from the files of a directory.

What a config says ends a text does so too, whatever the tokenizer's own files say. No weight is
looked at.

    tokenizer_of(open_source(path)).encode("the"),  read_tokenizer(path).encode("the")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemelo.checkpoints.source import Source
from gemelo.errors import GemeloError
from gemelo.inputs.prompt.pretrained_tokenizer import PreTrainedTokenizer
from gemelo.weights.gguf import GGUFFile


def tokenizer_of(source: Source) -> PreTrainedTokenizer:
    """The tokenizer that came with an open source; what its config says ends a text does."""
    if source.gguf_metadata is not None:
        return _tokenizer_of_gguf(source.path, source.gguf_metadata)
    tokenizer = PreTrainedTokenizer.from_file(source.path)
    ends = {id for id in source.config.eos_token_id if id < tokenizer.vocab_size}
    stops = tuple(sorted({*tokenizer.stop_ids, *ends}))
    return dataclasses.replace(tokenizer, stop_ids=stops)


def read_tokenizer(path: Path) -> PreTrainedTokenizer:
    """The tokenizer of a model file or directory, without its weights."""
    if path.is_dir():
        return PreTrainedTokenizer.from_file(path)
    return _tokenizer_of_gguf(path, GGUFFile(path).metadata)


def _tokenizer_of_gguf(path: Path, facts: Mapping[str, Any]) -> PreTrainedTokenizer:
    try:
        return PreTrainedTokenizer.from_gguf(facts)
    except GemeloError as error:
        raise type(error)(f"{path}: {error}") from None
