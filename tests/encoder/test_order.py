import itertools

import numpy as np
import pytest
import torch

from clipgs.encoder.order import ORDERS, encode


def slow_z(cell, depth):
    """Bit by bit, the bits of x highest."""
    code = 0
    for bit in range(depth):
        for axis, value in enumerate(cell):
            code |= ((value >> bit) & 1) << (3 * bit + 2 - axis)
    return code


def all_cells(depth):
    return torch.tensor(list(itertools.product(range(2**depth), repeat=3)))


def hold_to_point_transformer_v3(file, order):
    stored = np.load(file)
    codes = encode(torch.from_numpy(stored["grid"]), order, 10)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, torch.from_numpy(stored[order.replace("-", "_")]))


@pytest.mark.parametrize("order", ["z", "z-trans", "hilbert", "hilbert-trans"])
def test_codes_are_those_of_point_transformer_v3(vectors, order):
    hold_to_point_transformer_v3(vectors / "serialization_depth10.npz", order)


@pytest.mark.parametrize("order", ["z", "z-trans", "hilbert", "hilbert-trans"])
def test_more_codes_are_those_of_point_transformer_v3(shared, order):
    hold_to_point_transformer_v3(shared / "vectors" / "serialization_depth10.npz", order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_every_cell_has_a_code_of_its_own(order, depth):
    assert encode(all_cells(depth), order, depth).sort().values.tolist() == list(range(8**depth))


@pytest.mark.parametrize("depth", [1, 3, 7, 21])
def test_z_is_the_bits_taken_in_turn(depth):
    cells = torch.randint(2**depth, (50, 3), generator=torch.Generator().manual_seed(depth))
    assert encode(cells, "z", depth).tolist() == [slow_z(cell, depth) for cell in cells.tolist()]


@pytest.mark.parametrize("order", ["hilbert", "hilbert-trans"])
def test_neighbours_on_the_hilbert_curve_share_a_face(order):
    cells = all_cells(4)
    path = cells[encode(cells, order, 4).argsort()]
    assert ((path[1:] - path[:-1]).abs().sum(1) == 1).all()


def test_xyz_compares_x_then_y_then_z():
    cells = torch.randint(1024, (500, 3), generator=torch.Generator().manual_seed(0))
    expected = sorted(range(500), key=lambda row: cells[row].tolist())
    assert encode(cells, "xyz", 10).argsort(stable=True).tolist() == expected


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@pytest.mark.parametrize("order", ORDERS)
def test_leading_axes_are_kept(batch, order):
    cells = torch.randint(8, (*batch, 5, 3), generator=torch.Generator().manual_seed(0))
    codes = encode(cells, order, 3)
    assert codes.shape == (*batch, 5)
    assert torch.equal(codes.flatten(), encode(cells.reshape(-1, 3), order, 3))


@pytest.mark.parametrize(
    ("grid", "order", "depth", "words"),
    [
        (
            torch.zeros(2, 3, dtype=torch.int64),
            "peano",
            3,
            "one of xyz, z, z-trans, hilbert, hilbert-trans, not 'peano'",
        ),
        (torch.zeros(2, 3, dtype=torch.int64), "z", 22, "depth"),
        (torch.zeros(2, 3), "z", 3, "int64"),
        (torch.zeros(2, 2, dtype=torch.int64), "z", 3, "int64"),
    ],
)
def test_wrong_arguments_are_named(grid, order, depth, words):
    with pytest.raises(ValueError, match=words):
        encode(grid, order, depth)
