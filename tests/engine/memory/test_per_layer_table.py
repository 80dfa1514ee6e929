"""Per-layer embeddings on disk, in RAM and on a device are the same."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from gemelo.kernels.linear import as_blocks, module_bytes
from torch import Tensor

from gemelo.checkpoints.load import load_checkpoint
from gemelo.config.options import TablePlacement
from gemelo.engine import step
from gemelo.engine.elastic.submodel_views import SubmodelViews
from gemelo.engine.engine import Engine
from gemelo.engine.kv import KVCache
from gemelo.engine.memory import per_layer_table
from gemelo.engine.memory.pages import backing, present_bytes
from gemelo.engine.memory.per_layer_table import (
    FileTable,
    HeldTable,
    is_mapped,
    place_table,
)
from gemelo.engine.memory.process import process_bytes
from gemelo.engine.sampler import Sampling
from gemelo.engine.tokens import Tokens
from gemelo.errors import InputError, UnavailableError
from gemelo.inputs.tokenizer.tokenizer import Tokenizer
from gemelo.kernels import reference
from gemelo.kernels.quants import FORMATS, Packed, pack
from gemelo.models.gemma3n import Gemma3n
from gemelo.weights.mapped import map_file
from tests.conftest import TINY, tiny_model
from tests.engine.memory.conftest import NARROW, linux
from tests.gemma3n import IDS, SOFT_3N, scores, tiny_3n, write_3n

ROWS, LAYERS, WIDTH = 40, 5, 256
EVERY, SOME = range(LAYERS), (0, 1, 3)
GREEDY = Sampling(temperature=0, max_tokens=6, ignore_eos=True)


def mapped(path: Path, blocks: Tensor, start: int = 96) -> Tensor:
    """The blocks as a map of a file, in which they begin somewhere."""
    path.write_bytes(bytes(start) + blocks.numpy().tobytes())
    return torch.frombuffer(map_file(path), dtype=torch.uint8)[start:].view(blocks.shape)


def random_table(format: str, columns: int) -> Packed:
    """Any bytes are blocks; those of small values give no NaN in any format's scales."""
    row_bytes = FORMATS[format].row_bytes(columns)
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 60, (ROWS, row_bytes), generator=generator, dtype=torch.uint8)
    return Packed(blocks, FORMATS[format])


def tables(
    path: Path, packed: Packed, width: int, dtype: torch.dtype
) -> list[FileTable | HeldTable]:
    blocks = mapped(path / "table.bin", packed.blocks)
    on_disk, file = Packed(blocks, packed.format), backing(blocks)
    assert file is not None
    return [FileTable(file, on_disk, width, dtype), HeldTable(packed, width, dtype)]


# ---- rows ----------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [EVERY, SOME, (4,)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_the_embedding_s(
    tmp_path: Path, format: str, kept: Sequence[int], dtype: torch.dtype
) -> None:
    packed = random_table(format, LAYERS * WIDTH)
    ids = torch.tensor([[0, 7, 39], [7, 7, 12]])
    wanted = reference.embedding(ids, packed, dtype).view(2, 3, LAYERS, WIDTH)[:, :, list(kept)]
    for table in tables(tmp_path, packed, WIDTH, dtype):
        found = table.rows(ids, kept)
        assert found.dtype == dtype and torch.equal(found, wanted)


@linux
def test_blocks_across_layers_are_read_whole(tmp_path: Path) -> None:
    """Parts of 16 numbers and blocks of 32."""
    packed = pack(torch.randn(ROWS, 64), FORMATS["q8_0"])
    ids = torch.tensor([[3, 1]])
    wanted = reference.embedding(ids, packed).view(1, 2, 4, 16)[:, :, [0, 3]]
    for table in tables(tmp_path, packed, 16, torch.float32):
        assert torch.equal(table.rows(ids, (0, 3)), wanted)


