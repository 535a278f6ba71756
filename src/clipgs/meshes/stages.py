"""The stages `fetch`, `sample` and `view`: from frozen rows to mesh files, surface points and posed views."""

import io
import logging
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipgs.catalog.records import shard_path
from clipgs.catalog.sources import READY_SPLATS, Source, source
from clipgs.catalog.sources.digests import unchanged
from clipgs.config import Config
from clipgs.core.bundles import read_table, write_arrays, write_table
from clipgs.core.errors import DISK_FULL, ClipgsError, ObjectError, SourceMissing, advice, describe_error
from clipgs.core.files import check, sha256_of
from clipgs.core.runner import Files, Results, Row, Task, good, in_workers, over_objects, stage_schema, write_objects
from clipgs.core.seeds import seed_of
from clipgs.meshes import agreement, cameras, views
from clipgs.meshes.load import Mesh, load_by
from clipgs.meshes.points import sample as sample_points
from clipgs.stages import job, path, table

log = logging.getLogger(__name__)

_THUMBNAIL = "thumbnail"


def fetch(config: Config, shard: str, threads: int) -> None:
    """Downloads or locates every object's mesh file, and checks it against the frozen hash.

    Writes `meshes/S.parquet`: uid, status, error, path, sha256, bytes.
    """
    import pyarrow as pa

    check(shard_path(config, shard))
    rows = read_table(shard_path(config, shard))
    sources = {name: source(config, name) for name in {row["source"] for row in rows}}

    def compute(tasks: list[Task]) -> Results:
        by_kind: dict[bool, list[Task]] = {True: [], False: []}
        for task in tasks:
            by_kind[sources[task.payload[1]["source"]].remote].append(task)
        yield from _in_threads(config, sources, by_kind[True])
        yield from in_workers(_fetch, threads, config.workers.load_limits)(by_kind[False])

    tasks = [Task(row["uid"], str(row["sha256"]), (config, row)) for row in rows]
    done = [row for row, _ in over_objects(job(config, "fetch", shard), tasks, compute)]
    extra = {"path": pa.string(), "sha256": pa.string(), "bytes": pa.int64()}
    write_table(path(config, "meshes", shard, ".parquet"), done, stage_schema(extra))


