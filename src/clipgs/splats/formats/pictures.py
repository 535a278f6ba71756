"""Splats as pictures beside a meta.json: SOG 2 of PlayCanvas (WebP), and the folders of gsplat and uCO3D (PNG).

Method: PlayCanvas' page "The SOG Format"; gsplat.compression.PngCompression.
"""

import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from clipgs.catalog.named_files import META, picture_files
from clipgs.splats.rows import ANTIALIASED, Limit, SplatRows, joined, logits_of, smallest_three

_FORMATS = ("WEBP", "PNG")
_MASK = "fg_mask.npz"
# gsplat's parameters: pictures of each, and columns.
_OF_GSPLAT = {"means": 3, "scales": 3, "quats": 4, "opacities": 1, "sh0": 3}

Get = Callable[[str], bytes]  # the bytes of a file beside meta.json; raises ValueError if it is not there


def read(get: Get, limit: Limit) -> SplatRows:
    """The splat of a meta.json and its pictures.

    Raises:
        ValueError: not a splat, a file is missing or damaged, or there are more Gaussians than the limit.
    """
    try:
        meta = json.loads(get(META))
        if not picture_files(meta):
            raise ValueError("its meta.json is not that of a splat")
        if "files" not in meta["means"]:
            return _gsplat(meta, get, limit)
        if meta.get("version") != 2:
            raise ValueError(f"it is SOG {meta.get('version', 1)}; only SOG 2 is read")
        return _sog(meta, get, limit)
    except (LookupError, TypeError, AttributeError, RecursionError, OSError, SyntaxError, Warning) as error:
        raise ValueError(f"its meta.json or a picture is damaged ({type(error).__name__}: {error})") from error


def _sog(meta: dict[str, Any], get: Get, limit: Limit) -> SplatRows:
    count = limit.check(int(meta["count"]))

    def pixels(name: str, index: int = 0) -> np.ndarray:  # [count, 4] uint8
        return _pixels(get, meta[name]["files"][index], count, "RGBA")

    low, high = pixels("means"), pixels("means", 1)
    quats, colors, scales = pixels("quats"), pixels("sh0"), pixels("scales")
    largest = quats[:, 3].astype(np.int64) - 252  # a tag below 252 is no rotation
    unit = smallest_three(largest.clip(0), (quats[:, :3] / 255 * 2 - 1) * np.sqrt(0.5))
    rows = joined(
        _from_log(_between(low[:, :3] + 256.0 * high[:, :3], 65535, meta["means"])),
        np.array(meta["sh0"]["codebook"], np.float64)[colors[:, :3]],
        logits_of(colors[:, 3] / 255),
        np.array(meta["scales"]["codebook"], np.float64)[scales[:, :3]],
        np.where(largest[:, None] >= 0, unit, 0),
    )
    antialiased = meta.get("model") == "antialiased" or meta.get("antialias") is True
    bands = int(meta["shN"].get("bands", 0)) if "shN" in meta else 0
    return SplatRows(rows, [ANTIALIASED] if antialiased else [], 3 * bands * (bands + 2))


def _gsplat(meta: dict[str, Any], get: Get, limit: Limit) -> SplatRows:
    count = limit.check(int(meta["means"]["shape"][0]))
    found = {}
    for name, columns in _OF_GSPLAT.items():
        if int(np.prod(meta[name]["shape"])) != count * columns:
            raise ValueError(f"its {name} have the shape {meta[name]['shape']} for {count} Gaussians")
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[columns]
        if name == "means":
            low, high = (_pixels(get, f"means_{half}.png", count, mode).astype(np.float64) for half in "lu")
            found[name] = _from_log(_between(low + 256 * high, 65535, meta[name]))
        else:
            found[name] = _between(_pixels(get, f"{name}.png", count, mode), 255, meta[name])
    rows = joined(found["means"], found["sh0"], found["opacities"][:, 0], found["scales"], found["quats"])
    harmonics = int(np.prod(meta["shN"]["shape"][1:])) if "shN" in meta else 0
    mask = _mask(get, count)
    if mask is None:
        return SplatRows(rows, [], harmonics)
    note = f"{count - mask.sum()} of {count} Gaussians are background by {_MASK}, and left out"
    return SplatRows(rows[mask], [note], harmonics)


def _mask(get: Get, count: int) -> np.ndarray | None:  # [count] bool
    """What uCO3D says of each Gaussian of a scene: whether it belongs to the object."""
    try:
        data = get(_MASK)
    except ValueError:
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        if sum(info.file_size for info in bundle.infolist()) > 8 * count + 4096:
            raise ValueError(f"{_MASK} is larger than a mask of {count} Gaussians")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        mask = next(iter(arrays.values())).reshape(-1).astype(bool)
    if len(mask) != count or not mask.any():
        raise ValueError(f"{_MASK} keeps {mask.sum()} of {len(mask)} Gaussians, the splat has {count}")
    return mask


def _pixels(get: Get, name: str, count: int, mode: str) -> np.ndarray:  # [count, channels] uint8
    """The first pixels of a picture. One that is far larger than the splat is not decoded."""
    with Image.open(io.BytesIO(get(name)), formats=_FORMATS) as image:
        width, height = image.size
        if not count <= width * height <= 2 * count + (1 << 16):
            raise ValueError(f"{name} has {width} x {height} pixels for {count} Gaussians")
        return np.asarray(image.convert(mode)).reshape(width * height, -1)[:count]


def _between(steps: np.ndarray, highest: int, about: dict[str, Any]) -> np.ndarray:  # [N, columns]
    low, high = (np.array(about[name], np.float64) for name in ("mins", "maxs"))
    return low + steps / highest * (high - low)


def _from_log(values: np.ndarray) -> np.ndarray:
    """Both formats store sign(x) ln(1 + |x|)."""
    with np.errstate(over="ignore"):
        return np.sign(values) * np.expm1(np.abs(values))
