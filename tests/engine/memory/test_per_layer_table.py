"""Per-layer embeddings on disk, in RAM and on a device are the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from gemelo.api import load
from gemelo.checkpoints.load import load_checkpoint
from gemelo.config.options import TablePlacement
from gemelo.config.sampling import Sampling
from gemelo.engine import step
from gemelo.engine.decoder import Decoder
from gemelo.engine.engine import Engine
from gemelo.engine.memory import per_layer_table
from gemelo.engine.memory.pages import backing, present_bytes
from gemelo.engine.memory.per_layer_table import FileTable, HeldTable, is_mapped, table_of
from gemelo.engine.memory.process import process_bytes
from gemelo.engine.modules.decoder import ModuleDecoder
from gemelo.engine.native_decoder import PER_LAYER_EMBEDDING, NativeDecoder, PerLayerTable
from gemelo.engine.tokens import Tokens
from gemelo.errors import InputError, UnavailableError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import cpu, native
from gemelo.kernels.quants import FORMATS, Bytes, Floats, Packed, pack, unpack
from gemelo.weights.mapped import map_file
from gemelo.weights.tensors import Weights
from tests.conftest import TINY, tiny_model
from tests.engine.memory.conftest import NARROW, linux
from tests.gemma3n import IDS, SOFT_3N, tiny_3n, write_3n
from tests.kernels.matrices import normal
from tests.quantised import made, modules_of, native_of

ROWS, LAYERS, WIDTH = 40, 5, 256
EVERY, SOME = range(LAYERS), (0, 1, 3)
GREEDY = Sampling(temperature=0, max_tokens=6, ignore_eos=True)


def mapped(path: Path, blocks: Bytes, start: int = 96) -> Bytes:
    """The blocks as a map of a file, in which they begin somewhere."""
    path.write_bytes(bytes(start) + blocks.tobytes())
    return np.frombuffer(map_file(path), np.uint8)[start:].reshape(blocks.shape)


def random_table(format: str, columns: int) -> Packed:
    """Any bytes are blocks; those of small values give no NaN in any format's scales."""
    row_bytes = FORMATS[format].row_bytes(columns)
    blocks = np.random.default_rng(1).integers(0, 60, (ROWS, row_bytes), np.uint8)
    return Packed(blocks, FORMATS[format])


def tables(path: Path, packed: Packed, width: int) -> list[FileTable | HeldTable]:
    blocks = mapped(path / "table.bin", packed.blocks)
    on_disk, file = Packed(blocks, packed.format), backing(blocks)
    assert file is not None
    return [FileTable(file, on_disk, width), HeldTable(packed, width)]


def table_of_matrix(
    table: Packed, width: int, where: TablePlacement | None = None
) -> PerLayerTable:
    return table_of(Weights({PER_LAYER_EMBEDDING: table}), width, where)


# ---- rows ----------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("kept", [EVERY, SOME, (4,)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_the_embedding_s(tmp_path: Path, format: str, kept: Sequence[int]) -> None:
    """As they are stored, where the kernels read that; else as float32."""
    packed = random_table(format, LAYERS * WIDTH)
    ids = [0, 7, 39, 7, 7, 12]
    wanted = unpack(packed)[ids].reshape(6, LAYERS, WIDTH)[:, list(kept)].reshape(-1, WIDTH)
    for table in tables(tmp_path, packed, WIDTH):
        found = table.packed(ids, kept)
        assert found.format.name == (format if format in cpu.FORMATS else "f32")
        assert np.array_equal(unpack(found), wanted, equal_nan=True)


@linux
def test_no_ids_are_no_rows(tmp_path: Path) -> None:
    for table in tables(tmp_path, random_table("q8_0", LAYERS * WIDTH), WIDTH):
        assert table.packed([], SOME).shape == (0, WIDTH)