@linux
def test_only_the_columns_of_kept_layers_are_read(tmp_path: Path) -> None:
    table = tables(tmp_path, random_table("q8_0", LAYERS * WIDTH), WIDTH, torch.float32)[0]
    assert isinstance(table, FileTable)
    read_bytes: list[tuple[int, int]] = []
    real = table.file.read

    def watched(position: int, into: memoryview) -> None:
        read_bytes.append((position, len(into)))
        real(position, into)

    table.file.read = watched  # type: ignore[method-assign]
    table.rows(torch.tensor([[2]]), SOME)
    row, part = FORMATS["q8_0"].row_bytes(LAYERS * WIDTH), FORMATS["q8_0"].row_bytes(WIDTH)
    assert read_bytes == [(2 * row, 2 * part), (2 * row + 3 * part, part)]


@linux
def test_a_row_that_is_not_there_is_said(tmp_path: Path) -> None:
    table = tables(tmp_path, random_table("bf16", LAYERS * WIDTH), WIDTH, torch.float32)[0]
    for id in (ROWS, -1):
        with pytest.raises(InputError, match=f"id {id} has no per-layer embedding; 40 have one"):
            table.rows(torch.tensor([[3, id]]), EVERY)


@linux
def test_rows_of_a_table_of_4_gb_take_their_own_memory_alone(tmp_path: Path) -> None:
    """E2B's table, 262144 x 7680 in bfloat16, as a sparse file."""
    rows, columns, layers = 262144, 7680, 30
    path = tmp_path / "table.bin"
    written = {5: 1.5, 131072: -2.0, rows - 1: 0.25}
    with path.open("wb") as file:
        for row, value in written.items():
            file.seek(row * columns * 2)
            line = torch.full((columns,), value, dtype=torch.bfloat16)
            file.write(line.view(torch.uint8).numpy().data)
        file.truncate(rows * columns * 2)
    blocks = torch.frombuffer(map_file(path), dtype=torch.uint8).view(rows, columns * 2)
    opened = backing(blocks)
    assert opened is not None
    table = FileTable(opened, Packed(blocks, FORMATS["bf16"]), WIDTH, torch.bfloat16)
    before = process_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        ids = torch.randint(0, rows, (1, 500), generator=generator)
        table.prefetch(ids[0].tolist())
        assert table.rows(ids, range(layers)).shape == (1, 500, layers, 256)
    found = table.rows(torch.tensor([list(written)]), (0, 29))
    assert found[0, :, :, 0].tolist() == [[value, value] for value in written.values()]
    assert process_bytes() - before < 100e6
    assert present_bytes(blocks) == 0


# ---- placing -------------------------------------------------------------------------------------


WITH_SOFT = [*IDS, 500, 490]  # past the table: its row 0


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_logits_do_not_depend_on_the_place(
    request: pytest.FixtureRequest, kind: str, where: TablePlacement
) -> None:
    path = request.getfixturevalue(kind)
    plain, decoder = load_checkpoint(path).decoder, load_checkpoint(path).decoder
    assert isinstance(plain, Gemma3n) and isinstance(decoder, Gemma3n)
    place_table(decoder, where)
    assert isinstance(decoder.per_layer_table, FileTable) == (
        where == "disk" and sys.platform == "linux"
    )
    ids = WITH_SOFT if kind == "folder" else IDS  # GGUF files hold the rows of text alone
    decoder.prefetch(ids)
    assert torch.equal(scores(decoder, ids), scores(plain, ids))
    placed, other = (SubmodelViews(model).view(NARROW) for model in (decoder, plain))
    assert isinstance(placed, Gemma3n) and isinstance(other, Gemma3n)
    assert torch.equal(scores(placed, ids), scores(other, ids))


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_copy_in_ram_lets_the_map_go(request: pytest.FixtureRequest, kind: str) -> None:
    decoder = load_checkpoint(request.getfixturevalue(kind)).decoder
    assert isinstance(decoder, Gemma3n)
    done: list[tuple[int, int]] = []
    place_table(decoder, "ram", progress=lambda *counts: done.append(counts))
    nbytes = module_bytes(decoder.embed_tokens_per_layer)
    assert done[-1] == (nbytes, nbytes)
    held = [*decoder.embed_tokens_per_layer.parameters(), *decoder.embed_tokens_per_layer.buffers()]
    assert [tensor.untyped_storage().nbytes() for tensor in held] == [nbytes]
    done.clear()
    place_table(decoder, "ram", progress=lambda *counts: done.append(counts))  # it is there
    assert done == []
    with pytest.raises(InputError, match="are in memory, not mapped from a file"):
        place_table(decoder, "disk")


