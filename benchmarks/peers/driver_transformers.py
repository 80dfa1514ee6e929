"""Hugging Face transformers on a directory of bfloat16 safetensors: what most people start from.

Its model's forward with its own cache, called token by token: less work than its `generate`.
"""

from __future__ import annotations

import time

import torch
import transformers
from protocol import serve


class Transformers:
    """A causal language model in bfloat16, attention as PyTorch has it."""

    version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def load(self, file: str, threads: int, context: int) -> None:
        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            file, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def turn(self, ids: list[list[int]], new: int) -> tuple[float, float]:
        started = time.perf_counter()
        found = self.model(torch.tensor(ids), use_cache=True, logits_to_keep=1)
        tokens = found.logits[:, -1].argmax(-1)
        prefill_s = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(new):
            found = self.model(tokens[:, None], past_key_values=found.past_key_values)
            tokens = found.logits[:, -1].argmax(-1)
        tokens.tolist()
        return prefill_s, time.perf_counter() - started


if __name__ == "__main__":
    serve(Transformers())
