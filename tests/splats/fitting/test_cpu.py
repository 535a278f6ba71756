"""The CPU engine's steps."""

import numpy as np

from clipgs.splats.fitting import prepare
from clipgs.splats.fitting.cpu import CpuFit
from clipgs.splats.rasterizer.cpu import camera_row
from tests.splats.balls import SETTINGS, balls


def test_a_step_goes_down_the_loss_and_tells_it():
    points, views = balls()
    settings = SETTINGS.model_copy(update={"random_ground": False})
    cameras = list(map(camera_row, views.viewmats[0].numpy(), views.Ks[0].numpy()))
    one = CpuFit(prepare(points[0], len(cameras), settings, seed=0), views.rgba[0].numpy(), cameras, settings)
    losses = [one.step(number) for number in range(settings.steps)]
    assert np.mean(losses[-8:]) < 0.5 * np.mean(losses[:8])
