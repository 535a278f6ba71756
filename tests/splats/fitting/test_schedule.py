"""The schedule: which view, which rates, when Gaussians are moved."""

import numpy as np
import pytest

from clipgs.splats.fitting.schedule import schedule
from tests.splats.balls import RATES, SETTINGS


def test_rates_follow_a_cosine_that_ends_at_five_percent():
    settings = SETTINGS.model_copy(update={"steps": 1000, "schedule": "cosine"})
    rates = schedule(settings, 8, seed=0).rates
    means, quats, scales, opacities, colors = (settings.lr_factor * rate for rate in RATES.values())
    first = [means] * 3 + [quats] * 4 + [scales] * 3 + [opacities] + [colors] * 3
    np.testing.assert_allclose(rates[0], first, rtol=1e-6)
    np.testing.assert_allclose(rates[500], 0.525 * rates[0], rtol=1e-4)  # half way down from 1 to 0.05
    np.testing.assert_allclose(rates[-1], 0.05 * rates[0], rtol=1e-3)
    constant = schedule(settings.model_copy(update={"schedule": "constant"}), 8, seed=0).rates
    assert (constant == constant[0]).all()


def test_each_view_is_taken_once_an_epoch():
    plan = schedule(SETTINGS, 8, seed=0)
    assert len(plan.views) == 60
    for first in range(0, 56, 8):
        assert sorted(plan.views[first : first + 8]) == list(range(8))
    assert not np.array_equal(plan.views[:8], plan.views[8:16])


def test_gaussians_are_moved_eight_times_in_the_middle():
    settings = SETTINGS.model_copy(update={"steps": 1000})
    assert sorted(schedule(settings, 8, seed=0).relocations) == [100, 200, 300, 400, 500, 600, 700, 800]
    assert 0 not in schedule(SETTINGS.model_copy(update={"steps": 3}), 8, seed=0).relocations


@pytest.mark.parametrize("random_ground", [True, False])
def test_grounds(random_ground):
    settings = SETTINGS.model_copy(update={"random_ground": random_ground})
    grounds = schedule(settings, 8, seed=0).grounds
    assert grounds.shape == (60, 3)
    assert (grounds.min() < 0.5) == random_ground
    assert grounds.max() <= 1
