"""Finished objects of a shard, kept while its stage still runs."""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipgs.core.bundles import add_member, read_tar
from clipgs.core.files import whole


class Journal:
    """Finished objects of one shard and stage, kept until the shard's file is assembled.

    An entry is keyed by uid, inputs and settings: after a kill, finished objects are reused and stale ones are not.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self._settings = folder, settings

    def key(self, inputs: str) -> str:
        """Names what an object was made of: the same inputs and settings give the same 20 hex digits."""
        return hashlib.sha256(f"{self._settings}\0{inputs}".encode()).hexdigest()[:20]

    def _path(self, uid: str, key: str) -> Path:
        return self.folder / f"{uid}.{key}.tar"

    def put(self, uid: str, key: str, row: dict[str, Any], members: Iterable[tuple[str, bytes]]) -> None:
        """Keeps one finished object: its row and its files."""
        with whole(self._path(uid, key)) as temporary, tarfile.open(temporary, "w") as tar:
            for name, data in [("row.json", json.dumps(row).encode()), *members]:
                add_member(tar, name, data)

    def get(self, uid: str, key: str) -> tuple[dict[str, Any], list[tuple[str, bytes]]] | None:
        """The object's row and files, or None where it is not finished."""
        path = self._path(uid, key)
        try:
            (_, row), *members = read_tar(path)
            return json.loads(row), members
        except FileNotFoundError:
            return None
        except (tarfile.TarError, ValueError):
            path.unlink()  # a power cut may leave an empty file under a final name
            return None

    def __contains__(self, uid_and_key: tuple[str, str]) -> bool:
        return self._path(*uid_and_key).exists()

    def clear(self) -> None:
        """Removes the journal, once the shard's own files hold what it held."""
        shutil.rmtree(self.folder, ignore_errors=True)
