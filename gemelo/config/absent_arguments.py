"""Keyword arguments of transformers, mlx-lm and llama.cpp that are not here, and what is instead.

Whoever writes one knows what is meant, so it is answered with what does that here, in one line, and
not with Python's TypeError, which stays for what nobody means. Each function has its table; what
stands in it under the name of an argument says what to do. `refusing` puts a table before a
function, which keeps its own signature. (Options of the command line have `cli/absent`.)

    @refusing(LOADING)
    def load(model: str) -> Model: ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from gemelo.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

_FIRST = "the prompt is the first argument"
_MASK = "nothing is padded, and no mask is needed"
_SCORES = "logprobs=N gives the likeliest, model.logits(prompt) all scores"
_PIECES = "model.stream(prompt) gives the text piece by piece"
_MEDIA = (
    'media go into messages, as [{"role": "user", "content": [{"type": "image", "path": "cat.jpg"},'
    ' {"type": "text", "text": "What is this?"}]}]'
)
_FORMAT = 'weights stay in the format of their file; format="bf16" or "f32" widens them'
_DEVICE = 'device="auto" is CUDA where there is one, else the CPU; a model lies on one as a whole'
_BITS = 'format="q8_0" or "q4_0" quantises; weights that are quantised in their file stay so'
_MAPPED = "weights are mapped from their file; repack=False keeps all of them there"
_ATTENTION = "attention is computed in one way; model.forward(...) shows its probabilities"
_CONTEXT = "context=N is the most tokens that a session holds"
_MODEL = "the model is the first argument: a path or a hub id"
_LISTS = "ids are plain lists, which generate takes; numpy.array([ids]) makes an array"
_UNCUT = "nothing is cut off; ids[:n] does it"
_UNPADDED = "nothing is padded: of several texts each has ids of its own length"
_CACHE = "forward has no cache; model.session() has one"

GENERATING = {
    "max_length": "max_tokens= counts the answer alone",
    "do_sample": "temperature=0 takes the likeliest token, above 0 samples",
    "eos_token_id": "stop= takes texts, and ignore_eos=True goes on past the model's own end",
    "output_scores": _SCORES,
    "output_logits": _SCORES,
    "output_hidden_states": "model.forward(prompt, output_hidden_states=True) gives them",
    "output_attentions": "model.forward(prompt, output_attentions=True) gives them",
    "streamer": _PIECES,
    "stream": _PIECES,
    "input_ids": _FIRST,
    "inputs": _FIRST,
    "attention_mask": _MASK,
    "pad_token_id": "nothing is padded",
    "num_beams": "there is no beam search",
    "logits_processor": "logit_bias= and the penalties change scores",
    "image": _MEDIA,
    "images": _MEDIA,
    "audio": _MEDIA,
    "audios": _MEDIA,
    "video": _MEDIA,
    "videos": _MEDIA,
    "pixel_values": _MEDIA,
    "input_features": _MEDIA,
}
LOADING = {
    "torch_dtype": _FORMAT,
    "dtype": _FORMAT,
    "device_map": _DEVICE,
    "n_gpu_layers": _DEVICE,
    "load_in_4bit": _BITS,
    "load_in_8bit": _BITS,
    "quantization_config": _BITS,
    "trust_remote_code": "no code of a model is ever run",
    "attn_implementation": _ATTENTION,
    "low_cpu_mem_usage": _MAPPED,
    "use_mmap": _MAPPED,
    "n_ctx": _CONTEXT,
    "max_seq_length": _CONTEXT,
    "n_threads": "threads=N sets them for the whole process",
    "model_path": _MODEL,
    "model_id": _MODEL,
    "pretrained_model_name_or_path": _MODEL,
    "cache_dir": "HF_HUB_CACHE in the environment says where fetched files lie",
    "token": "HF_TOKEN in the environment, or `hf auth login`, says who asks",
    "local_files_only": "HF_HUB_OFFLINE=1 in the environment keeps from asking the hub",
}
TOKENIZING = {
    "return_tensors": _LISTS,
    "padding": _UNPADDED,
    "truncation": _UNCUT,
    "max_length": _UNCUT,
    "return_attention_mask": _MASK,
}
TEMPLATING = TOKENIZING | {
    "return_dict": "the ids alone are given, which generate takes",
    "conversation": "the messages are the first argument",
}
FORWARDING = {
    "input_ids": _FIRST,
    "attention_mask": _MASK,
    "labels": "there is no loss, since nothing is trained; model.logits(prompt) gives the scores",
    "use_cache": _CACHE,
    "past_key_values": _CACHE,
    "return_dict": "it always gives a CausalLMOutput",
    "pixel_values": _MEDIA,
    "input_features": _MEDIA,
}


def check(names: Iterable[str], table: Mapping[str, str]) -> None:
    """Raise InputError for the first name that stands in a table, with what it says there."""
    for name in names:
        if name in table:
            raise InputError(f"there is no setting {name}: {table[name]}")


def refusing(table: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: keyword arguments that stand in the table are an InputError."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check(kwargs, table)
            return function(*args, **kwargs)

        return checked

    return decorate
