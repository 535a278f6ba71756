"""Tables of the catalog: the frozen columns of an object, and the labels, which may be corrected later."""

import re
from pathlib import Path
from typing import Any, Literal

from clipgs.config import Config

UpAxis = Literal["auto", "y", "z"]  # the axis of a mesh file that points up; auto: by the program that wrote it
USD = (".usd", ".usda", ".usdc", ".usdz")  # read with the extra `usd`
CONVERTED = (".fbx", ".blend", ".abc")  # read by the converter
SAYS_ITS_AXIS = (".glb", ".gltf", ".dae", ".3mf", *USD, *CONVERTED)  # their readers turn Y up
SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off", ".dae", ".3mf", *USD, *CONVERTED)  # of mesh files
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

UID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BY = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
LICENSES = {name: f"CC-{name.upper()}-4.0" for name in _BY} | {"cc0": "CC0-1.0"}  # Objaverse's names to SPDX's
FROZEN_COLUMNS = ("uid", "source", "locator", "sha256", "group", "split", "note")
LABEL_COLUMNS = ("uid", "category", "text", "license", "credit", "page")


def _strings(columns: tuple[str, ...]) -> Any:
    import pyarrow as pa

    return pa.schema([(column, pa.string()) for column in columns])


def shard_path(config: Config, shard: str) -> Path:
    """The table of a shard's frozen rows."""
    return config.output_path / "catalog" / "shards" / f"{shard}.parquet"


def frozen_shards(config: Config) -> list[str]:
    """Names of the shards on disk, in order."""
    return sorted(path.stem for path in (config.output_path / "catalog" / "shards").glob("[0-9]*.parquet"))


def frozen_schema() -> Any:
    """Rows of `catalog/shards/S.parquet`. `note` is the reason why an object can never be used, else null."""
    return _strings(FROZEN_COLUMNS)


def labels_schema() -> Any:
    """Rows of `catalog/labels/S.parquet`, which may be corrected without fitting the object again."""
    return _strings(LABEL_COLUMNS)


def objects_schema() -> Any:
    """Rows of `catalog/objects.parquet`: all frozen rows with their shard."""
    return _strings(("shard", *FROZEN_COLUMNS))
