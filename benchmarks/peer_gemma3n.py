"""A random Gemma 3n in GGUF: is what we write what llama.cpp reads, score for score?

No small Gemma 3n is published, so the model is random: E2B's 30 layers and everything that
llama.cpp has built in (20 layers with keys, 10 sparse ones, 4 streams, rank 64, 256 columns a
layer), at a width of 256. Two halves, because llama.cpp runs in an environment of its own that has
nothing of gemelo:

    PYTHONPATH=. python benchmarks/peer_gemma3n.py write FOLDER     # with gemelo's test extra
    pip install llama-cpp-python==0.3.36
    python benchmarks/peer_gemma3n.py compare FOLDER

`write` makes one file a format, continues a prompt that is longer than the window by 32 greedy
tokens, and keeps the scores of every step. `compare` feeds llama.cpp the same tokens one by one and
prints one JSON object a file: how many greedy choices agree, and how far apart the scores are.

llama.cpp divides a gate's variance by N - 1 where the reference divides by N, and thirty random
layers make that visible. So the scores are kept twice: `ours`, as gemelo and the reference compute
them, and `as_theirs`, with that one constant changed to llama.cpp's. What is left between those and
llama.cpp's is arithmetic: its GELU from a half-precision table, and activations that both round to
8 bits where weights are quantised, each in its way.
"""

import ctypes
import dataclasses
import json
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np

FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0")
PROMPT = [2, *range(380, 420)]
STEPS = 32
FFN = 1024
TOP = 5  # scores compared at every step


def write(folder: Path) -> None:
    import gemelo
    from gemelo.checkpoints.convert import convert
    from gemelo.config import Gemma3nConfig
    from gemelo.engine.native_decoder import NativeDecoder

    config = Gemma3nConfig(
        vocab_size=512,
        vocab_size_per_layer_input=512,
        hidden_size=256,
        intermediate_size=(FFN,) * 30,
        num_hidden_layers=30,
        num_kv_shared_layers=10,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        sliding_window=16,
        max_position_embeddings=512,
    )
    source = write_random(folder / "hub", config)
    for format in FORMATS:
        path = folder / f"{format}.gguf"
        convert(source, path, format)
        decoder = gemelo.load(path, device="cpu").engine.decoder
        assert isinstance(decoder, NativeDecoder)
        ids, ours = continued(decoder, list(PROMPT))
        changed = NativeDecoder(
            with_their_divisor(config), decoder.weights, decoder.panels, decoder.table
        )
        _, as_theirs = continued(changed, ids)
        np.savez(path.with_suffix(".npz"), ids=ids, ours=ours, as_theirs=as_theirs)
        print(f"wrote {path}", file=sys.stderr)


def write_random(folder: Path, config):
    """A directory as the hub has them, in float32, with the tokenizer of the tests."""
    from gemelo.config.parameters import parameter_shapes
    from gemelo.inputs.tokenizer.tokenizer import Tokenizer
    from gemelo.kernels.quants import Packed
    from gemelo.weights import names
    from gemelo.weights.safetensors import write_safetensors
    from tests.conftest import tiny_vocabulary

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    tensors = []
    for name, shape in parameter_shapes(config).items():
        weight = Packed.of(random_values(name, shape, generator).astype(np.float32))
        tensors.append((names.to_hf(name, "text"), shape, weight.format, lambda w=weight: w))
    write_safetensors(folder, tensors)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    tokenizer = Tokenizer.from_gguf(tiny_vocabulary())
    (folder / "tokenizer.model").write_bytes(tokenizer.to_sentencepiece())
    return folder


def random_values(name: str, shape: tuple[int, ...], generator: np.random.Generator):
    """A weight that keeps a signal's size from layer to layer."""
    if name == "language_model.norm.weight":  # of both signs, else the tied head repeats the token
        return generator.standard_normal(shape)
    if len(shape) == 1:  # what a layer adds is small beside what it is added to
        low = 0.1 if "q_norm" in name or "k_norm" in name or "post_" in name else 0.5
        return generator.uniform(low, 3 * low, shape)
    spread = 0.1 if "coefs" in name else shape[1] ** -0.5
    spread = 8.0 if "router" in name else spread  # its input is divided by the width
    return generator.normal(0, spread, shape)


def with_their_divisor(config):
    """A config whose sparse layers cut where llama.cpp cuts: its deviation of N numbers is larger
    by the root of N / (N - 1), so the share that is cut stands for a factor larger by that."""
    wider = (FFN / (FFN - 1)) ** 0.5
    normal = NormalDist()
    shares = tuple(
        normal.cdf(normal.inv_cdf(share) * wider) if share else share
        for share in config.activation_sparsity_pattern
    )
    return dataclasses.replace(config, activation_sparsity_pattern=shares)


def continued(decoder, ids: list[int]):
    """ids, continued greedily if they are the prompt alone; and the scores of every step."""
    from gemelo.engine import step
    from gemelo.engine.tokens import Tokens

    cache = decoder.cache(512, kv_format="plain")  # float32, as llama.cpp's below
    rows = [step.prefill(decoder, cache, Tokens(PROMPT))]
    for end in range(len(PROMPT), len(PROMPT) + STEPS):
        if len(ids) == end:
            ids.append(int(rows[-1].argmax()))
        if len(rows) < STEPS:
            rows.append(step.decode(decoder, cache, ids[end], end))
    return ids, np.stack(rows)


def compare(path: Path) -> dict[str, object]:
    held = np.load(path.with_suffix(".npz"))
    theirs = np.stack(list(peer_scores(str(path), held["ids"].tolist())))
    best = np.sort(held["ours"], axis=1)
    found: dict[str, object] = {"file": path.name, "steps": STEPS}
    for name in ("ours", "as_theirs"):
        ours = held[name]
        apart = np.abs(ours - theirs)
        top = np.argsort(-ours, axis=1)[:, :TOP]
        found[name] = {
            "same_greedy": int((ours.argmax(1) == theirs.argmax(1)).sum()),
            "largest_difference": round(float(apart.max()), 6),
            "largest_difference_of_top": round(float(np.take_along_axis(apart, top, 1).max()), 6),
        }
    found["largest_score"] = round(float(best[:, -1].max()), 3)
    found["smallest_margin"] = round(float((best[:, -1] - best[:, -2]).min()), 6)
    return found


def peer_scores(path: str, ids: list[int]):
    """llama.cpp's scores after the prompt and after each of the tokens that follow it."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    loading = llama_cpp.llama_model_default_params()
    loading.use_extra_bufts = False  # no repacking: its AMX path crashes on some virtual machines
    model = llama_cpp.llama_model_load_from_file(path.encode(), loading)
    assert model, f"{path} does not load"
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_threads, settings.n_threads_batch = 512, 2, 2
    settings.type_k = settings.type_v = 0  # float32, as our cache
    settings.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, settings)
    assert context, f"{path}: no context"
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    for step in range(STEPS):
        new = PROMPT if step == 0 else ids[len(PROMPT) + step - 1 :][:1]
        tokens = (llama_cpp.llama_token * len(new))(*new)
        batch = llama_cpp.llama_batch_get_one(tokens, len(new))
        assert llama_cpp.llama_decode(context, batch) == 0
        scores = llama_cpp.llama_get_logits_ith(context, -1)
        yield np.ctypeslib.as_array(scores, (size,)).copy()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    task, folder = sys.argv[1], Path(sys.argv[2])
    if task == "write":
        write(folder)
    else:
        for format in FORMATS:
            print(json.dumps(compare(folder / f"{format}.gguf")), flush=True)
