"""Greedy tokens of llama.cpp on a GGUF file, to compare with ours on the same file.

Runs in an environment of its own that has llama-cpp-python and nothing of gemelo:

    pip install llama-cpp-python==0.3.36
    python benchmarks/peer_greedy.py FILE.gguf [FILE.gguf ...]

Prints one JSON object a file: the ids of 16 greedy tokens after "The capital of France is".
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np

PROMPT = [2, 818, 5279, 529, 7001, 563]


def decode(context, ids: list[int]) -> None:
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) == 0


def greedy(path: str, count: int) -> list[int]:
    loading = llama_cpp.llama_model_default_params()
    loading.use_extra_bufts = False  # no repacking: its AMX path crashes on some virtual machines
    model = llama_cpp.llama_model_load_from_file(path.encode(), loading)
    assert model, f"{path} does not load"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, 2, 2
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocabulary)
    text = b"The capital of France is"
    buffer = (llama_cpp.llama_token * 64)()
    found = llama_cpp.llama_tokenize(vocabulary, text, len(text), buffer, 64, True, True)
    assert list(buffer)[:found] == PROMPT, "its tokenizer disagrees"
    ids: list[int] = []
    decode(context, PROMPT)
    for _ in range(count):
        scores = llama_cpp.llama_get_logits_ith(context, -1)
        ids.append(int(np.ctypeslib.as_array(scores, (size,)).argmax()))
        decode(context, ids[-1:])
    return ids


quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
llama_cpp.llama_backend_init()
for path in sys.argv[1:]:
    print(json.dumps({"file": path.rsplit("/", 1)[-1], "ids": greedy(path, 16)}), flush=True)
