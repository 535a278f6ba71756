"""The built-in objects as a source."""

from pathlib import Path
from typing import Any

from clipgs.catalog.sources import procedural
from clipgs.config import Config
from clipgs.storage import whole


class ProceduralSource:
    """See `Source`. Objects are made when they are fetched, into the cache."""

    name = "procedural"

    def __init__(self, config: Config) -> None:
        self._count, self._seed = config.catalog.procedural.objects, config.seed
        self._folder = config.cache_path / self.name

    def locators(self) -> list[str]:
        return [procedural.locator(index, self._seed) for index in range(self._count)]

    def gone(self, known: list[str]) -> list[str]:
        return []  # what can be made is always there

    def identify(self, locator: str) -> dict[str, Any]:
        about = procedural.describe(locator)
        return {"uid": about.uid, "sha256": None, "group": about.group, "split": None, "note": None}

    def labels(self, locators: list[str]) -> list[dict[str, Any]]:
        return [
            {
                "category": about.category,
                "text": about.text,
                "license": about.license,
                "credit": about.credit,
                "page": None,
            }
            for about in map(procedural.describe, locators)
        ]

    def label_digest(self, locators: list[str]) -> str:
        return ""

    def fetch(self, row: dict[str, Any]) -> Path:
        path = self.path(row)
        with whole(path) as temporary:
            temporary.write_bytes(procedural.build(row["locator"]))
        return path

    def path(self, row: dict[str, Any]) -> Path:
        return self._folder / f"{row['uid']}.glb"

    def up_axis(self, row: dict[str, Any]) -> str:
        return "y"

    def notes(self) -> list[str]:
        return []
