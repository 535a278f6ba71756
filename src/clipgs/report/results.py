"""What the report reads from an output: triplets with pictures, and the runs with metrics and evaluation."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipgs.catalog.records import frozen_shards
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.core.files import check
from clipgs.core.runner import Row
from clipgs.evaluation.embeddings import Embeddings, read_embeddings
from clipgs.evaluation.rows import ABLATION
from clipgs.stages import path
from clipgs.triplets.dataset import TripletDataset, best_render
from clipgs.triplets.pack import read_rows


class Triplets(NamedTuple):
    """The rows of the packed shards, ordered by shard and uid."""

    packed: list[Row]
    failed: list[Row]


def read_triplets(config: Config) -> Triplets:
    """Reads the tables of all shards.

    Raises:
        ClipgsError: no shard is packed, or a table is damaged.
    """
    tables = [path(config, "triplets", shard, ".parquet") for shard in frozen_shards(config)]
    if not tables:
        raise ClipgsError(f"{config.output_path / 'triplets'} has no triplets; make them with: {snakemake('triplets')}")
    for file in tables:
        check(file)
    rows = read_rows(tables)
    return Triplets([row for row in rows if row["status"] == "ok"], [row for row in rows if row["status"] != "ok"])


class Pictures:
    """Pictures of packed objects as data URIs. `used` collects the objects that are shown, for the credits."""

    def __init__(self, config: Config, rows: Mapping[str, Row]) -> None:
        self.rows = rows  # by uid
        self.used: set[str] = set()
        self._config = config
        self._dataset = TripletDataset(config.output_path / "triplets") if rows else None
        self._index = {uid: i for i, uid in enumerate(self._dataset.uids)} if self._dataset else {}
        self._members: dict[str, dict[str, bytes]] = {}  # by uid
        self._thumbnails: dict[str, dict[str, bytes]] = {}  # by shard, then uid

    def members(self, uid: str) -> dict[str, bytes]:
        """The files of an object in its tar, by name."""
        self.used.add(uid)
        if uid not in self._members:
            assert self._dataset is not None
            self._members[uid] = self._dataset.members(self._index[uid])
        return self._members[uid]

    def splat(self, uid: str, view: int | None = None) -> str:
        """A render from camera `view`, or from the camera that shows the splat best; empty if it is not packed."""
        if uid not in self.rows:
            return ""
        members = self.members(uid)
        return _data_uri(best_render(uid, members) if view is None else members[f"{uid}.{view:02d}.webp"])

    def mesh(self, uid: str) -> str | None:
        """The mesh from the same side; None for a ready splat, which has no mesh."""
        shard = self.rows[uid]["shard"]
        if shard not in self._thumbnails:
            file = path(self._config, "views", shard, ".parquet")
            rows = read_table(file, ["uid", "thumbnail"]) if file.exists() else []
            self._thumbnails[shard] = {row["uid"]: row["thumbnail"] for row in rows if row["thumbnail"]}
        thumbnail = self._thumbnails[shard].get(uid)
        return _data_uri(thumbnail) if thumbnail else None


def _data_uri(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


class Results:
    """The metrics and the evaluation of the runs. The ablation's runs are left out: a table compares them."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._folder = output / "evaluation"
        self._runs = sorted(run.name for run in self._folder.glob("*/") if not run.name.startswith(ABLATION))

    def of_runs(self, name: str) -> dict[str, Any]:
        """The content of `evaluation/RUN/NAME.json` by run, for the runs that have the file."""
        contents = {run: self.of_all(f"{run}/{name}") for run in self._runs}
        return {run: content for run, content in contents.items() if content is not None}

    def of_all(self, name: str) -> Any:
        """The content of `evaluation/NAME.json`, or None."""
        file = self._folder / f"{name}.json"
        if not file.exists():
            return None
        check(file)
        return json.loads(file.read_text())

    def embeddings(self) -> dict[str, Embeddings]:
        """The embeddings by run, for the runs that have them."""
        files = {run: self._folder / run / "embeddings.safetensors" for run in self._runs}
        return {run: read_embeddings(file) for run, file in files.items() if file.exists()}

    def metrics(self) -> dict[str, list[dict[str, float]]]:
        """The lines of `runs/RUN/metrics.jsonl` by run."""
        files = {file.parent.name: file for file in sorted(self._output.glob("runs/*/metrics.jsonl"))}
        return {run: _metrics(file) for run, file in files.items() if not run.startswith(ABLATION)}


def _metrics(file: Path) -> list[dict[str, float]]:
    rows = []
    for line in file.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a training that still runs may have written half of its last line
            continue
        rows.append({name: float(value) for name, value in row.items() if isinstance(value, int | float)})
    return rows
