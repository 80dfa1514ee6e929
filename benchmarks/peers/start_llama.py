"""llama.cpp's first token, as text, in a process that does nothing else: half of `start.py`.

python start_llama.py FILE PROMPT THREADS
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp
from driver_llama import Batch, Llama

CONTEXT = 512  # the least that llama.cpp makes room for by itself
_ROOM = 256  # bytes of a token's text, and tokens of a prompt


def first_token(file: str, prompt: str, threads: int) -> bytes:
    """The text of the likeliest token after a prompt."""
    engine = Llama()
    engine.load(file, threads, CONTEXT)
    vocabulary = llama_cpp.llama_model_get_vocab(engine.model)
    text, ids = prompt.encode(), (llama_cpp.llama_token * _ROOM)()
    count = llama_cpp.llama_tokenize(vocabulary, text, len(text), ids, _ROOM, True, True)
    batch, context = Batch(count), engine.context_of(1)
    for position in range(count):
        batch.add(ids[position], position, 0, scored=position == count - 1)
    batch.run(context)
    token = engine.best(context, [count - 1])[0]
    piece = ctypes.create_string_buffer(_ROOM)
    size = llama_cpp.llama_token_to_piece(vocabulary, token, piece, _ROOM, 0, False)
    return piece.raw[:size]


if __name__ == "__main__":
    found = first_token(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.stdout.buffer.write(found + b"\n")
    sys.stdout.buffer.flush()
