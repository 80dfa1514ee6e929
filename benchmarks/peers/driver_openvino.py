"""OpenVINO GenAI on an exported model: a directory, weights in 8 or 4 bits, its own defaults.

It generates whole answers, so the time to the first token stands for reading and the rest for
adding. Prompts are never repeated, so its cache of prefixes finds nothing. On processors with tiles
its default is to compute in bfloat16, which reads prompts faster and adds tokens slower than
float32; the precision is an argument, to measure both.

    python driver_openvino.py [f32]
"""

from __future__ import annotations

import sys
import time

import numpy as np
import openvino
import openvino_genai
from protocol import serve


class OpenVino:
    """A pipeline that is fed token ids; texts and their tokenizer have no part in it."""

    version = f"openvino-genai {openvino_genai.__version__}"

    def __init__(self, precision: str = "") -> None:
        self.settings: dict[str, object] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision:
            self.settings["INFERENCE_PRECISION_HINT"] = precision

    def load(self, file: str, threads: int, context: int) -> None:
        settings = self.settings | {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = openvino_genai.LLMPipeline(file, "CPU", **settings)

    def turn(self, ids: list[list[int]], new: int) -> tuple[float, float]:
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = new + 1, True, False
        prompts = np.array(ids, dtype=np.int64)
        every = openvino.Tensor(np.ones_like(prompts))
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompts), every)
        started = time.perf_counter()
        found = self.pipeline.generate(inputs, settings)
        total_s = time.perf_counter() - started
        assert [len(row) for row in found.tokens] == [new + 1] * len(ids)
        prefill_s = found.perf_metrics.get_ttft().mean / 1000
        return prefill_s, total_s - prefill_s


if __name__ == "__main__":
    serve(OpenVino(*sys.argv[1:2]))
