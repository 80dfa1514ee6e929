"""An mmproj file of ours in llama.cpp's multimodal tools: does it load, and see the same?

Weights are random; the eyes have their published shapes but for SigLIP's depth, the ear and the
decoders are small. Two halves, because llama.cpp runs in an environment of its own that has nothing
of gemelo:

    PYTHONPATH=. python benchmarks/peers/mmproj.py write FOLDER     # with gemelo's test extra, 8 GB
    pip install llama-cpp-python==0.3.36
    python benchmarks/peers/mmproj.py compare FOLDER

`write` makes a text model of either family, an mmproj file in each format, a picture of the eye's
own size, and the soft tokens that gemelo makes of it. `compare` prints one JSON object a file: what
llama.cpp says it takes in, how many soft tokens it makes, and how far they are from ours: the
largest difference as a share of the largest number, and the same of root mean squares.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Not f32 and bf16 for Gemma 3n: llama.cpp loads those, and aborts in the first convolution.
FORMATS = {"gemma3": ("f32", "f16", "bf16", "q8_0"), "gemma3n": ("f16", "q8_0")}
SIDES = {"gemma3": 896, "gemma3n": 768}
DEPTH = 4  # layers of SigLIP, which has 27
WIDTHS = {"gemma3": 256, "gemma3n": 2048}  # of the decoders; llama.cpp takes no other for the last
IMAGE = 1  # what mtmd calls the kind of a chunk


def write(folder: Path) -> None:
    import tests.torchvision_shim  # noqa: F401, I001  (declarations that timm needs)

    import gemelo
    from gemelo.checkpoints.convert import convert
    from tests.multimodal import photograph
    from tests.multimodal import write as write_directory

    for family, config in configs().items():
        hub = write_directory(folder / family, config)
        convert(hub, folder / f"{family}.gguf", text_only=True)
        picture = photograph(SIDES[family], SIDES[family])
        np.save(folder / f"{family}-picture.npy", np.asarray(picture))
        for format in FORMATS[family]:
            beside = folder / f"{family}-mmproj-{format}.gguf"
            convert(hub, beside, format, mmproj=True)
            model = gemelo.load(folder / f"{family}.gguf", mmproj=beside)
            np.save(beside.with_suffix(".npy"), model.encode_image(picture).float().numpy())


def configs() -> dict[str, Any]:
    """Models whose decoders llama.cpp knows the shapes of."""
    from gemelo.config import VisionConfig
    from tests.multimodal import AWAKE, EYED

    eye = {**(AWAKE.vision_config or {}), "model_args": None}
    siglip = VisionConfig(num_hidden_layers=DEPTH)
    gemma3n = dataclasses.replace(
        AWAKE,
        hidden_size=WIDTHS["gemma3n"],
        hidden_size_per_layer_input=256,
        laurel_rank=64,
        num_hidden_layers=30,
        num_kv_shared_layers=10,
        layer_types=(),
        intermediate_size=(128,) * 30,
        activation_sparsity_pattern=(),
        vision_config=eye,
        vision_soft_tokens_per_image=256,
    )
    gemma3 = dataclasses.replace(
        EYED, hidden_size=WIDTHS["gemma3"], vision=siglip, mm_tokens_per_image=256
    )
    return {"gemma3": gemma3, "gemma3n": gemma3n}


# ---- llama.cpp -----------------------------------------------------------------------------------


def compare(folder: Path) -> None:
    import llama_cpp
    from llama_cpp import mtmd_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    mtmd_cpp.mtmd_helper_log_set(quiet, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    for family in SIDES:
        model = llama_cpp.llama_model_load_from_file(
            str(folder / f"{family}.gguf").encode(), llama_cpp.llama_model_default_params()
        )
        assert model, f"{family}.gguf does not load"
        picture = np.ascontiguousarray(np.load(folder / f"{family}-picture.npy"))
        for format in FORMATS[family]:
            path = folder / f"{family}-mmproj-{format}.gguf"
            context = opened(path, model)
            ours = np.load(path.with_suffix(".npy"))
            found: dict[str, Any] = {"file": path.name, "loads": bool(context)}
            if context:
                found["images"] = mtmd_cpp.mtmd_support_vision(context)
                found["sounds"] = mtmd_cpp.mtmd_support_audio(context)
                found |= differences(soft_tokens(context, picture, WIDTHS[family]), ours)
            print(json.dumps(found), flush=True)


def opened(path: Path, model: Any) -> Any:
    from llama_cpp import mtmd_cpp

    settings = mtmd_cpp.mtmd_context_params_default()
    settings.use_gpu, settings.warmup, settings.n_threads = False, False, 2
    return mtmd_cpp.mtmd_init_from_file(str(path).encode(), model, settings)


def soft_tokens(context: Any, picture: Any, width: int) -> Any:
    """What the tower makes of a picture (H, W, 3) in bytes: (J, width)."""
    from llama_cpp import mtmd_cpp

    rows, columns, _ = picture.shape
    pixels = picture.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd_cpp.mtmd_bitmap_init(columns, rows, pixels)
    marker = mtmd_cpp.mtmd_default_marker()
    text = mtmd_cpp.mtmd_input_text(marker, len(marker), True, True)
    chunks = mtmd_cpp.mtmd_input_chunks_init()
    bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
        chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
        if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == IMAGE:
            assert mtmd_cpp.mtmd_encode_chunk(context, chunk) == 0
            count = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
            made = mtmd_cpp.mtmd_get_output_embd(context)
            return np.ctypeslib.as_array(made, (count, width)).copy()
    raise AssertionError("the prompt has no chunk for the picture")


def differences(theirs: Any, ours: Any) -> dict[str, Any]:
    assert theirs.shape == ours.shape, (theirs.shape, ours.shape)
    gap = theirs - ours
    return {
        "soft_tokens": len(ours),
        "largest": float(abs(gap).max() / abs(ours).max()),
        "rms": float(np.sqrt((gap**2).mean() / (ours**2).mean())),
    }


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
