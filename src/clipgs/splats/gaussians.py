"""The three things that pass between the rooms as tensors: surface points, posed views and Gaussians."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from clipgs.core.files import whole
from clipgs.splats import ply
from clipgs.splats.order import farthest_point_order

PADDING_LOGIT = -200.0  # its sigmoid is exactly 0 in float32, its gradient too


@dataclass(frozen=True, eq=False)
class Points:
    """Points sampled on the surfaces of B objects."""

    xyz: Tensor  # [B, P, 3]
    rgb: Tensor  # [B, P, 3] in [0, 1]
    normals: Tensor  # [B, P, 3], unit length

    def to(self, device: torch.device | str) -> Self:
        return _map(self, lambda tensor: tensor.to(device))

    def __getitem__(self, index) -> Self:
        return _map(self, lambda tensor: tensor[index])


@dataclass(frozen=True, eq=False)
class Views:
    """Posed pictures of B objects, V of each."""

    rgba: Tensor  # [B, V, H, W, 4] uint8, colour not multiplied by alpha
    viewmats: Tensor  # [B, V, 4, 4] float32, world to camera, OpenCV axes
    Ks: Tensor  # [B, V, 3, 3] float32, pixels

    def to(self, device: torch.device | str) -> Self:
        return _map(self, lambda tensor: tensor.to(device))

    def __getitem__(self, index) -> Self:
        return _map(self, lambda tensor: tensor[index])


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians of one object, or of each of B objects, as they are optimised; no view dependence.

    Where objects of different N share a batch, `count` [B] holds how many rows of each are real; the rest
    have an opacity of zero.
    """

    means: Tensor  # [..., N, 3]
    quats_wxyz: Tensor  # [..., N, 4], any length but zero
    log_scales: Tensor  # [..., N, 3], natural logarithm of the standard deviation
    opacity_logits: Tensor  # [..., N]
    colors: Tensor  # [..., N, 3], RGB in [0, 1]
    count: Tensor | None = None  # [B] int64

    @property
    def scales(self) -> Tensor:  # [..., N, 3], world units
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:  # [..., N] in [0, 1]
        return self.opacity_logits.sigmoid()

    def __len__(self) -> int:
        """B where there is a batch, else N."""
        return len(self.means)

    def __getitem__(self, index) -> Self:
        """Index the first axis; one object of a ragged batch comes without its padding."""
        picked = _map(self, lambda tensor: tensor[index])
        if picked.count is None or picked.count.ndim:
            return picked
        count = int(picked.count)
        return _map(replace(picked, count=None), lambda tensor: tensor[:count])

    def to(self, device: torch.device | str) -> Self:
        return _map(self, lambda tensor: tensor.to(device))

    def detach(self) -> Self:
        return _map(self, Tensor.detach)

    @classmethod
    def stack(cls, objects: "Sequence[Gaussians]") -> Self:
        """One batch [B, N, ...] of single objects; shorter ones are padded with Gaussians of zero opacity.

        Raises:
            ValueError: no objects, an object without Gaussians, or one that is a batch itself.
        """
        if not objects:
            raise ValueError("There are no objects to stack.")
        counts = [len(gaussians) for gaussians in objects]
        if min(counts) == 0 or any(gaussians.means.ndim != 2 for gaussians in objects):
            raise ValueError("Only single objects with at least one Gaussian can be stacked.")
        padded = [gaussians._padded(max(counts)) for gaussians in objects]
        tensors = {
            name: torch.stack([getattr(gaussians, name) for gaussians in padded])
            for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "colors")
        }
        ragged = min(counts) < max(counts)
        return cls(**tensors, count=torch.tensor(counts, device=tensors["means"].device) if ragged else None)

    def _padded(self, rows: int) -> Self:
        missing = rows - len(self)
        if missing == 0:
            return self
        # Copies of the first row: a bounding box or a scale taken over the padding stays what it was.
        padded = _map(self, lambda tensor: torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]))
        hidden = torch.full_like(padded.opacity_logits[len(self) :], PADDING_LOGIT)
        return replace(padded, opacity_logits=torch.cat([self.opacity_logits, hidden]))

    def prune(self, min_opacity: float) -> Self:
        """One object without the Gaussians whose opacity is below `min_opacity`, the rest in their order."""
        self._check_single("prune")
        keep = self.opacities >= min_opacity
        return self[keep]

    def farthest_point_order(self) -> Tensor:
        """Permutation [N] int64 that puts one object's rows in farthest-point order, start index 0."""
        self._check_single("farthest_point_order")
        order = farthest_point_order(self.means.detach().cpu().numpy())
        return torch.from_numpy(order).to(self.means.device)

    def _check_single(self, what: str) -> None:
        if self.means.ndim != 2:
            raise ValueError(f"{what} takes one object, not a batch {list(self.means.shape)}.")

    @classmethod
    def from_ply(cls, data: bytes, name: str = "PLY") -> Self:
        """The splat in the bytes of a PLY, [N, ...] on the CPU, its rows in farthest-point order.

        Args:
            name: stands first in the errors.

        Raises:
            ValueError: not a splat, cut short, empty, or with a value that is not finite.
        """
        means, f_dc, logits, log_scales, quats = np.split(ply.from_bytes(data, name), (3, 6, 7, 10), axis=1)
        return cls(
            means=torch.from_numpy(means.copy()),
            quats_wxyz=torch.from_numpy(quats.copy()),
            log_scales=torch.from_numpy(log_scales.copy()),
            opacity_logits=torch.from_numpy(logits[:, 0].copy()),
            colors=torch.from_numpy((0.5 + ply.SH_C0 * f_dc.astype(np.float64)).astype(np.float32)),
        )

    def to_ply(self) -> bytes:
        """The PLY of one object, its rows in farthest-point order: equal Gaussians give equal bytes.

        Raises:
            ValueError: a batch, no Gaussians, or a value that is not finite.
        """
        if self.means.ndim != 2:
            raise ValueError(f"A PLY holds one object, not a batch {list(self.means.shape)}.")
        if len(self) == 0:
            raise ValueError("There are no Gaussians to save.")
        f_dc = (self.colors.double() - 0.5) / ply.SH_C0
        columns = (self.means, f_dc, self.opacity_logits, self.log_scales, self.quats_wxyz)
        values = [column.detach().cpu().double().numpy().reshape(len(self), -1) for column in columns]
        return ply.to_bytes(np.concatenate(values, axis=1))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads one splat from a PLY of any program; see `from_ply`.

        Raises:
            ValueError: as `from_ply`; the message begins with the path.
            OSError: the file cannot be opened.
        """
        return cls.from_ply(Path(path).read_bytes(), str(path))

    def save(self, path: Path | str) -> None:
        """Writes one splat as a PLY, whole or not at all; see `to_ply`."""
        data = self.to_ply()
        with whole(Path(path)) as temporary:
            temporary.write_bytes(data)


def _map(tensors, function):
    """The same dataclass with `function` applied to every tensor."""
    values = {field.name: getattr(tensors, field.name) for field in fields(tensors)}
    return replace(tensors, **{name: function(value) for name, value in values.items() if value is not None})