@linux
def test_blocks_across_layers_are_read_whole(tmp_path: Path) -> None:
    """Parts of 16 numbers and blocks of 32."""
    packed = pack(normal(ROWS, 64), FORMATS["q8_0"])
    wanted = unpack(packed)[[3, 1]].reshape(2, 4, 16)[:, [0, 3]].reshape(-1, 16)
    for table in tables(tmp_path, packed, 16):
        found = table.packed([3, 1], (0, 3))
        assert found.format.name == "f32" and np.array_equal(unpack(found), wanted)


@linux
def test_only_the_columns_of_kept_layers_are_read(tmp_path: Path) -> None:
    table = tables(tmp_path, random_table("q8_0", LAYERS * WIDTH), WIDTH)[0]
    assert isinstance(table, FileTable)
    read_bytes: list[tuple[int, int]] = []
    real = table.file.read

    def watched(position: int, into: memoryview) -> None:
        read_bytes.append((position, len(into)))
        real(position, into)

    table.file.read = watched  # type: ignore[method-assign]
    table.packed([2], SOME)
    row, part = FORMATS["q8_0"].row_bytes(LAYERS * WIDTH), FORMATS["q8_0"].row_bytes(WIDTH)
    assert read_bytes == [(2 * row, 2 * part), (2 * row + 3 * part, part)]


@linux
def test_a_row_that_is_not_there_is_said(tmp_path: Path) -> None:
    table = tables(tmp_path, random_table("bf16", LAYERS * WIDTH), WIDTH)[0]
    for id in (ROWS, -1):
        with pytest.raises(InputError, match=f"id {id} has no per-layer embedding; 40 have one"):
            table.packed([3, id], EVERY)


@linux
def test_rows_of_a_table_of_4_gb_take_their_own_memory_alone(tmp_path: Path) -> None:
    """E2B's table, 262144 x 7680 in bfloat16, as a sparse file."""
    rows, columns, layers = 262144, 7680, 30
    path = tmp_path / "table.bin"
    written = {5: 1.5, 131072: -2.0, rows - 1: 0.25}
    with path.open("wb") as file:
        for row, value in written.items():
            file.seek(row * columns * 2)
            line = pack(np.full((1, columns), value, np.float32), FORMATS["bf16"])
            file.write(line.blocks.tobytes())
        file.truncate(rows * columns * 2)
    blocks = np.frombuffer(map_file(path), np.uint8).reshape(rows, columns * 2)
    opened = backing(blocks)
    assert opened is not None
    table = FileTable(opened, Packed(blocks, FORMATS["bf16"]), WIDTH)
    before = process_bytes()
    generator = np.random.default_rng(0)
    for _ in range(4):
        ids = generator.integers(0, rows, 500).tolist()
        table.prefetch(ids)
        assert table.packed(ids, range(layers)).shape == (500 * layers, 256)
    found = unpack(table.packed(list(written), (0, 29))).reshape(3, 2, 256)
    assert found[:, :, 0].tolist() == [[value, value] for value in written.values()]
    assert process_bytes() - before < 100e6
    assert present_bytes(blocks) == 0


# ---- placing -------------------------------------------------------------------------------------


WITH_SOFT = [*IDS, 500, 490]  # past the table: its row 0


def decoder_at(path: Path, where: TablePlacement | None) -> NativeDecoder:
    """A decoder whose table lies somewhere, all else where it was mapped."""
    checkpoint = load_checkpoint(path)
    width = checkpoint.config.hidden_size_per_layer_input
    table = table_of(checkpoint.weights, width, where)
    return NativeDecoder(checkpoint.config, checkpoint.weights, table=table)


