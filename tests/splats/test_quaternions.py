"""Quaternions: matrices that turn as they do, and products that are one turn after the other."""

import torch
from torch.nn.functional import normalize

from clipgs.splats.quaternions import product, rotation_matrices


def test_rotation_matrices_turn_as_their_quaternions():
    angle = torch.tensor(0.7)
    about_z = torch.stack([(angle / 2).cos(), torch.tensor(0.0), torch.tensor(0.0), (angle / 2).sin()])
    expected = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    torch.testing.assert_close(rotation_matrices(about_z), expected)
    many = rotation_matrices(normalize(torch.randn(5, 10, 4), dim=-1))
    assert many.shape == (5, 10, 3, 3)
    torch.testing.assert_close(many @ many.mT, torch.eye(3).expand(5, 10, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(many), torch.ones(5, 10))
    assert torch.equal(rotation_matrices(torch.zeros(4)), torch.eye(3))


def test_a_product_turns_by_the_second_and_then_by_the_first():
    a, b = (normalize(torch.randn(20, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    together = rotation_matrices(product(a, b))
    torch.testing.assert_close(together, rotation_matrices(a) @ rotation_matrices(b))
    torch.testing.assert_close(product(a[0], b)[3], product(a[0], b[3]))
