"""The stages `caption`, `pack` and `index`: from splats and renders to the dataset."""

import json
import logging
from pathlib import Path

from clipgs.catalog.excluded import EXCLUDED, excluded
from clipgs.catalog.shards import curation_path, frozen_shards, labels_path, shard_path
from clipgs.catalog.sources import source
from clipgs.config import Config
from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check
from clipgs.core.runner import fail_as_a_whole, good
from clipgs.stages import STAGES, job, path, table

log = logging.getLogger(__name__)


def caption(config: Config, shard: str, threads: int) -> None:
    """Gives every object its caption, with the configured captioner.

    Writes `captions/S.parquet`: uid, status, error, caption, source, candidates and scores. A caption that was scored
    has a score, and a note if that is below `caption.min_score`. With `http` also model and prompt.
    """
    del threads
    from clipgs.triplets.captions import captioner, located, schema

    check(labels_path(config, shard))
    meshes = good(table(config, "meshes", shard))
    frozen = [row for row in read_table(shard_path(config, shard)) if row["uid"] in meshes]
    given = frozen, read_table(labels_path(config, shard)), located(config)
    make = captioner(config.caption.captioner)
    if config.caption.writer or config.caption.uses_teacher:
        from clipgs.triplets import captions_http
        from clipgs.triplets.captions_written import caption_writer, judged

        write_all = captions_http.write_all if config.caption.writer == "http" else None
        rows = judged(config, shard, make(*given, caption_writer(config, shard, write_all)))
    else:
        rows = make(*given)
    errors = {row["uid"]: row["error"] for row in rows if row["status"] != "ok"}
    fail_as_a_whole(job(config, "caption", shard), errors, len(rows))
    write_table(path(config, "captions", shard, ".parquet"), rows, schema(config.caption.writer))


def pack(config: Config, shard: str, threads: int) -> None:
    """Packs the splat, the renders, the caption and the metadata of each object.

    Writes `triplets/S.tar` (WebDataset) and `triplets/S.parquet` (a row per object; a failed one has stage and error).
    """
    del threads
    from clipgs.meshes.cameras import canonical_cameras
    from clipgs.triplets.pack import Cameras, MeshToSplat, pack_shard

    splats, renders = (path(config, folder, shard, ".tar") for folder in ("splats", "renders"))
    for file in (shard_path(config, shard), labels_path(config, shard), splats, renders):
        check(file)
    frozen = read_table(shard_path(config, shard))
    reasons = excluded(config).get(shard, {})
    frozen = [row | {"note": f"{EXCLUDED}{reasons[row['uid']]}"} if row["uid"] in reasons else row for row in frozen]
    stages = {name: table(config, STAGES[name].folder, shard) for name in STAGES["pack"].after if name != "label"}
    # The hash of a generated mesh is not known when its row is frozen: `fetch` hashes what it reads.
    hashes = {uid: row["sha256"] for uid, row in good(stages["fetch"]).items()}
    objects = [{**row, "sha256": hashes.get(row["uid"], row["sha256"])} for row in frozen]
    up_axes = {row["uid"]: source(config, row["source"]).up_axis(row) for row in frozen if row["uid"] in hashes}
    normalised = {
        uid: MeshToSplat(row["centre"], row["scale"], row.get("up_axis") or up_axes[uid])
        for stage in ("sample", "fit")  # `fit` normalises ready splats
        for uid, row in good(stages[stage]).items()
        if row["centre"] is not None
    }
    pack_shard(
        path(config, "triplets", shard, ".tar"),
        path(config, "triplets", shard, ".parquet"),
        shard=shard,
        objects=objects,
        labels=read_table(labels_path(config, shard)),
        stages=stages,
        splats=splats,
        renders=renders,
        mesh_to_splat=normalised,
        cameras=Cameras(*canonical_cameras(config.views, config.render.pixels), config.render.pixels),
    )


def index(config: Config) -> None:
    """Writes the files about all shards: `triplets/index.parquet`, README.md, CREDITS.csv, contact_sheet.png and
    quality.png."""
    from clipgs.triplets.card import write_card
    from clipgs.triplets.pack import merge_index

    shards = frozen_shards(config)
    tables = [path(config, "triplets", shard, ".parquet") for shard in shards]
    for file in tables:
        check(file)
    folder = config.output_path / "triplets"
    merge_index(tables, folder / "index.parquet")
    check(curation_path(config))
    curation = json.loads(curation_path(config).read_text())
    views = {shard: path(config, "views", shard, ".parquet") for shard in shards}
    write_card(folder, tables, views, config.pack, curation, _cut(config, folder / "index.parquet"))


def _cut(config: Config, index: Path) -> str:
    """What is to be said of captions that the teacher does not read to their end."""
    from clipgs.teacher.names import called, context_length

    rows = read_table(index, ["uid", "caption"])
    longest = max((len(row["caption"].encode()) for row in rows), default=0)
    try:
        # A token is at least a byte, and a text has at most four more. So torch is imported for long captions alone.
        if longest + 4 <= context_length(config.teacher):
            return ""
        from clipgs.teacher.features import said_of_cut
        from clipgs.teacher.model import cut
        from clipgs.teacher.weights import open_tokenizer

        tokenizer = open_tokenizer(config.teacher)
    except ClipgsError as error:  # the triplets need no teacher
        log.warning("index: captions that are too long for the teacher are not counted: %s", error)
        return ""
    uids = [rows[place]["uid"] for place in cut(tokenizer, [row["caption"] for row in rows])]
    return said_of_cut(uids, called(config.teacher.name), tokenizer.context_length)