def scores(decoder: Decoder, ids: list[int]) -> Floats:
    return step.score(decoder, decoder.cache(64), ids)


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_logits_do_not_depend_on_the_place(
    request: pytest.FixtureRequest, kind: str, where: TablePlacement
) -> None:
    path = request.getfixturevalue(kind)
    plain, decoder = decoder_at(path, None), decoder_at(path, where)
    on_disk = sys.platform == "linux" and where == "disk"
    assert isinstance(decoder.table, FileTable if on_disk else HeldTable)
    ids = WITH_SOFT if kind == "folder" else IDS  # GGUF files hold the rows of text alone
    decoder.prefetch(ids)
    assert np.array_equal(scores(decoder, ids), scores(plain, ids))
    placed, other = decoder.view(NARROW), plain.view(NARROW)
    assert np.array_equal(scores(placed, ids), scores(other, ids))


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
def test_a_model_is_loaded_with_its_table_where_it_was_asked_for(
    gguf: Path, where: TablePlacement
) -> None:
    """On a CPU the device is memory."""
    decoder = load(gguf, ple=where, device="cpu").engine.decoder
    assert isinstance(decoder, NativeDecoder)
    on_disk = sys.platform == "linux" and where == "disk"
    assert isinstance(decoder.table, FileTable if on_disk else HeldTable)
    assert is_mapped(decoder.weights[PER_LAYER_EMBEDDING]) == (where == "disk")


def test_modules_ask_the_same_table(folder: Path) -> None:
    program = decoder_at(folder, "disk")
    modules = modules_of(program)
    assert modules.table is program.table
    expected = scores(modules_of(decoder_at(folder, "ram")), WITH_SOFT)
    assert np.array_equal(scores(modules, WITH_SOFT), expected)
    assert np.abs(scores(program, WITH_SOFT) - expected).max() < 1e-3


@pytest.mark.parametrize("name", ["q3_k", "q2_k", "q4_1", "q5_1", "iq4_nl"])
def test_a_table_in_a_format_without_kernels_is_only_read(name: str) -> None:
    """Of 256 numbers a layer: it goes to the program as float32, what it held before."""
    decoder = made(dataclasses.replace(SOFT_3N, head_dim=64, hidden_size_per_layer_input=256))
    assert decoder.is_native == (native.module is not None)
    table = random_table(name, 12 * 256)
    numbers = unpack(table)
    assert np.isfinite(numbers).all()
    found = []
    for weight in (table, Packed.of(numbers)):
        decoder.table = table_of_matrix(weight, 256)
        found.append(scores(decoder, [3, 1, 39]))
    assert np.array_equal(*found)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_copy_in_ram_lets_the_map_go(request: pytest.FixtureRequest, kind: str) -> None:
    weights = load_checkpoint(request.getfixturevalue(kind)).weights
    width = SOFT_3N.hidden_size_per_layer_input
    done: list[tuple[int, int]] = []
    mapped_table = weights[PER_LAYER_EMBEDDING]
    assert is_mapped(mapped_table)
    table = table_of(weights, width, "ram", progress=lambda *counts: done.append(counts))
    nbytes = mapped_table.nbytes
    assert done[-1] == (nbytes, nbytes)
    held = weights[PER_LAYER_EMBEDDING]  # whoever asks for it gets the copy
    assert held.nbytes == nbytes and not is_mapped(held) and held.blocks.base is None
    assert isinstance(table, HeldTable) and np.shares_memory(table.parts, held.blocks)
    done.clear()
    table_of(weights, width, "ram", progress=lambda *counts: done.append(counts))  # it is there
    assert done == [] and weights[PER_LAYER_EMBEDDING] is held
    with pytest.raises(InputError, match="are in memory, not mapped from a file"):
        table_of(weights, width, "disk")


