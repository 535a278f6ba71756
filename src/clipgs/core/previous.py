"""Files of a shard that will be made again: what is good in them is taken, not made.

`clipgs retry` links a stage's table and bundle into `work/STAGE/S.previous`, because Snakemake removes them before the
stage runs. That then finds the objects whose inputs and settings are still the same by the `key` of their row.
"""

import io
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from clipgs.core.bundles import Members, read_table, tar_objects
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check

# Stages that work object by object: where their files lie, and what holds those of the objects.
BUNDLES: dict[str, tuple[str, str | None]] = {
    "fetch": ("meshes", None),
    "sample": ("points", ".npz"),
    "view": ("views", ".tar"),
    "fit": ("splats", ".tar"),
    "render": ("renders", ".tar"),
}


class Previous:
    """The good objects of a shard's earlier files; empty where nothing was set aside."""

    def __init__(self, output: Path, stage: str, shard: str) -> None:
        folder, self._suffix = BUNDLES.get(stage, (stage, None))
        self._output, self._made_in, self._shard = output, folder, shard
        self.folder = output / "work" / stage / f"{shard}.previous"

    def set_aside(self) -> bool:
        """Keeps the shard's files, which stay where they are; False where they are not there or not whole."""
        files = [self._output / self._made_in / f"{self._shard}{suffix}" for suffix in (".parquet", self._suffix or "")]
        files = files if self._suffix else files[:1]
        try:
            for file in files:
                check(file)
        except ClipgsError:
            return False
        self.clear()
        self.folder.mkdir(parents=True)
        for file in files:
            try:
                os.link(file, self.folder / file.name)
            except OSError:  # a file system without links
                shutil.copy2(file, self.folder / file.name)
        return True

    @cached_property
    def _rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        file = self.folder / f"{self._shard}.parquet"
        if not file.exists():
            return {}
        rows = read_table(file)
        return {(row["uid"], row["key"]): row for row in rows if row["status"] == "ok" and row.get("key")}

    @cached_property
    def _members(self) -> dict[str, Members]:
        return tar_objects(self.folder / f"{self._shard}.tar")

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._rows

    def get(self, uid: str, key: str) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
        """The object's row and files, as the stage made them."""
        row = {name: value for name, value in self._rows[uid, key].items() if name not in ("uid", "status", "error")}
        files: list[tuple[str, bytes]] = []
        if self._suffix == ".tar":
            files = list(self._members[uid].read().items())
        elif self._suffix == ".npz":
            files = self._arrays(uid)
        pictures = [(name, value) for name, value in row.items() if isinstance(value, bytes)]
        return {name: value for name, value in row.items() if not isinstance(value, bytes)}, [*files, *pictures]

    def _arrays(self, uid: str) -> list[tuple[str, bytes]]:
        import numpy as np

        files = []
        with np.load(self.folder / f"{self._shard}.npz", allow_pickle=False) as arrays:
            for name in arrays.files:
                if name.startswith(f"{uid}/"):
                    buffer = io.BytesIO()
                    np.save(buffer, arrays[name], allow_pickle=False)
                    files.append((name.removeprefix(f"{uid}/"), buffer.getvalue()))
        return files

    def clear(self) -> None:
        """Forgets what was set aside."""
        shutil.rmtree(self.folder, ignore_errors=True)
