"""Whether the points of a mesh and its pictures show the same object.

Both come from the same surfaces by different ways: points by area and by the look-up of a texel, pictures through the
graphics. Where they part, one of them is wrong, or the mesh is one that no splat can hold (a shell that is seen from
one side alone, say).
"""

import numpy as np

from clipgs.meshes import cameras, views
from clipgs.meshes.load import Mesh
from clipgs.meshes.materials import linear_to_srgb, srgb_to_linear
from clipgs.meshes.points import sample

_VIEWS, _PIXELS, _POINTS = 6, 64, 20_000
_COLOR = 0.16  # of 1, between the mean colours of a view; of real objects that are right at most 0.12
_OUTLINE = 0.1  # of a view's pixels that only one of the two covers


def apart(mesh: Mesh, seed: int) -> str | None:
    """In words, how points and pictures part; None if they agree.

    The mesh is drawn from six sides without light, as points have no light either. Of the points, those that are
    nearest to the camera in a pixel are what it would see; colours are not compared where one sees through surfaces.
    """
    xyz, rgb, _ = sample(mesh, _POINTS, seed)
    viewmats, Ks = cameras.canonical(_VIEWS, pixels=_PIXELS)
    pictures = views.render(mesh, viewmats, Ks, _PIXELS, ambient=1.0, lights=()) / 255
    solid = all(part.alpha_mode != "BLEND" for part in mesh.parts)
    colors, outlines = [], []
    for picture, viewmat, K in zip(pictures, viewmats, Ks, strict=True):
        covered, predicted = _seen(xyz, rgb, viewmat, K)
        drawn = picture[..., 3] > 0.5
        both = drawn & covered
        if solid and both.any():
            # Means of light: a pixel holds the mean of many texels, and a point has one of them.
            seen, expected = (
                linear_to_srgb(srgb_to_linear(colors_of).mean(axis=0))
                for colors_of in (picture[both][:, :3], predicted[both])
            )
            colors.append(np.abs(seen - expected).max())
        missing = drawn & ~_grown(covered), covered & ~_grown(picture[..., 3] > 0)
        outlines.append((missing[0].sum() + missing[1].sum()) / max(drawn.sum() + covered.sum(), 1) * 2)
    color, outline = float(np.median(colors)) if colors else 0.0, float(np.median(outlines))
    parts = [f"mean colour by {255 * color:.0f} of 255"] if color > _COLOR else []
    parts += [f"outline by {outline:.0%}"] if outline > _OUTLINE else []
    return f"points and pictures differ: {', '.join(parts)}" if parts else None


def _seen(
    xyz: np.ndarray,  # [P, 3]
    rgb: np.ndarray,  # [P, 3]
    viewmat: np.ndarray,  # [4, 4]
    K: np.ndarray,  # [3, 3]
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels with points [H, W], and the colour of the nearest point in each [H, W, 3]."""
    in_camera = xyz @ viewmat[:3, :3].T + viewmat[:3, 3]
    column, row = np.floor((in_camera @ K.T)[:, :2] / in_camera[:, 2:]).astype(int).clip(0, _PIXELS - 1).T
    order = np.argsort(-in_camera[:, 2])  # the nearest is written last
    covered, colors = np.zeros((_PIXELS, _PIXELS), bool), np.zeros((_PIXELS, _PIXELS, 3))
    covered[row, column] = True
    colors[row[order], column[order]] = rgb[order]
    return covered, colors


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask [H, W] and all pixels beside it."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
