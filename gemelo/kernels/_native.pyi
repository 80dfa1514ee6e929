"""
The native kernels (gemelo/kernels/csrc); `python dev/stub.py` writes their types.
"""

from collections.abc import Sequence
import enum


class Format(enum.Enum):
    """Block formats, as GGUF numbers them."""

    F32 = 0

    F16 = 1

    Q4_0 = 2

    Q5_0 = 6

    Q8_0 = 8

    Q4_K = 12

    Q5_K = 13

    Q6_K = 14

    BF16 = 30

class Layout(enum.Enum):
    """How a matrix lies: as in the file, or interleaved."""

    ROWS = 0

    PANELS = 1

    STRIPS = 2

class CacheFormat(enum.Enum):
    """What the numbers of a KV cache are stored as."""

    F32 = 0

    BF16 = 1

    INT8 = 2

class LayerType(enum.Enum):
    """The attention of a layer; `Cache` has slots in this order."""

    SLIDING = 0

    FULL = 1

def names() -> list[str]:
    """The instruction sets that this machine runs, the fastest first."""

def name() -> str:
    """The one in use."""

def use(name: str) -> None:
    """Compute with another one; ValueError if the machine has it not."""

def set_threads(threads: int) -> None: ...

def threads() -> int: ...

def read(address: int, bytes: int) -> int:
    """Read memory with all threads and do nothing with it."""

class Watch:
    """Watches a map for as long as it lives; installs the handler."""

    def __init__(self, address: int, bytes: int) -> None: ...

def install_handler() -> None:
    """Install the SIGBUS handler again, over others'."""

def lost() -> list[tuple[int, int]]:
    """
    Of each watched map that misses something, where zeros begin, and its end.
    """

class Matrix:
    """Weights somewhere in memory, or their leading part."""

    def __init__(self, blocks: int, stride: int, format: Format, rows: int, columns: int, index: int = 0, layout: Layout = Layout.ROWS) -> None: ...

def product(x: int, x_stride: int, x_bf16: bool, tokens: int, w: Matrix, y: int, y_stride: int, y_bf16: bool) -> None:
    """y (tokens, rows) = x (tokens, columns) times w transposed."""

def gather(ids: int, count: int, w: Matrix, y: int, y_stride: int, y_bf16: bool) -> None:
    """The rows `ids` of w: y (count, columns)."""

def panel_bytes(format: Format, columns: int) -> int:
    """Bytes of sixteen rows, interleaved; 0 for plain floats."""

def interleave(rows: Matrix, first: int, stride: int, out: int) -> None:
    """
    Make rows the panels from `first` on, or strips, `stride` bytes for a line of all panels.
    """

def unpack(address: int, stride: int, format: Format, rows: int, columns: int, out: int) -> None:
    """
    Weights, rows `stride` bytes apart, as float32: out (rows, columns). To the bit what
    `quants.unpack` defines.
    """

def pack(x: int, rows: int, columns: int, format: Format, out: int) -> bool:
    """
    x (rows, columns) float32 as weights, out (rows, bytes of a row), to the bit what
    `quants.pack` defines: Q8_0, Q4_0, F32, F16 or BF16, ValueError for others. False where a
    block has a number that is not finite or too large for its scale; plain floats keep any.
    """

def argmax(x: int, count: int, maxima: int = 0) -> int:
    """
    The place of the largest, the first of several. With the maxima of every MAXIMA_BLOCK of
    them (as of `Call`, of one row) only these and one block are read.
    """

def block_maxima(x: int, count: int, maxima: int) -> bool:
    """
    The largest of every MAXIMA_BLOCK of x (count,), the last of which may be fewer; whether all
    are finite.
    """

MAXIMA_BLOCK: int = 64

FEW_TOKENS: int = 16

class Cache:
    """
    Keys and values of one sequence, by address.

    `layers` has for each layer that owns keys k, v and the scales of both, `slots` for each type of
    layer the positions in the slots and how many slots there are. `used` says of each type how many of
    them are in use, a step's own among them; whoever asks for a step sets it before.
    """

    def __init__(self, *, layers: Sequence[tuple[int, int, int, int]], slots: Sequence[tuple[int, int]], format: CacheFormat, kv_heads: int, head_dim: int) -> None: ...

    @property
    def used(self) -> list[int]: ...

    @used.setter
    def used(self, arg: Sequence[int], /) -> None: ...

