"""Mutations: one honest file in, a broken one out, by a random generator alone.

Three kinds, from blind to knowing: bytes (bits flipped, runs cut, doubled and spliced, numbers at
the edges of their types), JSON values (any node becomes another, keys come and go), and fields of
GGUF (counts, lengths, types, dimensions and offsets, each found by walking the header). The same
generator gives the same file, so that a case is known by its number.

    broken = mutated_bytes(random.Random("gguf:17"), content)
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

_EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 127, 128, 255, 256, 1023, 1024, 65535, 65536)
EDGES = (*_EDGES, (1 << 24), (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1)
LAYOUTS = "BHIQbhiqfd"
TEXTS = (
    "",
    " ",
    "\n",
    "\0",
    "\x1b[2J",
    "\u202e",
    "\ufeff",
    "é" * 300,
    "x" * 5000,
    "<start_of_turn>",
    "<end_of_turn>user",
    "<bos>",
    "../../etc/passwd",
    "file:///etc/hostname",
    "http://127.0.0.1:9/x",
    "data:image/png;base64,AAAA",
    "%s%n{}{{ 7*7 }}",
    "🦙",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    -(1 << 63),
    0.5,
    -0.0,
    1e-45,
    1e38,
    1e308,
    float("inf"),
    float("nan"),
    [],
    {},
    [[]],
    [0],
    {"": 0},
    *EDGES,
    *TEXTS,
)

# ---- bytes ---------------------------------------------------------------------------------------


def mutated_bytes(rng: Random, content: bytes, most: int = 6, until: int | None = None) -> bytes:
    """One to `most` changes; `until` keeps most of them in the first bytes, where headers are."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, most)):
        reach = len(changed) if until is None or rng.random() < 0.2 else min(until, len(changed))
        rng.choice(_BYTE_CHANGES)(rng, changed, reach)
    return bytes(changed)


def _flip(rng: Random, content: bytearray, reach: int) -> None:
    if reach:
        content[rng.randrange(reach)] ^= 1 << rng.randrange(8)


