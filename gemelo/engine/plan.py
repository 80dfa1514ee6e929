"""Plan: bytes of a model and of its KV caches, counted before they are there; admission by them.

A request holds memory for as long as it runs: a cache of its prompt and of all that it may answer.
So its bytes are reserved when it is admitted, and it waits where they are not free; memory that
lacks in the middle of a step would be the end of the process, and nobody's answer is taken away
for another's (no preemption). Whatever of the limit no running request has is for sequences that
ended, whose beginnings others may share (`prefix_pool`). What can never fit is refused at once.

    plan = KVPlan(config, chunk=512, kv_format="bf16")
    reservation = admission.reserve(plan.request_bytes(prompt_tokens, max_tokens, context))
    ...                                        # None: wait until others release theirs
    reservation.release()

The counts are exact for caches whose context is what was reserved (`reserved_tokens`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gemelo.checkpoints.destination import shown_size
from gemelo.checkpoints.formats import format_of
from gemelo.checkpoints.source import DECODER, PER_LAYER_EMBEDDING, Source
from gemelo.config import ModelConfig, kv_bytes
from gemelo.config.options import KVFormat, WeightFormat
from gemelo.engine.memory.pages import available_bytes
from gemelo.errors import InputError, shown
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Format

UNSET_MAX_TOKENS = 2048  # reserved for an answer that is to go on until it ends by itself
_UNKNOWN_LIMIT_BYTES = 2 << 30  # where the system does not say how much is free


@dataclass(frozen=True)
class KVPlan:
    """Bytes of the KV caches of one model; `chunk` is the most tokens of a cache in one step.

    plain_bytes are those of a number in format "plain": 4 on the host, with modules their dtype's.
    """

    config: ModelConfig
    chunk: int
    kv_format: KVFormat
    plain_bytes: int = 4

    @property
    def number_bytes(self) -> float:
        """Bytes of one number of a key or a value, with its share of a scale."""
        if self.kv_format == "int8":
            return 1 + 2 / self.config.head_dim
        return 2 if self.kv_format == "bf16" else self.plain_bytes

    def cache_bytes(self, tokens: int) -> int:
        """The most that a cache allocates whose context is `tokens`."""
        return kv_bytes(self.config, tokens, self.chunk, self.number_bytes)

    def snapshot_bytes(self, end: int) -> int:
        """A snapshot at position `end`: what sliding layers hold of the window before it."""
        config = self.config
        slots = 0
        for layer in config.kv_layers:
            window = config.layer(layer).window
            slots += 0 if window is None else min(window - 1, end)
        return int(2 * config.num_key_value_heads * config.head_dim * self.number_bytes * slots)

    def request_bytes(
        self,
        prompt_tokens: int,
        max_tokens: int | None,
        context: int,
        n: int = 1,
        num_snapshots: int = 0,
    ) -> int:
        """What a request of `n` answers has to have: a cache for each, and snapshots of one."""
        tokens = reserved_tokens(prompt_tokens, max_tokens, context)
        return n * self.cache_bytes(tokens) + num_snapshots * self.snapshot_bytes(tokens)


def reserved_tokens(prompt_tokens: int, max_tokens: int | None, context: int) -> int:
    """Tokens of one sequence: its prompt and its answer, within the context. An answer without a
    bound of its own gets UNSET_MAX_TOKENS, and ends for its length there."""
    answer = UNSET_MAX_TOKENS if max_tokens is None else max_tokens
    return min(prompt_tokens + answer, context)


def weight_bytes(source: Source, format: WeightFormat = "native") -> int:
    """Bytes of an open file's decoder, loaded in a format; its header is all that is read."""
    total = 0
    for name, (*rows, columns) in source.shapes.items():
        if name.startswith(DECODER):
            held = source.tensor(name).format
            held = _loaded_format(name, held, format) if rows else held
            total += math.prod(rows) * held.row_bytes(columns)
    return total


def _loaded_format(name: str, held: Format, format: WeightFormat) -> Format:
    """What a matrix of a file is in memory: as asked for, and widened where no kernel takes it."""
    chosen = format_of(name, format)
    made = held if chosen == "native" else FORMATS[chosen]
    is_read = name == PER_LAYER_EMBEDDING or made.name in cpu.FORMATS or native.module is None
    return made if is_read else FORMATS["f16"]


# ---- admission -----------------------------------------------------------------------------------


def default_kv_limit() -> int:
    """Bytes for KV caches where nobody said how many: half of what is free, the model loaded."""
    return available_bytes() // 2 or _UNKNOWN_LIMIT_BYTES


def check_kv_limit(kv_limit_bytes: int | None) -> None:
    """Raise InputError for what is no number of bytes."""
    is_number = isinstance(kv_limit_bytes, int) and not isinstance(kv_limit_bytes, bool)
    if kv_limit_bytes is not None and not (is_number and kv_limit_bytes > 0):
        raise InputError(
            f"kv_limit_bytes = {shown(kv_limit_bytes)}; expected a number of bytes from 1, for the "
            "KV caches of all requests, or None for half of what is free"
        )


class Reservation:
    """Bytes that a request has until it releases them."""

    def __init__(self, admission: Admission, nbytes: int) -> None:
        self.nbytes, self._admission = nbytes, admission

    def release(self) -> None:
        """Give the bytes back; to do it again does nothing."""
        self._admission.live.discard(self)


class Admission:
    """A limit of bytes, and who has some of them. One thread's, as all that schedules."""

    def __init__(self, kv_limit_bytes: int | None = None) -> None:
        """None is half of the memory that is free now."""
        check_kv_limit(kv_limit_bytes)
        limit = default_kv_limit() if kv_limit_bytes is None else kv_limit_bytes
        self.limit_bytes, self.live = limit, set[Reservation]()

    @property
    def reserved_bytes(self) -> int:
        """Bytes that running requests have."""
        return sum(reservation.nbytes for reservation in self.live)

    @property
    def free_bytes(self) -> int:
        """Bytes that no running request has: a new one's, or those of sequences that ended."""
        return self.limit_bytes - self.reserved_bytes

    def check(self, nbytes: int) -> None:
        """Raise InputError for a request that would not fit alone."""
        if nbytes > self.limit_bytes:
            raise InputError(
                f"the request needs {shown_size(nbytes)} of KV cache, and kv_limit_bytes is "
                f"{shown_size(self.limit_bytes)} for all requests: shorten the prompt, lower "
                "max_tokens or n, or raise kv_limit_bytes"
            )

    def reserve(self, nbytes: int) -> Reservation | None:
        """The bytes for a request; None while others have too many of them.

        Raises InputError where it would wait for ever.
        """
        self.check(nbytes)
        if nbytes > self.free_bytes:
            return None
        reservation = Reservation(self, nbytes)
        self.live.add(reservation)
        return reservation