class Piece:
    """
    Consecutive tokens of one sequence, from `position` on.

    `logits_to_keep` of the last tokens are scored. `attend_until` is the last position that each token
    sees, 0 for its own; `inputs_embeds`, 0 for none, stands for the embeddings of the ids.
    """

    def __init__(self, cache: Cache, position: int, tokens: int, logits_to_keep: int, attend_until: int = 0, inputs_embeds: int = 0) -> None: ...

class Call:
    """
    One step of a program: the tokens of some pieces, by address.

    `ids` are those of all pieces, one behind the other. Pieces of at most FEW_TOKENS come first, then
    those of which at most so many are scored. `scores` (tokens that are scored, vocabulary) are
    written, soft-capped, and the largest of every MAXIMA_BLOCK of a token's to `maxima` (tokens,
    ceil(vocabulary / MAXIMA_BLOCK)), 0 for none.
    """

    def __init__(self, ids: int, pieces: Sequence[Piece], per_layer_rows: Matrix | None, scores: int, maxima: int = 0) -> None: ...

class Norm:
    """RMSNorm: x / rms(x) * (offset + weight), or without a weight (0)."""

    def __init__(self, weight: int, offset: float, eps: float) -> None: ...

class AltUp:
    """A layer's coefficients, by address, float32."""

    def __init__(self, router_norm: Norm, modality_router: int, prediction_coefs: int, correction_coefs: int, correct_output_scale: int) -> None: ...

class Program:
    """A decoder's forward as a list of steps over buffers."""

    def __init__(self) -> None: ...

    def buffer(self, width: int) -> int:
        """A new buffer, (tokens, width); its number."""

    def embed(self, table: Matrix, scale: float, out: int) -> None: ...

    def rotary_embedding(self, inv_freq: Sequence[float], layer_type: LayerType) -> None: ...

    def norm(self, x: int, n: Norm, out: int) -> None: ...

    def add_norm(self, x: int, y: int, n: Norm, next: Norm | None, out: int) -> None: ...

    def product(self, x: int, weights: Sequence[Matrix], outs: Sequence[int]) -> None: ...

    def geglu(self, x: int, gate_proj: Matrix, up_proj: Matrix, gates: int, ups: int) -> None: ...

    def sparse_geglu(self, x: int, gate_proj: Matrix, up_proj: Matrix, std_multiplier: float, gates: int, ups: int) -> None: ...

    def norm_rope_heads(self, x: int, head_dim: int, n: Norm, layer_type: LayerType | None) -> None: ...

    def store_kv(self, k: int, v: int, layer: int, layer_type: LayerType) -> None: ...

    def attend(self, q: int, layer: int, layer_type: LayerType, heads: int, window: int, scale: float, out: int) -> None: ...

    def keep_last_tokens(self, buffers: Sequence[int]) -> None: ...

    def logits(self, x: int, head: Matrix, cap: float) -> None: ...

    def altup_predict(self, streams: Sequence[int], predicted: Sequence[int], altup: AltUp) -> None: ...

    def altup_correct(self, streams: Sequence[int], predicted: Sequence[int], activated: int, altup: AltUp, scaled: int) -> None: ...

    def laurel_residual(self, active: int, attended: int, post_attention_norm: Norm, x: int, laurel: int, post_laurel_norm: Norm, pre_feedforward_norm: Norm, out: int, normed: int) -> None: ...

    def gate_per_layer_input(self, gates: int, per_layer_inputs: int, layer: int) -> None: ...

    def add_to_others(self, streams: Sequence[int], y: int, n: Norm) -> None: ...

    def match_magnitude(self, x: int, target: int, scale: float, add: bool, out: int) -> None: ...

    def per_layer_inputs(self, projected: int, layers: int, n: Norm, projected_scale: float, table_scale: float) -> None: ...

    def run(self, call: Call) -> bool:
        """
        Make the scores; whether all are finite. ValueError for pieces that cannot be run so,
        MemoryError where there is no room.
        """