@linux
def test_a_table_is_copied_in_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is copied of the map is let go on the way."""
    decoder = load_checkpoint(folder).decoder
    assert isinstance(decoder, Gemma3n)
    table = decoder.embed_tokens_per_layer.weight.detach()
    wanted = table.clone()
    monkeypatch.setattr(per_layer_table, "PIECE_BYTES", 1 << 16)
    present: list[int] = []
    place_table(decoder, "ram", progress=lambda *counts: present.append(present_bytes(table)))
    assert len(present) > 5 and max(present[1:]) < table.nbytes - (1 << 16)
    assert present[-1] < 1 << 16
    assert torch.equal(decoder.embed_tokens_per_layer.weight, wanted)


def test_what_cannot_be_placed_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="'tape': not one of disk, ram, device"):
        place_table(tiny_3n(), "tape")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="are in memory, not mapped from a file"):
        place_table(tiny_3n(), "disk")

    def full(*args: object, **kwargs: object) -> Tensor:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty_like", full)
    decoder = load_checkpoint(folder).decoder
    assert isinstance(decoder, Gemma3n)
    with pytest.raises(UnavailableError, match=r"no room for 0.0 GB .* on cpu; leave them on"):
        place_table(decoder, "ram")


def test_a_map_whose_file_is_gone_is_touched_instead(folder: Path, tmp_path: Path) -> None:
    moved = write_3n(tmp_path / "gone", SOFT_3N)
    decoder = load_checkpoint(moved).decoder
    wanted = scores(load_checkpoint(moved), WITH_SOFT)
    assert isinstance(decoder, Gemma3n)
    (moved / "model.safetensors").unlink()
    place_table(decoder, "disk")
    assert isinstance(decoder.per_layer_table, HeldTable)
    assert torch.equal(scores(decoder, WITH_SOFT), wanted)


def test_maps_are_told_from_memory(folder: Path) -> None:
    decoder = load_checkpoint(folder).decoder
    assert is_mapped(decoder.embed_tokens.weight) and not is_mapped(torch.empty(9))


# ---- prefetching ---------------------------------------------------------------------------------


class Recorder:
    """A table that writes down what it is asked, and for what."""

    def __init__(self, table: HeldTable) -> None:
        self.per_layer_table = table
        self.asked: list[list[str | int]] = []

    def rows(self, ids: Tensor, kept: Sequence[int]) -> Tensor:
        self.asked.append(["rows", *ids.reshape(-1).tolist()])
        return self.per_layer_table.rows(ids, kept)

    def prefetch(self, ids: Sequence[int]) -> None:
        self.asked.append(["ahead", *ids])


@pytest.fixture
def recorded() -> tuple[Gemma3n, Recorder]:
    decoder = tiny_3n(SOFT_3N)
    packed = as_blocks(decoder.embed_tokens_per_layer.weight.detach())
    recorder = Recorder(HeldTable(packed, SOFT_3N.hidden_size_per_layer_input, torch.float32))
    decoder.per_layer_table = recorder
    return decoder, recorder


def test_a_prompt_s_next_chunk_is_read_ahead(recorded: tuple[Gemma3n, Recorder]) -> None:
    decoder, recorder = recorded
    step.prefill(decoder, KVCache(SOFT_3N, 64, chunk=3), Tokens([5, 6, 7, 500, 9, 10, 11]), start=0)
    assert recorder.asked == [
        ["ahead", 0, 9, 10],  # 500 lies past the table
        ["rows", 5, 6, 7],
        ["ahead", 11],
        ["rows", 0, 9, 10],
        ["ahead"],
        ["rows", 11],
    ]


def test_a_token_is_read_ahead_as_soon_as_it_is_sampled(
    recorded: tuple[Gemma3n, Recorder], tiny_tokenizer: Tokenizer
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
    decoder = tiny_model(TINY["one-kv-head"])
    assert not hasattr(decoder, "table")
    decoder.prefetch([1, 2, 10**6])
