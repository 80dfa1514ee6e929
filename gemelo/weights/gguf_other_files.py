"""GGUF files that are no model (adapters, vocabularies ...), known by first bytes or key-values.

A download that stopped, a pointer that Git LFS left, an adapter, towers without a decoder: each has
a sentence of its own, with what to do, since "not a GGUF file" sends nobody anywhere.

    stranger(b"PK\\x03\\x04")                      # "a zip archive, ..."
    refuse_other_kinds({"general.type": "adapter"}, "lora.gguf")
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemelo.errors import UnsupportedError, one_line
from gemelo.text_files import LFS_POINTER, NOT_FETCHED

SEEN_BYTES = 64  # of a file's beginning
_OLD = "a file of llama.cpp from before GGUF; convert the original model again"
_HUGGING_FACE = "give the directory that holds it and its config.json"
# (first bytes, what begins with them)
_BEGINNINGS = (
    (LFS_POINTER, NOT_FETCHED),
    (b"<", "a web page and not the file; fetch it again, by the link that downloads it"),
    (b"PK", "a zip archive, perhaps a checkpoint of PyTorch; convert the model to safetensors"),
    (b"\x80", "a pickle, perhaps a checkpoint of PyTorch; convert the model to safetensors"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"{", "JSON; a model is a GGUF file or a directory"),
    *((magic, _OLD) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt", b"ggla")),
    (b"FUGG", "a GGUF file with its bytes swapped; fetch it again"),
)


def stranger(beginning: bytes) -> str | None:
    """What a file is, by its first bytes, if that is known."""
    text = beginning.lstrip(b"\xef\xbb\xbf\r\n\t ")
    for magic, what in _BEGINNINGS:
        if beginning.startswith(magic) or (magic in (b"<", b"{") and text.startswith(magic)):
            return what
    if len(beginning) > 8 and beginning[8:9] == b"{" and beginning[6:8] == b"\0\0":
        return f"a safetensors file; {_HUGGING_FACE}"
    if beginning and not any(beginning):
        return "zeros, as an interrupted download leaves them; fetch it again"
    return None


_BESIDE = (
    "a model's vision tower or audio encoder (mmproj); load the model that it belongs to, and give "
    "this as --mmproj"
)
_TYPES = {  # general.type
    "adapter": "an adapter (LoRA), which changes a model and is none; merge it into the model",
    "imatrix": "an importance matrix, which guides a quantisation; load the model itself",
    "mmproj": _BESIDE,
    "vocab": "a vocabulary without weights; load the model itself",
}
_ARCHITECTURES = {
    "clip": _BESIDE,
    "controlvector": "a control vector, which steers a model and is none; load the model itself",
    "gemma-embedding": "an embedding model, which writes no text; gemelo runs gemma3 and gemma3n",
}


def refuse_other_kinds(facts: Mapping[str, Any], path: object) -> None:
    """Raise `UnsupportedError` if key-values are not those of a model's decoder."""
    architecture, kind = facts.get("general.architecture"), facts.get("general.type", "model")
    what = None
    if isinstance(architecture, str):
        what = _ARCHITECTURES.get(architecture)
    elif any(key.startswith("imatrix.") for key in facts):
        what = _TYPES["imatrix"]
    if any(key.startswith("adapter.") for key in facts):
        what = _TYPES["adapter"]
    if not isinstance(kind, str) or kind != "model":
        named = one_line(kind, 40) if isinstance(kind, str) else type(kind).__name__
        what = _TYPES.get(named, f"a {named!r} by its general.type, and not a model")
    if what is not None:
        raise UnsupportedError(f"{path} is {what}")
