"""Reads a splat of any program: chooses the format by what the file holds.

Imports torch for files of torch only.
"""

import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from clipgs.catalog.named_files import META, NamedFiles
from clipgs.catalog.sources.splats import FILES, has_gltf_extension
from clipgs.core.errors import ObjectError
from clipgs.splats import ply
from clipgs.splats.formats import glb, packed, pictures, spz, tensors
from clipgs.splats.rows import Limit, SplatRows, usable

SUFFIXES = (*FILES, ".zip", ".json")  # of one splat

_HEAD_BYTES = 1 << 16
_META_BYTES = 1 << 20
_TORCH = (b"\x80\x02", b"\x80\x03", b"\x80\x04")  # pickles, as torch wrote before it wrote zip files
_ZIP = b"PK\x03\x04"


@np.errstate(all="ignore")  # what is no number is dropped at the end
def read(path: Path, limit: Limit = Limit()) -> SplatRows:  # noqa: B008 (a tuple)
    """The splat of a file, its rows finite and in farthest-point order; see docs/formats.md for the formats.

    Args:
        path: a file; for pictures beside a meta.json, that file or its folder.

    Raises:
        ValueError: it is no splat, cut short, damaged, of more Gaussians than the limit, or without one that can be
            used. The text is the bare reason.
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        path = path / META
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"ply"):
        return ply.read(path.read_bytes(), limit)
    return usable(_foreign(path, head, limit))


def _foreign(path: Path, head: bytes, limit: Limit) -> SplatRows:
    suffix = path.suffix.lower()
    if head.startswith(b"glTF") or suffix == ".gltf":
        return glb.read(path, limit)
    if head.startswith((spz.MAGIC, spz.GZIP)):
        return spz.read(path.read_bytes(), limit)
    if head.startswith(_ZIP):
        return _of_zip(path, limit)
    if head.startswith(_TORCH):
        return tensors.read(path, limit)
    if suffix == ".json":
        return pictures.read(_beside(path), limit)
    data = path.read_bytes()
    if not data:
        raise ValueError("the file is empty")
    if packed.is_ksplat(data):
        return packed.read_ksplat(data, limit)
    if suffix == ".splat":  # any bytes could be one
        return packed.read_splat(data, limit)
    if suffix == ".ply":
        return ply.read(data, limit)  # says that it is none
    if suffix == ".ksplat":
        raise ValueError("it is no .ksplat file, or is cut short")
    raise ValueError("its content is no format of splats that is read")


def is_splat(path: Path) -> bool:
    """Whether a .ply, .glb or .gltf holds a splat and no mesh, by its header; others are splats by their suffix."""
    suffix = path.suffix.lower()
    if suffix in (".glb", ".gltf"):
        return has_gltf_extension(path)
    if suffix == ".ply":
        with suppress(OSError), path.open("rb") as file:
            return ply.is_splat(file.read(_HEAD_BYTES))
        return False
    return suffix in (".splat", ".ksplat", ".spz", ".sog")


def _of_zip(path: Path, limit: Limit) -> SplatRows:
    """A zip file of torch, or one that holds a meta.json and its pictures (.sog)."""
    try:
        with zipfile.ZipFile(path) as bundle:
            names = bundle.namelist()
            if any(name.endswith("/data.pkl") for name in names):
                return tensors.read(path, limit)
            metas = [name for name in names if name.rpartition("/")[2] == META]
            if len(metas) != 1:
                raise ValueError(f"the zip file holds {len(metas) or 'no'} splats as pictures (files {META})")
            folder = metas[0].removesuffix(META)
            # A picture has at most four bytes a Gaussian; one that claims more is not unpacked.
            most = _META_BYTES + 32 * limit.gaussians

            def get(name: str) -> bytes:
                if folder + name not in names:
                    raise ValueError(f"it has no {name}")
                if bundle.getinfo(folder + name).file_size > most:
                    raise ValueError(f"its {name} is larger than the pictures of {limit.gaussians} Gaussians")
                return bundle.read(folder + name)

            return pictures.read(get, limit)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"the zip file is cut short or damaged ({error})") from error


def _beside(path: Path) -> pictures.Get:
    """The files in the folder of a meta.json, and in no other."""

    def get(name: str) -> bytes:
        if name == META:
            return path.read_bytes()
        try:
            return NamedFiles(path).get(name)
        except ObjectError as error:
            raise ValueError(str(error)) from error

    return get
