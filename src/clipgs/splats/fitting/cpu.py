"""A fit's steps on the CPU: one object at a time through compiled kernels, on one thread."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from clipgs.config import Fit
from clipgs.splats.fitting.relocate import relocate
from clipgs.splats.fitting.schedule import BETA_1, BETA_2, EPSILON
from clipgs.splats.fitting.start import Prepared
from clipgs.splats.gaussians import Views
from clipgs.splats.losses import FrameLoss
from clipgs.splats.rasterizer import kernels
from clipgs.splats.rasterizer.cpu import Rasterizer, camera_row
from clipgs.splats.rasterizer.simd import LANES, exp, load, root, store

HIDDEN_LOGIT = -100.0  # of the padding: never drawn


def _fit(
    prepared: Sequence[Prepared],  # B of them
    views: Views,  # [B, V, ...]
    settings: Fit,
    done: Callable[[], None] | None = None,  # called after each step
) -> Tensor:  # [B, 14, N]
    """The raw parameters after all steps; see `clipgs.splats.fitting.fit`."""
    fitted = []
    for one, rgba, viewmats, Ks in zip(prepared, views.rgba, views.viewmats, views.Ks, strict=True):
        cameras = [camera_row(viewmat, K) for viewmat, K in zip(viewmats.numpy(), Ks.numpy(), strict=True)]
        steps = CpuFit(one, np.ascontiguousarray(rgba.numpy()), cameras, settings)
        for number in range(settings.steps):
            steps.step(number)
            if done is not None:
                done()
        fitted.append(torch.from_numpy(steps.raw[:, : steps.gaussians].copy()))
    return torch.stack(fitted)


class CpuFit:
    """One object's fit on the CPU, step by step, in buffers made once."""

    def __init__(
        self,
        prepared: Prepared,
        rgba: np.ndarray,  # [V, H, W, 4] uint8
        cameras: Sequence[np.ndarray],  # V of [16]
        settings: Fit,
    ):
        raw, self.schedule = prepared
        self.rgba, self.cameras = rgba, cameras
        height, width = rgba.shape[1:3]
        self.gaussians = raw.shape[1]
        self.rasterizer = Rasterizer(self.gaussians, width, height)
        self.raw = np.zeros((kernels.PARAMETERS, self.rasterizer.size), np.float32)  # the first N columns are real
        self.raw[kernels.OPACITIES] = HIDDEN_LOGIT
        self.raw[:, : self.gaussians] = raw
        self.moments = np.zeros((2, *self.raw.shape), np.float32)
        self.params = np.zeros(self.raw.size, np.float32)
        self.loss = FrameLoss(width, height, settings.ssim_weight, settings.alpha_weight)
        self.relocate_below = settings.relocate_below
        _activate(self.raw.reshape(-1), self.params)

    def step(self, number: int) -> float:
        """One view, one step of Adam; returns the loss before it."""
        plan = self.schedule
        if number in plan.relocations:
            real = slice(self.gaussians)
            relocate(self.raw[:, real], self.moments[..., real], self.relocate_below, plan.relocation_rng)
            _activate(self.raw.reshape(-1), self.params)
        view = plan.views[number]
        self.rasterizer.project(self.params, self.cameras[view])
        frame = self.rasterizer.draw()
        loss = self.loss(frame, self.rgba[view], plan.grounds[number], self.rasterizer.pixel_gradients)
        gradients = self.rasterizer.backward(self.params, self.cameras[view])
        _adam(
            self.raw.reshape(-1),
            self.params,
            gradients,
            self.moments.reshape(-1),
            plan.rates[number],
            np.float32(1 / (1 - BETA_1 ** (number + 1))),
            np.float32(1 / (1 - BETA_2 ** (number + 1))),
        )
        _activate(self.raw.reshape(-1), self.params)
        return loss


_compiled = njit(cache=True, error_model="numpy", nogil=True)


@_compiled
def _activate(
    raw,  # [14 * S]: means, quaternions, log-scales, opacity logits, colour logits
    params,  # out [14 * S]: means, quaternions, scales, opacities, colours
):
    size = raw.size // kernels.PARAMETERS
    params[: kernels.SCALES * size] = raw[: kernels.SCALES * size]
    for i in range(kernels.SCALES * size, kernels.OPACITIES * size, LANES):
        store(params, i, exp(load(raw, i)))
    for i in range(kernels.OPACITIES * size, kernels.PARAMETERS * size, LANES):
        store(params, i, 1.0 / (1.0 + exp(0.0 - load(raw, i))))


@_compiled
def _adam(
    raw,  # [14 * S], changed in place
    params,  # [14 * S]
    gradients,  # [14 * S], of params
    moments,  # [2 * 14 * S], changed in place
    rates,  # [14]
    first_correction,
    second_correction,
):
    """Adam (Kingma and Ba 2015) on the raw parameters, through the activations."""
    size = raw.size // kernels.PARAMETERS
    for row in range(kernels.PARAMETERS):
        rate = rates[row] * first_correction
        for i in range(row * size, (row + 1) * size, LANES):
            g = load(gradients, i)
            if row >= kernels.SCALES:
                value = load(params, i)
                g = g * value
                if row >= kernels.OPACITIES:
                    g = g * (1.0 - value)
            first, second = load(moments, i), load(moments, raw.size + i)
            first = BETA_1 * first + (1 - BETA_1) * g
            second = BETA_2 * second + (1 - BETA_2) * (g * g)
            store(moments, i, first)
            store(moments, raw.size + i, second)
            store(raw, i, load(raw, i) - rate * first / (root(second * second_correction) + EPSILON))