def _replace(rng: Random, content: bytearray, reach: int) -> None:
    if reach:
        content[rng.randrange(reach)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(rng: Random, content: bytearray, reach: int) -> None:
    """A number at the edge of its type, in either order of bytes."""
    raw = edge_number(rng)
    if reach >= len(raw):
        at = rng.randrange(reach - len(raw) + 1)
        content[at : at + len(raw)] = raw


def _cut(rng: Random, content: bytearray, reach: int) -> None:
    start = rng.randrange(reach + 1)
    del content[start : start + rng.choice((1, 2, 4, 8, 64, 1024))]


def _truncate(rng: Random, content: bytearray, reach: int) -> None:
    if rng.random() < 0.5:
        del content[rng.randrange(len(content) + 1) :]


def _double(rng: Random, content: bytearray, reach: int) -> None:
    start = rng.randrange(reach + 1)
    part = content[start : start + rng.choice((1, 4, 16, 256, 4096))]
    at = rng.randrange(reach + 1)
    content[at:at] = part * rng.choice((1, 1, 2, 16))


def _splice(rng: Random, content: bytearray, reach: int) -> None:
    start, at = rng.randrange(reach + 1), rng.randrange(reach + 1)
    part = content[start : start + rng.choice((4, 16, 64))]
    content[at : at + len(part)] = part


def _insert(rng: Random, content: bytearray, reach: int) -> None:
    at = rng.randrange(reach + 1)
    content[at:at] = rng.choice((b"\0", b"\xff", rng.randbytes(4))) * rng.choice((1, 4, 64))


_BYTE_CHANGES: Sequence[Callable[[Random, bytearray, int], None]] = (
    _flip,
    _flip,
    _replace,
    _replace,
    _number,
    _number,
    _cut,
    _truncate,
    _double,
    _splice,
    _insert,
)


def edge_number(rng: Random) -> bytes:
    """A packed number that is hard on a reader."""
    layout = rng.choice(LAYOUTS)
    order = rng.choice("<<>")
    if layout in "fd":
        value: Any = rng.choice((0.0, -1.0, 1e-45, float("inf"), float("nan"), 3e38))
        return struct.pack(order + layout, value)
    size = 8 * struct.calcsize(layout)
    value = rng.choice(EDGES) * rng.choice((1, 1, 1, -1)) + rng.choice((-1, 0, 0, 1))
    low = 0 if layout.isupper() else -(1 << (size - 1))
    return struct.pack(order + layout, (value - low) % (1 << size) + low)


# ---- JSON ----------------------------------------------------------------------------------------


def mutated_value(rng: Random, value: Any, most: int = 2) -> Any:
    """A copy of a JSON value with one to `most` of its nodes changed."""
    root = [copy.deepcopy(value)]
    for _ in range(rng.randint(1, most)):
        holder, key = rng.choice(_nodes(root))
        rng.choice(_VALUE_CHANGES)(rng, holder, key)
    return root[0] if root else None


def mutated_json(rng: Random, value: Any) -> bytes:
    """The same as text; some are broken as text too."""
    text = json.dumps(mutated_value(rng, value), ensure_ascii=rng.random() < 0.5)
    raw = text.encode("utf-8", "surrogatepass")
    return mutated_bytes(rng, raw, 2) if rng.random() < 0.1 else raw


def _nodes(root: list[Any]) -> list[tuple[Any, Any]]:
    """(container, key) of every node, at most some thousands."""
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting and len(found) < 3000:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(min(len(holder), 200)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found or [(root, 0)]


def _other(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice(VALUES))


def _nudged(rng: Random, holder: Any, key: Any) -> None:
    value = holder[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _other(rng, holder, key)
    holder[key] = rng.choice((value + 1, value - 1, value * 2, -value, value * 1000, float(value)))
    return None


def _as_text(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = str(holder[key])[:10000]


def _wrapped(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = rng.choice(([holder[key]], {"value": holder[key]}, [holder[key]] * 3))


def _gone(rng: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        del holder[key]


def _renamed(rng: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[f"{key}{rng.choice(('s', '_', ' ', 'x'))}"] = holder.pop(key)


def _doubled(rng: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))


_VALUE_CHANGES: Sequence[Callable[[Random, Any, Any], None]] = (
    _other,
    _other,
    _nudged,
    _nudged,
    _as_text,
    _wrapped,
    _gone,
    _renamed,
    _doubled,
)

# ---- GGUF ----------------------------------------------------------------------------------------

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
Field = tuple[int, int]  # where it begins, and its bytes


@dataclass(frozen=True)
class GGUFSeed:
    """A sound file, and where in its header the numbers stand: those that say how it is built
    (counts, lengths, types, dimensions, offsets) and those that say what it holds."""

    content: bytes
    structure: list[Field]
    values: list[Field]


def gguf_seed(content: bytes) -> GGUFSeed:
    """Walk the header of a sound file."""
    fields: list[Field] = [(4, 4), (8, 8), (16, 8)]
    values: list[Field] = []
    at = 24

    def number(size: int) -> int:
        nonlocal at
        fields.append((at, size))
        at += size
        return int.from_bytes(content[at - size : at], "little")

    def string() -> None:
        nonlocal at
        size = number(8)
        if size:
            fields.append((at + size // 2, 1))
        at += size

    def value(kind: int) -> None:
        nonlocal at
        if kind == 8:
            string()
        elif kind != 9:
            number(_SIZES[kind])
            values.append(fields.pop())
        else:
            inner, count = number(4), number(8)
            for index in range(count):
                before = len(fields), len(values)
                value(inner)
                if index > 3:  # a vocabulary must not drown all else
                    del fields[before[0] :], values[before[1] :]

    tensors, entries = (int.from_bytes(content[i : i + 8], "little") for i in (8, 16))
    for _ in range(entries):
        string()
        value(number(4))
    for _ in range(tensors):
        string()
        for _ in range(number(4)):
            number(8)
        number(4), number(8)
    return GGUFSeed(content, fields, values)


def mutated_gguf(rng: Random, seed: GGUFSeed) -> bytes:
    """Header fields set to other numbers, and now and then what bytes alone can do."""
    if rng.random() < 0.25:
        return mutated_bytes(rng, seed.content, until=seed.structure[-1][0] + 64)
    changed = bytearray(seed.content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, size = rng.choice(seed.values if rng.random() < 0.6 else seed.structure)
        now = int.from_bytes(changed[at : at + size], "little")
        other = rng.choice(
            (rng.choice(EDGES), now + rng.choice((-1, 1, 8)), now * 2, rng.randrange(16))
        )
        changed[at : at + size] = (other % (1 << (8 * size))).to_bytes(size, "little")
    return mutated_bytes(rng, bytes(changed), 2) if rng.random() < 0.1 else bytes(changed)
