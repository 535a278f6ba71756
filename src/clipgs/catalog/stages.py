"""The stages `freeze`, `label` and `objects`: from the source to lists of objects and what is said of them."""

from clipgs.catalog.records import labels_schema, objects_schema
from clipgs.catalog.shards import curation, curation_path, frozen_shards, labels_path, shard_path, write_shards
from clipgs.catalog.sources import source
from clipgs.config import Config
from clipgs.core.bundles import read_table, write_table
from clipgs.core.files import write_bytes
from clipgs.core.seeds import canonical_json


def freeze(config: Config, shards: list[str]) -> None:
    """Writes the named pending shards: identifies their objects, finds duplicates, gives each its split.

    Raises:
        ClipgsError: the source changed since the shards were planned.
    """
    write_shards(config, shards)


def label(config: Config, shard: str, threads: int = 1) -> None:
    """Writes `catalog/labels/S.parquet`: their source's category, text, license, credit and page of each object."""
    del threads
    rows = read_table(shard_path(config, shard))
    labels = source(config, rows[0]["source"]).labels([row["locator"] for row in rows])
    labelled = [{"uid": row["uid"], **found} for row, found in zip(rows, labels, strict=True)]
    write_table(labels_path(config, shard), labelled, labels_schema())


def objects(config: Config) -> None:
    """Writes `catalog/objects.parquet`, every frozen row with its shard, and `catalog/curation.json`.

    The latter says how many objects the source has, which it left out by which rule, and by which settings.
    """
    rows = [{"shard": shard, **row} for shard in frozen_shards(config) for row in read_table(shard_path(config, shard))]
    write_table(config.output_path / "catalog" / "objects.parquet", rows, objects_schema())
    write_bytes(curation_path(config), canonical_json(curation(config)).encode() + b"\n")