def _in_threads(config: Config, sources: dict[str, Source], tasks: list[Task]) -> Results:
    """Fetches from remote sources, `catalog.downloads.parallel` objects at once.

    The threads are daemons, because an interrupted run would wait for the servers of a `concurrent.futures` pool. The
    next run resumes their downloads.
    """
    todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Task, tuple[Row, Files] | Exception]] = queue.SimpleQueue()
    ended = threading.Event()
    for task in tasks:
        todo.put(task)

    def work() -> None:
        while not ended.is_set():
            try:
                task = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((task, _fetch(task.payload, sources[task.payload[1]["source"]])))
            except Exception as error:
                done.put((task, error))

    for _ in range(min(config.catalog.downloads.parallel, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in tasks:
            task, result = done.get()
            if isinstance(result, ClipgsError):
                raise result
            yield task, describe_error(result) if isinstance(result, Exception) else result
    finally:
        ended.set()


def _fetch(payload: tuple[Config, Row], objects: Source | None = None) -> tuple[Row, Files]:
    config, row = payload
    if row["note"] is not None:
        return {"status": "failed", "error": row["note"]}, []
    objects = objects or source(config, row["source"])
    try:
        mesh = objects.fetch(row)
    except SourceMissing as error:  # the run was told to go on without it
        raise ObjectError(str(error)) from None
    except OSError as error:
        if error.errno in DISK_FULL:  # the disk's fault, not the object's
            raise ClipgsError(f"{config.cache_path}: {error.strerror}{advice(error, 'cache')}") from None
        raise
    size = mesh.stat().st_size
    if size > config.meshes.max_file_mb * 1_000_000:
        raise ObjectError(f"the file has {size / 1e6:.0f} MB, meshes.max_file_mb is {config.meshes.max_file_mb}")
    return {"path": _portable(config, mesh), "sha256": row["sha256"] or sha256_of(mesh), "bytes": size}, []


def _portable(config: Config, mesh: Path) -> str:
    for root in (config.output_path, config.cache_path):
        if mesh.is_relative_to(root):
            return mesh.relative_to(root).as_posix()
    return mesh.name


class ToRead(NamedTuple):
    """The payload of one object's task: its frozen row, and the hash of the file that was fetched."""

    config: Config
    row: Row
    sha256: str
    seed: int

    def load(self) -> Mesh:
        """The mesh of the object's file. Raises as `unchanged` and `clipgs.meshes.load.load`."""
        objects = source(self.config, self.row["source"])
        with unchanged(objects, self.row, self.sha256) as file:
            return load_by(self.config, file, up_axis=objects.up_axis(self.row), root=objects.root)


def _mesh_tasks(config: Config, shard: str, stage: str) -> list[Task]:
    """A task for each object that has a mesh file."""
    frozen = {row["uid"]: row for row in read_table(shard_path(config, shard))}
    return [
        Task(uid, mesh["sha256"], ToRead(config, frozen[uid], mesh["sha256"], seed_of(config.seed, stage, uid)))
        for uid, mesh in good(table(config, "meshes", shard)).items()
        if frozen[uid]["source"] not in READY_SPLATS
    ]


def sample(config: Config, shard: str, threads: int) -> None:
    """Samples coloured points with normals on every object's surface.

    Writes `points/S.npz` (per uid: xyz, rgb, normals, all [P, 3] float32) and `points/S.parquet` (uid, status, error,
    centre and scale that normalised the mesh, the axis of the file that points up, faces).
    """
    import pyarrow as pa

    tasks = _mesh_tasks(config, shard, "sample")
    compute = in_workers(_sample, threads, config.workers.load_limits)
    rows: list[Row] = []

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for row, files in over_objects(job(config, "sample", shard), tasks, compute):
            rows.append(row)
            for name, data in files:
                yield f"{row['uid']}/{name}", np.load(io.BytesIO(data), allow_pickle=False)

    write_arrays(path(config, "points", shard, ".npz"), arrays())
    if turned := sum(row.get("up_axis") == "z" for row in rows):
        log.info("%d of %d meshes were turned, because Z is up in their files", turned, len(rows))
    extra = {"centre": pa.list_(pa.float64()), "scale": pa.float64(), "up_axis": pa.string(), "faces": pa.int64()}
    write_table(path(config, "points", shard, ".parquet"), rows, stage_schema(extra))


def _sample(to_read: ToRead) -> tuple[Row, Files]:
    mesh, count = to_read.load(), to_read.config.points.count
    files = []
    for name, array in zip(("xyz", "rgb", "normals"), sample_points(mesh, count, to_read.seed), strict=True):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        files.append((name, buffer.getvalue()))
    found = {"centre": mesh.centre.tolist(), "scale": mesh.scale, "up_axis": mesh.up_axis}
    return {**found, "faces": mesh.face_count}, files


def view(config: Config, shard: str, threads: int) -> None:
    """Renders views of every object: the canonical views for the fit, then the held-out views.

    Writes `views/S.tar` (uid/000.png … RGBA, uid/cameras.json) and `views/S.parquet` (uid, status, error, thumbnail:
    the view that shows the object best, WebP over white; note: what of the mesh may have been read wrongly, if any).
    """
    import pyarrow as pa

    tasks = _mesh_tasks(config, shard, "view")
    compute = in_workers(_view, threads, config.workers.load_limits)
    write_objects(job(config, "view", shard), tasks, compute, {_THUMBNAIL: pa.binary(), "note": pa.string()})


def _view(to_read: ToRead) -> tuple[Row, Files]:
    mesh = to_read.load()
    rgba, viewmats, Ks = views.posed(mesh, to_read.config.views)
    note = "; ".join(filter(None, (mesh.note, agreement.apart(mesh, to_read.seed)))) or None
    best = Image.fromarray(rgba[cameras.showing(viewmats[: to_read.config.views.count])], "RGBA")
    over_white = Image.alpha_composite(Image.new("RGBA", best.size, "white"), best).convert("RGB")
    thumbnail = io.BytesIO()
    over_white.save(thumbnail, "WEBP", quality=90)
    return {"note": note}, [*views.files(rgba, viewmats, Ks), (_THUMBNAIL, thumbnail.getvalue())]
