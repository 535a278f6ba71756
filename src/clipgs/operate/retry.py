"""Making failed objects again, and only those.

`catalog/retries.json` counts how often a shard's stage was retried. The count stands in the settings of that shard's
rule, so that Snakemake does what has no other cause; it changes no result.
"""

import json
import logging
from pathlib import Path

from clipgs.catalog.shards import frozen_shards, shard_path
from clipgs.config import Config
from clipgs.core.bundles import read_table
from clipgs.core.errors import UsageError
from clipgs.core.files import whole
from clipgs.core.previous import BUNDLES, Previous
from clipgs.core.runner import path
from clipgs.core.seeds import canonical_json
from clipgs.operate.lock import OutputLock

log = logging.getLogger(__name__)

# What is made of a stage's objects one by one, and so keeps what it has when one more comes.
_AFTER = {"fetch": ("sample", "view", "fit", "render"), "sample": ("fit", "render"), "view": ("fit", "render"),
          "fit": ("render",), "render": ()}  # fmt: skip
STAGES = tuple(BUNDLES)


def retry(config: Config, stage: str, shards: list[str]) -> dict[str, int]:
    """Makes the next run try a stage's failed objects again. Good ones are kept, in that stage and in those after it.

    Args:
        shards: only these; empty: all.

    Returns:
        shard to the number of failed objects that the next run tries again.

    Raises:
        UsageError: the stage does not work object by object, or a shard is not there.
        ClipgsError: a run works on the output.
    """
    if stage not in STAGES:
        raise UsageError(f"{stage} cannot be retried; {', '.join(STAGES)} can")
    known = frozen_shards(config)
    for shard in shards:
        if shard not in known:
            raise UsageError(f"{config.output_path} has no shard {shard}")
    found, counts = {}, retries(config)
    with OutputLock(config.output_path):
        for shard in shards or known:
            count = _failed(config, stage, shard)
            if not count:
                continue
            found[shard] = count
            for each in (stage, *_AFTER[stage]):
                if not Previous(config.output_path, each, shard).set_aside():
                    log.info("%s %s is not there or not whole: the next run makes all of it", each, shard)
            counts.setdefault(stage, {})[shard] = counts.get(stage, {}).get(shard, 0) + 1
        if found:
            with whole(_path(config)) as temporary:
                temporary.write_text(canonical_json(counts) + "\n")
    return found


def _path(config: Config) -> Path:
    return config.output_path / "catalog" / "retries.json"


def retries(config: Config) -> dict[str, dict[str, int]]:
    """Stage to shard to the number of times it was retried.

    Raises:
        UsageError: the file that holds them is damaged.
    """
    try:
        return {stage: dict(shards) for stage, shards in json.loads(_path(config).read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{_path(config)} is damaged ({error}); remove it, and all that was retried is made again"
        ) from None


def _failed(config: Config, stage: str, shard: str) -> int:
    """How many objects failed there; what can never be used (a duplicate, an unreadable file) does not count."""
    table = path(config, BUNDLES[stage][0], shard, ".parquet")
    if not table.exists():
        return 0
    never = {row["uid"] for row in read_table(shard_path(config, shard), ["uid", "note"]) if row["note"]}
    return sum(row["status"] != "ok" and row["uid"] not in never for row in read_table(table, ["uid", "status"]))