@linux
def test_a_table_is_copied_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied of the map is let go on the way."""
    weights = load_checkpoint(folder).weights
    table = weights[PER_LAYER_EMBEDDING]
    wanted = table.blocks.copy()
    monkeypatch.setattr(per_layer_table, "PIECE_BYTES", 1 << 16)
    present: list[int] = []
    width = SOFT_3N.hidden_size_per_layer_input
    table_of(weights, width, "ram", lambda *counts: present.append(present_bytes(table.blocks)))
    assert len(present) > 5 and max(present[1:]) < table.nbytes - (1 << 16)
    assert present[-1] < 1 << 16
    assert np.array_equal(weights[PER_LAYER_EMBEDDING].blocks, wanted)


def test_what_cannot_be_placed_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = pack(normal(ROWS, 64), FORMATS["q8_0"])
    with pytest.raises(InputError, match="'tape': not one of disk, ram, device"):
        table_of_matrix(memory, 32, "tape")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="are in memory, not mapped from a file"):
        table_of_matrix(memory, 32, "disk")

    def full(*args: object, **kwargs: object) -> Bytes:
        raise MemoryError("Unable to allocate")

    weights = load_checkpoint(folder).weights
    monkeypatch.setattr(np, "empty_like", full)
    with pytest.raises(UnavailableError, match='no room for 0.0 GB .*; leave them on "disk"'):
        table_of(weights, 32, "ram")


def test_a_map_whose_file_is_gone_is_touched_instead(folder: Path, tmp_path: Path) -> None:
    moved = write_3n(tmp_path / "gone", SOFT_3N)
    wanted = scores(decoder_at(moved, "ram"), WITH_SOFT)
    checkpoint = load_checkpoint(moved)
    (moved / "model.safetensors").unlink()
    table = table_of(checkpoint.weights, SOFT_3N.hidden_size_per_layer_input, "disk")
    assert isinstance(table, HeldTable)
    decoder = NativeDecoder(checkpoint.config, checkpoint.weights, table=table)
    assert np.array_equal(scores(decoder, WITH_SOFT), wanted)


def test_maps_are_told_from_memory(folder: Path) -> None:
    table = load_checkpoint(folder).weights["embed_tokens.weight"]
    assert is_mapped(table) and not is_mapped(Packed.of(np.empty((3, 3), np.float32)))
    assert not is_mapped(table.prefix(columns=32))  # not in one piece


# ---- prefetching ---------------------------------------------------------------------------------


class Recorder:
    """A table that writes down what it is asked, and for what."""

    def __init__(self, table: PerLayerTable) -> None:
        self.table = table
        self.asked: list[list[str | int]] = []

    def packed(self, ids: Sequence[int], kept: Sequence[int]) -> Packed:
        self.asked.append(["rows", *ids])
        return self.table.packed(ids, kept)

    def prefetch(self, ids: Sequence[int]) -> None:
        self.asked.append(["ahead", *ids])


@pytest.fixture(params=["program", "modules"])
def recorded(request: pytest.FixtureRequest) -> tuple[Decoder, Recorder]:
    decoder = native_of(tiny_3n(SOFT_3N))
    assert decoder.table is not None
    recorder = Recorder(decoder.table)
    decoder.table = recorder
    return (modules_of(decoder) if request.param == "modules" else decoder), recorder


def test_a_prompt_s_next_chunk_is_read_ahead(recorded: tuple[Decoder, Recorder]) -> None:
    decoder, recorder = recorded
    step.prefill(decoder, decoder.cache(64, 3), Tokens([5, 6, 7, 500, 9, 10, 11]), start=0)
    assert recorder.asked == [
        ["ahead", 0, 9, 10],  # 500 lies past the table
        ["rows", 5, 6, 7],
        ["ahead", 11],
        ["rows", 0, 9, 10],
        ["rows", 11],
    ]


def test_a_token_is_read_ahead_as_soon_as_it_is_sampled(
    recorded: tuple[Decoder, Recorder], tiny_tokenizer: Tokenizer
) -> None:
    decoder, recorder = recorded
    stream = Engine(decoder, tiny_tokenizer).session().stream([2, 300], GREEDY)
    token = next(stream).token_ids[0]
    assert recorder.asked[-1] == ["ahead", token if token < 480 else 0]  # before it is asked for
    count = len(recorder.asked)
    next(stream)
    assert recorder.asked[count] == ["rows", token if token < 480 else 0]


def test_gemma_3_is_asked_to_read_ahead_and_has_nothing_to() -> None:
    """A step asks every decoder alike. It must not raise, even for an id that would have no row in
    a table, where that is an error (above)."""
    model = tiny_model(TINY["one-kv-head"])
    program = native_of(model)
    assert program.table is None
    for decoder in (program, ModuleDecoder(model)):
        decoder.prefetch([1, 2, 10**6])
