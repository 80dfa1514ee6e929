"""llama.cpp, through the C interface of llama-cpp-python, on the same GGUF file.

Its own defaults except where they would make it slower or larger than its own tools are: threads as
asked, and sliding layers keep their window instead of the whole context. Its tile unit (AMX) and
its repacking are used wherever it was built with them.
"""

from __future__ import annotations

import ctypes
import time

import llama_cpp
import numpy as np
from protocol import serve


class Llama:
    """A model, and one context for each number of rows that was asked for."""

    version = f"llama-cpp-python {llama_cpp.__version__}"

    def __init__(self) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        features = llama_cpp.llama_print_system_info().decode()
        self.version += ", AMX" if "AMX_INT8 = 1" in features else ", no AMX"

    def load(self, file: str, threads: int, context: int) -> None:
        self.threads, self.context = threads, context
        self.model = llama_cpp.llama_model_load_from_file(
            file.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {file}")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary_size = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.contexts: dict[int, object] = {}
        self.context_of(1)

    def context_of(self, rows: int) -> object:
        """A context for so many rows, made once."""
        if rows not in self.contexts:
            settings = llama_cpp.llama_context_default_params()
            settings.n_ctx = self.context if rows == 1 else 512 * rows
            settings.n_batch = settings.n_ctx  # any prompt in one call
            settings.n_seq_max = rows
            settings.n_threads = settings.n_threads_batch = self.threads
            settings.swa_full = False
            made = llama_cpp.llama_init_from_model(self.model, settings)
            if not made:
                raise RuntimeError(f"llama.cpp makes no context for {rows} rows")
            self.contexts[rows] = made
        return self.contexts[rows]

    def turn(self, ids: list[list[int]], new: int) -> tuple[float, float]:
        rows, count = len(ids), len(ids[0])
        context = self.context_of(rows)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        reading = Batch(rows * count)
        for row, prompt in enumerate(ids):
            for position, token in enumerate(prompt):
                reading.add(token, position, row, scored=position == count - 1)
        started = time.perf_counter()
        reading.run(context)
        tokens = self.best(context, [count * (row + 1) - 1 for row in range(rows)])
        prefill_s = time.perf_counter() - started
        adding = Batch(rows)
        started = time.perf_counter()
        for position in range(count, count + new):
            adding.clear()
            for row, token in enumerate(tokens):
                adding.add(token, position, row, scored=True)
            adding.run(context)
            tokens = self.best(context, list(range(rows)))
        return prefill_s, time.perf_counter() - started

    def score(self, ids: list[int], at_once: int, file: str) -> None:
        context, size = self.context_of(1), self.vocabulary_size
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        scores = np.lib.format.open_memmap(file, "w+", np.float32, (len(ids), size))
        batch = Batch(at_once)
        for begin in range(0, len(ids), at_once):
            batch.clear()
            part = range(begin, min(begin + at_once, len(ids)))
            for position in part:
                batch.add(ids[position], position, 0, scored=True)
            batch.run(context)
            for position in part:
                row = llama_cpp.llama_get_logits_ith(context, position - begin)
                scores[position] = np.ctypeslib.as_array(row, (size,))

    def best(self, context: object, places: list[int]) -> list[int]:
        """The likeliest token after each of these places of the last batch."""
        size = (self.vocabulary_size,)
        scores = (llama_cpp.llama_get_logits_ith(context, place) for place in places)
        return [int(np.ctypeslib.as_array(row, size).argmax()) for row in scores]


class Batch:
    """Tokens with their positions and rows."""

    def __init__(self, capacity: int) -> None:
        self.held = llama_cpp.llama_batch_init(capacity, 0, 1)

    def add(self, token: int, position: int, row: int, scored: bool) -> None:
        held, place = self.held, self.held.n_tokens
        held.token[place], held.pos[place] = token, position
        held.n_seq_id[place], held.seq_id[place][0] = 1, row
        held.logits[place] = scored
        held.n_tokens += 1

    def clear(self) -> None:
        self.held.n_tokens = 0

    def run(self, context: object) -> None:
        code = llama_cpp.llama_decode(context, self.held)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def __del__(self) -> None:
        llama_cpp.llama_batch_free(self.held)


if __name__ == "__main__":
    serve(Llama())
