"""Panels: the same products as rows give, from interleaved copies in memory of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gemelo.kernels import cpu, native, reference
from gemelo.kernels import repacked as panels_module
from gemelo.kernels.quants import FORMATS, Format, Packed
from gemelo.kernels.repacked import Panels, can_interleave, large_pages
from tests.kernels.matrices import FEW, FLOATS, assert_close, random_input, random_weight
from tests.native import needs_native

pytestmark = needs_native
BLOCKS = sorted(cpu.FORMATS - set(FLOATS))


@pytest.fixture(params=BLOCKS)
def blocks(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


def product(x: Tensor, panels: Panels, weight: Packed, index: Tensor | None = None) -> Tensor:
    """x (T, C) float32 times a matrix that was moved."""
    rows = len(weight.blocks) if index is None else len(index)
    out = torch.empty(len(x), rows)
    native.extension.product(
        x.data_ptr(), x.shape[1], False, len(x), panels.matrix(weight, index),
        out.data_ptr(), rows, False,
    )  # fmt: skip
    return out


def gathered(ids: Tensor, panels: Panels, weight: Packed) -> Tensor:
    out = torch.empty(len(ids), weight.shape[1])
    native.extension.gather(
        ids.data_ptr(), len(ids), panels.matrix(weight), out.data_ptr(), weight.shape[1], False
    )
    return out


def columns_of(blocks: Format, number: int) -> int:
    return number * max(blocks.block, 64)


def test_products_agree_with_the_reference(isa: str, blocks: Format) -> None:
    for tokens, rows, number in [(1, 1, 1), (1, 131, 4), (2, 7, 3), (5, 33, 5), (16, 19, 11),
                                 (17, 1, 1), (18, 33, 5), (70, 150, 9)]:  # fmt: skip
        weight = random_weight(blocks, rows, columns_of(blocks, number), seed=rows)
        x = random_input(tokens, weight.shape[1])
        assert_close(product(x, Panels([weight]), weight), x, weight, isa)


def test_a_token_alone_and_among_sixteen_gives_the_same_bits(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 37, columns_of(blocks, 9))
    panels, x = Panels([weight]), random_input(FEW, weight.shape[1])
    alone = torch.cat([product(x[i : i + 1], panels, weight) for i in range(FEW)])
    for count in range(2, FEW + 1):
        assert torch.equal(product(x[:count], panels, weight), alone[:count])


def test_any_number_of_threads_gives_the_same_bits(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 100, columns_of(blocks, 3))
    panels, x = Panels([weight]), random_input(40, weight.shape[1])
    before = native.extension.threads()
    strips = Panels([], strips=[weight])
    found = []
    for threads in (1, 2, 3):
        native.set_threads(threads)
        found.append([product(x[:tokens], panels, weight) for tokens in (1, 7, 40)])
        found[-1] += [product(x[:tokens], strips, weight) for tokens in (1, 7, 40)]
    native.set_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_gathered_rows_are_exact(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 35, columns_of(blocks, 3))
    ids = torch.tensor([34, 0, 16, 15, 7])
    for panels in (Panels([weight]), Panels([], strips=[weight])):
        assert torch.equal(gathered(ids, panels, weight), reference.embedding(ids, weight))


def sparse_input(tokens: int, columns: int) -> Tensor:
    """Of which a few columns are not zero, other ones in every token."""
    x = random_input(tokens, columns)
    alive = torch.rand(x.shape, generator=torch.Generator().manual_seed(tokens)) < 0.05
    return torch.where(alive, x, 0.0)


def test_strips_give_the_bits_of_panels(isa: str, blocks: Format) -> None:
    """And what no token meets is not read: NaN there does not show."""
    weight = random_weight(blocks, 150, columns_of(blocks, 6))
    panels, strips = Panels([weight]), Panels([], strips=[weight])
    for part in (weight, weight.prefix(150, columns_of(blocks, 5)), weight.prefix(21, None)):
        for tokens in (1, 2, 7, 16):
            x = sparse_input(tokens, part.shape[1])
            assert torch.equal(product(x, strips, part), product(x, panels, part))
        for x in (random_input(3, part.shape[1]), sparse_input(40, part.shape[1])):
            assert_close(product(x, strips, part), x, part, isa)
    assert not product(torch.zeros(1, weight.shape[1]), strips, weight).any()
    weight.blocks[:, :2] = torch.tensor([float("nan")]).half().view(torch.uint8)
    strips = Panels([], strips=[weight])
    x = random_input(1, weight.shape[1])
    assert product(x, strips, weight).isnan().all() or blocks.name == "q6_k"
    x[:, : max(blocks.block, 64)] = 0
    assert product(x, strips, weight).isfinite().all()


def test_a_broken_activation_shows_in_every_row_of_strips(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 40, columns_of(blocks, 3))
    x = torch.zeros(2, weight.shape[1])
    x[1, 70] = float("nan")
    found = product(x, Panels([], strips=[weight]), weight).isnan()
    assert found[1].all() and not found[0].any()


def test_a_leading_part_is_a_view(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 70, columns_of(blocks, 4))
    panels = Panels([weight])
    for rows, number in ((70, 3), (40, 4), (17, 1)):
        part = weight.prefix(rows, columns_of(blocks, number))
        assert panels.has(part)
        for tokens in (1, 6, 20):
            x = random_input(tokens, part.shape[1])
            assert_close(product(x, panels, part), x, part, isa)


def test_a_broken_scale_shows_in_its_row_alone(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 20, columns_of(blocks, 2))
    at = 208 if blocks.name == "q6_k" else 0
    weight.blocks[18, at : at + 2] = torch.tensor([float("nan")]).half().view(torch.uint8)
    panels = Panels([weight])
    for tokens in (1, 3, 20):
        broken = product(random_input(tokens, weight.shape[1]), panels, weight).isnan()
        assert broken[:, 18].all() and broken.sum() == tokens


def test_rows_move_as_they_are(isa: str, format: Format) -> None:
    """And single ones can be named, which panels have no way to."""
    weight = random_weight(format, 21, 256)
    whole = weight.prefix(21, 128 if format.block <= 128 else 256)  # its rows lie apart
    panels = Panels([], [whole])
    index = torch.tensor([20, 3])
    for tokens in (1, 4):
        x = random_input(tokens, whole.shape[1])
        assert torch.equal(product(x, panels, whole), cpu.linear(x, whole))
        assert torch.equal(product(x, panels, whole, index), cpu.linear(x, whole, index))


def test_several_matrices_share_one_room() -> None:
    weights = [random_weight(FORMATS[name], 35, 512, seed) for seed, name in enumerate(BLOCKS)]
    read: list[int] = []
    panels = Panels(weights[:3], weights[3:], moved=lambda blocks: read.append(blocks.data_ptr()))
    assert read == [weight.blocks.data_ptr() for weight in weights]
    x = random_input(2, 512)
    for weight in weights:
        assert_close(product(x, panels, weight), x, weight, native.isa())
    assert panels.nbytes < 1.6 * sum(weight.nbytes for weight in weights)  # 35 rows fill 3 panels
    assert not panels.has(random_weight(FORMATS["q4_0"], 16, 64))


def test_what_has_no_panels() -> None:
    assert not can_interleave(random_weight(FORMATS["f16"], 16, 64))
    assert not can_interleave(random_weight(FORMATS["q4_0"], 16, 96))
    weight = random_weight(FORMATS["q4_0"], 16, 128)
    assert not Panels([weight]).has(weight.prefix(16, 96))


def test_large_matrices_move_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels_module, "_PIECE_BYTES", 20000)
    weights = [random_weight(FORMATS[name], 150, 512) for name in ("q4_0", "q5_0", "bf16")]
    read: list[int] = []
    panels = Panels(weights[:2], weights[2:], moved=lambda blocks: read.append(len(blocks)))
    assert sum(read) == 450 and max(read) == 64
    x = random_input(3, 512)
    for weight in weights:
        assert_close(product(x, panels, weight), x, weight, native.isa())


def test_room_is_empty_and_writable() -> None:
    assert large_pages(0).shape == (0,)
    room = large_pages(5000)
    room[4999] = 7
    assert int(room.sum()) == 7
