"""Moving the dead: the picture stays, and a batch is moved as one object is."""

import numpy as np
import torch

from clipgs.splats.fitting.relocate import relocate, relocate_batch
from clipgs.splats.rasterizer import kernels
from tests.splats.balls import picture


def dead_and_living(seed: int):
    rng = np.random.default_rng(seed)
    table = np.zeros((kernels.PARAMETERS, 60), np.float32)
    table[:2] = rng.uniform(-0.5, 0.5, (2, 60))
    table[kernels.QUATS] = 1
    table[kernels.SCALES : kernels.OPACITIES] = np.log(rng.uniform(0.05, 0.1, (3, 60)))
    table[kernels.OPACITIES] = 0.5
    table[kernels.COLORS :] = rng.normal(size=(3, 60))
    table[kernels.OPACITIES, 40:] = -9.0
    return table


def test_the_dead_are_moved_and_the_picture_stays():
    table = dead_and_living(3)
    moments = np.ones((2, *table.shape), np.float32)
    before, untouched = picture(table), table.copy()

    assert relocate(table, moments, 0.005, np.random.default_rng(0)) == 20
    opacities = 1 / (1 + np.exp(-table[kernels.OPACITIES]))
    assert opacities.min() > 0.005
    moved = np.flatnonzero((table != untouched).any(axis=0))
    assert set(range(40, 60)) <= set(moved)
    assert not moments[:, :, moved].any()
    assert moments[:, :, np.setdiff1d(np.arange(60), moved)].all()
    assert (picture(table) - before).abs().max() < 0.1
    assert (picture(table) - before).abs().mean() < 0.01
    assert relocate(table, moments, 0.005, np.random.default_rng(0)) == 0


def test_a_batchs_dead_are_moved_and_the_pictures_stay():
    tables = np.stack([dead_and_living(seed) for seed in range(3)])
    tables[2, kernels.OPACITIES] = -9.0  # all of one object are dead: nowhere to move them
    raw, moments = torch.from_numpy(tables.copy()), torch.ones(3, 2, *tables.shape[1:])
    relocate_batch(raw, moments, 0.005, torch.rand(3, 60, generator=torch.Generator().manual_seed(0)))
    assert np.array_equal(raw[2].numpy(), tables[2])
    assert moments[2].all()
    for b in range(2):
        moved = (raw[b].numpy() != tables[b]).any(axis=0)
        assert moved[40:].all()
        assert raw[b, kernels.OPACITIES].sigmoid().min() > 0.005
        assert not moments[b, :, :, moved].any()
        assert moments[b, :, :, ~moved].all()
        change = (picture(raw[b].numpy()) - picture(tables[b])).abs()
        assert change.max() < 0.1
        assert change.mean() < 0.01


def test_a_batch_moves_as_one_object_does():
    # one living Gaussian: both ways can only choose it, and give it 59 copies
    table = dead_and_living(0)
    table[kernels.OPACITIES, :] = -9.0
    table[kernels.OPACITIES, 7] = 1.0
    raw, moments = torch.from_numpy(table.copy())[None], torch.ones(1, 2, *table.shape)
    relocate_batch(raw, moments, 0.005, torch.rand(1, 60, generator=torch.Generator().manual_seed(0)))
    expected = table.copy()
    relocate(expected, np.ones((2, *table.shape), np.float32), 0.005, np.random.default_rng(0))
    np.testing.assert_allclose(raw[0], expected, rtol=1e-4, atol=1e-4)
