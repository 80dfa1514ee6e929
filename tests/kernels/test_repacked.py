"""Panels: the same products as rows give, from interleaved copies in memory of their own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gemelo.errors import InputError
from gemelo.kernels import cpu, native, reference
from gemelo.kernels import repacked as panels_module
from gemelo.kernels.quants import FORMATS, Bytes, Floats, Format
from gemelo.kernels.repacked import Panels, Unmoved, can_interleave, large_pages
from tests.kernels.matrices import (
    FEW,
    FLOATS,
    assert_close,
    half_bytes,
    random_input,
    random_weight,
)
from tests.native import needs_native

pytestmark = needs_native
BLOCKS = sorted(cpu.FORMATS - set(FLOATS))


@pytest.fixture(params=BLOCKS)
def blocks(request: pytest.FixtureRequest) -> Format:
    return FORMATS[request.param]


def matrix_rows(panels: Panels | Unmoved, name: str) -> int:
    """Of a whole matrix."""
    return (panels._places if isinstance(panels, Panels) else panels._panels)[name].rows


def product(
    x: Floats,
    panels: Panels | Unmoved,
    rows: int | None = None,
    columns: int | None = None,
    index: NDArray[np.int64] | None = None,
    name: str = "w",
) -> Floats:
    """x (T, C) float32 times a matrix that was moved, or its leading part, or rows at an index."""
    matrix = panels.matrix(name, rows, columns, index)
    whole = matrix_rows(panels, name) if rows is None else rows
    out = np.empty((len(x), whole if index is None else len(index)), np.float32)
    native.extension.product(
        cpu.address_of(x), x.shape[1], False, len(x), matrix,
        cpu.address_of(out), out.shape[1], False,
    )  # fmt: skip
    return out


def gathered(ids: NDArray[np.int64], panels: Panels | Unmoved, columns: int) -> Floats:
    out = np.empty((len(ids), columns), np.float32)
    native.extension.gather(
        cpu.address_of(ids), len(ids), panels.matrix("w"), cpu.address_of(out), columns, False
    )
    return out


def columns_of(blocks: Format, number: int) -> int:
    return number * max(blocks.block, 64)


def test_products_agree_with_the_reference(isa: str, blocks: Format) -> None:
    for tokens, rows, number in [(1, 1, 1), (1, 131, 4), (2, 7, 3), (5, 33, 5), (16, 19, 11),
                                 (17, 1, 1), (18, 33, 5), (70, 150, 9)]:  # fmt: skip
        weight = random_weight(blocks, rows, columns_of(blocks, number), seed=rows)
        x = random_input(tokens, weight.columns)
        assert_close(product(x, Panels({"w": weight})), x, weight, isa)


def test_a_token_alone_and_among_sixteen_gives_the_same_bits(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 37, columns_of(blocks, 9))
    panels, x = Panels({"w": weight}), random_input(FEW, weight.columns)
    alone = np.concatenate([product(x[i : i + 1], panels) for i in range(FEW)])
    for count in range(2, FEW + 1):
        assert np.array_equal(product(x[:count], panels), alone[:count])


def test_any_number_of_threads_gives_the_same_bits(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 100, columns_of(blocks, 3))
    panels, x = Panels({"w": weight}), random_input(40, weight.columns)
    before = native.extension.threads()
    strips = Panels({}, strips={"w": weight})
    found = []
    for threads in (1, 2, 3):
        native.set_threads(threads)
        found.append([product(x[:tokens], panels) for tokens in (1, 7, 40)])
        found[-1] += [product(x[:tokens], strips) for tokens in (1, 7, 40)]
    native.set_threads(before)
    for other in found[1:]:
        assert all(map(np.array_equal, other, found[0]))


def test_gathered_rows_are_exact(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 35, columns_of(blocks, 3))
    ids = np.array([34, 0, 16, 15, 7])
    for panels in (Panels({"w": weight}), Panels({}, strips={"w": weight}), Unmoved({"w": weight})):
        assert np.array_equal(
            gathered(ids, panels, weight.columns), reference.embedding(ids, weight)
        )


def test_what_has_not_moved_gives_the_bits_of_panels(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 53, columns_of(blocks, 9))
    panels, unmoved = Panels({"w": weight}), Unmoved({"w": weight})
    parts = ((None, None), (40, columns_of(blocks, 8)), (17, columns_of(blocks, 1)))
    for rows, columns in parts:
        x = random_input(70, columns or weight.columns)
        for tokens in (1, 2, 4, 5, 8, 15, 16, 17, 70):
            found = product(x[:tokens], unmoved, rows, columns)
            assert np.array_equal(found, product(x[:tokens], panels, rows, columns))


def sparse_input(tokens: int, columns: int) -> Floats:
    """Of which a few columns are not zero, other ones in every token."""
    x = random_input(tokens, columns)
    x[np.random.default_rng(tokens).random(x.shape) >= 0.05] = 0
    return x


def test_strips_give_the_bits_of_panels(isa: str, blocks: Format) -> None:
    """And what no token meets is not read: NaN there does not show."""
    weight = random_weight(blocks, 150, columns_of(blocks, 6))
    panels, strips = Panels({"w": weight}), Panels({}, strips={"w": weight})
    for rows, columns in ((None, None), (150, columns_of(blocks, 5)), (21, None)):
        part = weight.prefix(rows, columns)
        for tokens in (1, 2, 7, 16):
            x = sparse_input(tokens, part.columns)
            want = product(x, panels, rows, columns)
            assert np.array_equal(product(x, strips, rows, columns), want)
        for x in (random_input(3, part.columns), sparse_input(40, part.columns)):
            assert_close(product(x, strips, rows, columns), x, part, isa)
    assert not product(np.zeros((1, weight.columns), np.float32), strips).any()
    weight.blocks[:, :2] = half_bytes(float("nan"))
    strips = Panels({}, strips={"w": weight})
    x = random_input(1, weight.columns)
    assert np.isnan(product(x, strips)).all() or blocks.name == "q6_k"
    x[:, : max(blocks.block, 64)] = 0
    assert np.isfinite(product(x, strips)).all()


def test_a_broken_activation_shows_in_every_row_of_strips(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 40, columns_of(blocks, 3))
    x = np.zeros((2, weight.columns), np.float32)
    x[1, 70] = float("nan")
    found = np.isnan(product(x, Panels({}, strips={"w": weight})))
    assert found[1].all() and not found[0].any()


def test_a_leading_part_is_a_view(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 70, columns_of(blocks, 4))
    panels = Panels({"w": weight})
    for rows, number in ((70, 3), (40, 4), (17, 1)):
        part = weight.prefix(rows, columns_of(blocks, number))
        assert panels.has("w", part.columns)
        for tokens in (1, 6, 20):
            x = random_input(tokens, part.columns)
            assert_close(product(x, panels, rows, part.columns), x, part, isa)


def test_a_broken_scale_shows_in_its_row_alone(isa: str, blocks: Format) -> None:
    weight = random_weight(blocks, 20, columns_of(blocks, 2))
    at = 208 if blocks.name == "q6_k" else 0
    weight.blocks[18, at : at + 2] = half_bytes(float("nan"))
    panels = Panels({"w": weight})
    for tokens in (1, 3, 20):
        broken = np.isnan(product(random_input(tokens, weight.columns), panels))
        assert broken[:, 18].all() and broken.sum() == tokens


def test_rows_move_as_they_are(isa: str, format: Format) -> None:
    """And single ones can be named, which panels have no way to."""
    weight = random_weight(format, 21, 256)
    whole = weight.prefix(21, 128 if format.block <= 128 else 256)  # its rows lie apart
    panels = Panels({}, {"w": whole})
    index = np.array([20, 3])
    for tokens in (1, 4):
        x = random_input(tokens, whole.columns)
        assert np.array_equal(product(x, panels), cpu.linear(x, whole))
        assert np.array_equal(product(x, panels, index=index), cpu.linear(x, whole, index))


def test_several_matrices_share_one_room() -> None:
    weights = {name: random_weight(FORMATS[name], 35, 512, i) for i, name in enumerate(BLOCKS)}
    interleaved, in_rows = BLOCKS[:3], BLOCKS[3:]
    read: list[int] = []
    panels = Panels(
        {name: weights[name] for name in interleaved},
        {name: weights[name] for name in in_rows},
        moved=lambda blocks: read.append(cpu.address_of(blocks)),
    )
    assert read == [weight.address for weight in weights.values()]
    x = random_input(2, 512)
    for name, weight in weights.items():
        assert_close(product(x, panels, name=name), x, weight, native.isa())
    packed_bytes = sum(weight.nbytes for weight in weights.values())
    assert panels.nbytes < 1.6 * packed_bytes  # 35 rows fill 3 panels
    assert not panels.has("w")


def test_what_has_no_panels() -> None:
    assert not can_interleave(random_weight(FORMATS["f16"], 16, 64))
    assert not can_interleave(random_weight(FORMATS["q4_0"], 16, 96))
    weight = random_weight(FORMATS["q4_0"], 16, 128)
    for panels in (Panels({"w": weight}), Panels({}, strips={"w": weight})):
        assert panels.has("w", 64) and not panels.has("w", 96)
        for rows, columns in ((16, 96), (17, 64), (16, 192), (-1, 64), (16, -64)):
            with pytest.raises(InputError, match="16 x 128"):
                panels.matrix("w", rows, columns)
    in_rows = Panels({}, {"w": weight})
    assert in_rows.has("w", 96)
    in_rows.matrix("w", 16, 96)
    with pytest.raises(InputError, match="100 columns"):
        in_rows.matrix("w", 16, 100)


def test_large_matrices_move_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels_module, "_PIECE_BYTES", 20000)
    weights = {name: random_weight(FORMATS[name], 150, 512) for name in ("q4_0", "q5_0", "bf16")}
    plain = {"bf16": weights["bf16"]}
    read: list[Bytes] = []
    panels = Panels(
        {name: weight for name, weight in weights.items() if name not in plain},
        plain,
        moved=read.append,
    )
    assert sum(map(len, read)) == 450 and max(map(len, read)) == 64
    x = random_input(3, 512)
    for name, weight in weights.items():
        assert_close(product(x, panels, name=name), x, weight, native.isa())


def test_room_is_empty_and_writable() -> None:
    assert large_pages(0).shape == (0,)
    room = large_pages(5000)
    room[4999] = 7
    assert int(room.sum()) == 7
