"""The tensors that the packages pass to each other: surface points, posed views and Gaussians."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from clipgs.core.files import whole
from clipgs.splats import ply
from clipgs.splats.read import read
from clipgs.splats.rows import SH_C0, SplatRows, f_dc_of

logger = logging.getLogger(__name__)

PARAMETERS = ("means", "quats_wxyz", "log_scales", "opacity_logits", "colors")  # of Gaussians, each a tensor
PADDING_LOGIT = -200.0  # its sigmoid is exactly 0 in float32, its gradient too


class _Tensors:
    """What the dataclasses of tensors below share."""

    def to(self, device: torch.device | str) -> Self:
        return self._map(lambda tensor: tensor.to(device))

    def __getitem__(self, index) -> Self:
        return self._map(lambda tensor: tensor[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same with `function` applied to every tensor."""
        tensors = {name: function(value) for name, value in vars(self).items() if value is not None}
        return replace(self, **tensors)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Points(_Tensors):
    """Points sampled on the surfaces of B objects."""

    xyz: Tensor
    """[B, P, 3]"""
    rgb: Tensor
    """[B, P, 3] in [0, 1]"""
    normals: Tensor
    """[B, P, 3], unit length"""


@dataclass(frozen=True, eq=False)
class Views(_Tensors):
    """V posed views of each of B objects."""

    rgba: Tensor
    """[B, V, H, W, 4] uint8, colour not multiplied by alpha"""
    viewmats: Tensor
    """[B, V, 4, 4] float32, world to camera, OpenCV axes"""
    Ks: Tensor
    """[B, V, 3, 3] float32, pixels"""


@dataclass(frozen=True, eq=False)
class Gaussians(_Tensors):
    """N Gaussians of one object, or of each of B objects, as the fit optimises them; no view dependence.

    Where objects of different N share a batch, `count` [B] holds the number of real rows of each object; the other
    rows have an opacity of zero.
    """

    means: Tensor
    """[..., N, 3]"""
    quats_wxyz: Tensor
    """[..., N, 4], any length but zero"""
    log_scales: Tensor
    """[..., N, 3], natural logarithm of the standard deviation"""
    opacity_logits: Tensor
    """[..., N]"""
    colors: Tensor
    """[..., N, 3], RGB in [0, 1]"""
    count: Tensor | None = None
    """[B] int64"""

    @property
    def scales(self) -> Tensor:
        """[..., N, 3], world units"""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[..., N] in [0, 1]"""
        return self.opacity_logits.sigmoid()

    def __len__(self) -> int:
        """B where there is a batch, else N."""
        return len(self.means)

    def __getitem__(self, index) -> Self:
        """Index the first axis; one object of a ragged batch comes without its padding."""
        picked = super().__getitem__(index)
        if picked.count is None or picked.count.ndim:
            return picked
        return replace(picked, count=None)[: int(picked.count)]

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
        tensors = {name: torch.stack([getattr(gaussians, name) for gaussians in padded]) for name in PARAMETERS}
        ragged = min(counts) < max(counts)
        return cls(**tensors, count=torch.tensor(counts, device=tensors["means"].device) if ragged else None)

    def _padded(self, rows: int) -> Self:
        missing = rows - len(self)
        if missing == 0:
            return self
        # Copies of the first row leave the bounding box and the range of the scales as they were.
        padded = self._map(lambda tensor: torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]))
        hidden = torch.full_like(padded.opacity_logits[len(self) :], PADDING_LOGIT)
        return replace(padded, opacity_logits=torch.cat([self.opacity_logits, hidden]))

    def prune(self, min_opacity: float) -> Self:
        """One object without the Gaussians whose opacity is below `min_opacity`; the others keep their order."""
        if self.means.ndim != 2:
            raise ValueError(f"prune takes one object, not a batch {list(self.means.shape)}.")
        return self[self.opacities >= min_opacity]

    @classmethod
    def from_ply(cls, data: bytes, name: str = "PLY") -> Self:
        """The splat in the bytes of a PLY, [N, ...] on the CPU, its rows in farthest-point order.

        The log says what was dropped or replaced; see `ply.read`. Where float64 positions lie so far from the origin
        that float32 would lose their digits, their median is taken off, and the log says so too.

        Args:
            name: of the splat; the errors begin with it.

        Raises:
            ValueError: not a splat, cut short, empty, or without a row that can be used.
        """
        return cls._found(lambda: ply.read(data), name)

    @classmethod
    def _found(cls, reader: Callable[[], SplatRows], name: str) -> Self:
        """The splat that a reader finds, with log lines and errors that begin with the name."""
        try:
            found = reader()
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from error
        for note in found.notes:
            logger.warning("%s: %s.", name, note)
        if found.harmonics:
            logger.info("%s: %d spherical harmonics above degree 0 are dropped.", name, found.harmonics)
        if found.origin.any():
            logger.warning("%s: far from the origin, so %s is taken off its positions.", name, found.origin.tolist())
        return cls.from_rows(found.rows)

    @classmethod
    def from_rows(
        cls,
        rows: np.ndarray,  # [N, 14] float32 in the order of SPLAT_PROPERTIES
    ) -> Self:
        """The splat of a PLY's rows."""
        means, f_dc, logits, log_scales, quats = np.split(rows, (3, 6, 7, 10), axis=1)
        return cls(
            means=torch.from_numpy(means.copy()),
            quats_wxyz=torch.from_numpy(quats.copy()),
            log_scales=torch.from_numpy(log_scales.copy()),
            opacity_logits=torch.from_numpy(logits[:, 0].copy()),
            colors=torch.from_numpy((0.5 + SH_C0 * f_dc.astype(np.float64)).astype(np.float32)),
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
        f_dc = f_dc_of(self.colors.double())
        columns = (self.means, f_dc, self.opacity_logits, self.log_scales, self.quats_wxyz)
        values = [column.detach().cpu().double().numpy().reshape(len(self), -1) for column in columns]
        return ply.to_bytes(np.concatenate(values, axis=1))

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads one splat of any program: PLY, SPZ, SOG, .splat, .ksplat, glTF, a folder of gsplat or a torch file.

        The log says what was dropped or replaced, as `from_ply` does.

        Raises:
            ValueError: not a splat, damaged, or without a row that can be used. The text begins with the path.
            OSError: the file cannot be opened.
        """
        return cls._found(lambda: read(Path(path)), str(path))

    def save(self, path: Path | str) -> None:
        """Writes one splat as a PLY, whole or not at all; see `to_ply`."""
        data = self.to_ply()
        with whole(Path(path)) as temporary:
            temporary.write_bytes(data)
