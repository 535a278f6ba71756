"""The rasteriser's CPU engine: buffers around the kernels, and their place in torch's autograd."""

import numpy as np
import torch
from torch import Tensor

from clipgs.splats.rasterizer import kernels
from clipgs.splats.rasterizer.simd import LANES


class Rasterizer:
    """Draws a set of Gaussians from one camera at a time, in buffers made once.

    `size` S is N rounded up to whole vectors, at least one. `frame` [H, 4, stride] is the image without a background:
    transmittance (negative where a pixel finished early; its magnitude counts), then red, green, blue.
    `pixel_gradients` [H, 6, stride] takes dL/d(red, green, blue, alpha) in planes 2 to 5; it must stay 0 right of the
    last column.
    """

    def __init__(self, gaussians: int, width: int, height: int, antialiased: bool = False):
        self.width, self.height, self.antialiased = width, height, antialiased
        self.size = size = max(1, -(-gaussians // LANES)) * LANES
        # A vector may begin in the last column. The number of vectors is odd, because rows a power of two apart
        # would fall on the same cache sets.
        self.stride = (-(-(width + LANES - 1) // LANES) | 1) * LANES
        self.frame = np.zeros((height, kernels.DRAWN, self.stride), np.float32)
        self.pixel_gradients = np.zeros((height, kernels.DIFFERENTIATED, self.stride), np.float32)
        self.gradients = np.zeros(kernels.PARAMETERS * size, np.float32)
        self._records = np.zeros(size * kernels.RECORD, np.float32)
        self._drawn = np.zeros(size, np.float32)
        self._depths = np.zeros((2, size), np.float32)
        self._ids = np.zeros((2, size), np.int32)
        self._moments = np.zeros(kernels.MOMENTS * size, np.float32)
        self._order, self._count = self._ids[0], 0

    def project(
        self,
        params: np.ndarray,  # [14 * S]: means, quats, scales, opacities, colours
        camera: np.ndarray,  # [16], from `camera_row`
    ) -> None:
        """Project the Gaussians and sort them by depth, for `draw` and `backward`."""
        out = (self._records, self._drawn, self._depths[0], self._ids[0])
        self._count = kernels.project(params, camera, self.width, self.height, self.antialiased, *out)
        bits = self._depths.view(np.uint32)
        self._order = kernels.sort_by_depth(bits[0], self._ids[0], self._count, bits[1], self._ids[1])

    def draw(self) -> np.ndarray:  # [H, 4, stride]
        """Draw into `frame`."""
        frame = self.frame.reshape(-1)
        kernels.draw(self._order, self._count, self._records, frame, self.stride, self.width, self.height)
        return self.frame

    def backward(
        self,
        params: np.ndarray,  # [14 * S]
        camera: np.ndarray,  # [16]
    ) -> np.ndarray:  # [14 * S]
        """The gradient of the parameters last projected, from `frame` and `pixel_gradients`; overwrites the latter."""
        pixels = self.pixel_gradients.reshape(-1)
        kernels.begin_gradients(self.frame.reshape(-1), pixels, self.stride, self.height)
        size = (self.width, self.height)
        kernels.differentiate(self._order, self._count, self._records, pixels, self.stride, *size, self._moments)
        kernels.project_gradients(params, camera, *size, self.antialiased, self._drawn, self._moments, self.gradients)
        return self.gradients


def camera_row(
    viewmat: np.ndarray,  # [4, 4]
    K: np.ndarray,  # [3, 3]
) -> np.ndarray:  # [16]
    """A camera as the kernels read it: rows 0 to 2 of the view matrix, fx, fy, cx, cy."""
    return np.concatenate([viewmat[:3].reshape(-1), [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]]).astype(np.float32)


class _Rasterize(torch.autograd.Function):
    """The CPU engine of `clipgs.splats.rasterizer`: all tensors float32 on the CPU, with one leading axis B."""

    @staticmethod
    def forward(
        ctx,
        means: Tensor,  # [B, N, 3]
        quats_wxyz: Tensor,  # [B, N, 4]
        scales: Tensor,  # [B, N, 3]
        opacities: Tensor,  # [B, N]
        colors: Tensor,  # [B, N, 3]
        backgrounds: Tensor,  # [B, V, 3]
        viewmats: Tensor,  # [B, V, 4, 4]
        Ks: Tensor,  # [B, V, 3, 3]
        width: int,
        height: int,
        antialiased: bool,
    ) -> tuple[Tensor, Tensor]:
        objects, views = viewmats.shape[:2]
        rasterizer = Rasterizer(means.shape[1], width, height, antialiased)
        parameters = torch.cat([means, quats_wxyz, scales, opacities[..., None], colors], dim=-1)  # [B, N, 14]
        rows = np.zeros((objects, kernels.PARAMETERS, rasterizer.size), np.float32)  # the padding has an opacity of 0
        rows[..., : means.shape[1]] = parameters.mT.numpy()
        tables = rows.reshape(objects, -1)
        cameras = [[camera_row(viewmats[b, v].numpy(), Ks[b, v].numpy()) for v in range(views)] for b in range(objects)]
        frames = np.empty((objects, views, *rasterizer.frame.shape), np.float32)
        for b in range(objects):
            for v in range(views):
                rasterizer.project(tables[b], cameras[b][v])
                frames[b, v] = rasterizer.draw()
        planes = torch.from_numpy(np.moveaxis(frames[..., :width], -2, -1))  # [B, V, H, W, 4]
        through = planes[..., :1].abs()
        images = planes[..., 1:] + through * backgrounds[:, :, None, None]
        ctx.save_for_backward(backgrounds, through)
        ctx.rasterizer, ctx.tables, ctx.cameras, ctx.frames = rasterizer, tables, cameras, frames
        ctx.gaussians = means.shape[1]
        return images, 1 - through

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_images: Tensor, d_alphas: Tensor):
        backgrounds, through = ctx.saved_tensors
        rasterizer = ctx.rasterizer
        objects, views = d_images.shape[:2]
        # The background shows through, so the image's gradient reaches alpha too.
        d_alphas = d_alphas[..., 0] - (d_images * backgrounds[:, :, None, None]).sum(-1)
        sums = np.zeros((objects, kernels.PARAMETERS, rasterizer.size), np.float32)
        pixels = rasterizer.pixel_gradients[:, 2:, : rasterizer.width]
        for b in range(objects):
            for v in range(views):
                pixels[:, :3] = d_images[b, v].movedim(-1, -2).numpy()
                pixels[:, 3] = d_alphas[b, v].numpy()
                rasterizer.frame[...] = ctx.frames[b, v]
                rasterizer.project(ctx.tables[b], ctx.cameras[b][v])
                sums[b] += rasterizer.backward(ctx.tables[b], ctx.cameras[b][v]).reshape(sums[b].shape)
        rows = torch.from_numpy(sums[..., : ctx.gaussians]).movedim(1, 2)  # [B, N, 14]
        means, quats, scales, opacities, colors = rows.split(kernels.PARTS, dim=-1)
        d_backgrounds = (d_images * through).sum((2, 3))
        return means, quats, scales, opacities[..., 0], colors, d_backgrounds, *[None] * 5


rasterize = _Rasterize.apply
