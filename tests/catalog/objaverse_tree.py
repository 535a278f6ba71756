"""Writes what the tests know as Objaverse: a tree in the layout of the dataset and of the objaverse package's cache."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path


def uid_of(index: int) -> str:
    return hashlib.md5(str(index).encode(), usedforsecurity=False).hexdigest()


def annotation(index: int, **changes) -> dict:
    """One object's annotation with Objaverse's keys."""
    uid = uid_of(index)
    faces = 100 * (index + 1)
    entry = {
        "uri": f"https://api.sketchfab.com/v3/models/{uid}",
        "uid": uid,
        "name": f"Thing number {index}",
        "animationCount": 0,
        "viewerUrl": f"https://sketchfab.com/3d-models/{uid}",
        "tags": [{"name": "thing", "slug": "thing"}],
        "categories": [{"name": "furniture-home"}],
        "user": {"username": f"user{index % 3}", "displayName": f"User {index % 3}"},
        "description": "made for a test",
        "faceCount": faces,
        "vertexCount": faces // 2,
        "archives": {"glb": {"size": 1000 + index, "textureCount": index % 2}},
        "license": ("by", "by-nc-sa", "cc0")[index % 3],
    }
    return entry | changes


def glb_of(index: int) -> bytes:
    """Bytes with the header of a GLB of their length; enough for what reads no mesh."""
    body = f"object {index}".encode().ljust(32)
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body


def write_gz(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(value).encode(), mtime=0))


def write_objaverse(
    root: Path,
    objects: int,
    *,
    per_file: int = 5,
    lvis: dict[str, list[int]] | None = None,
    body: Callable[[int], bytes] | None = glb_of,
    **changes,
) -> list[str]:
    """Writes a tree under `root` and returns its uids in order.

    Args:
        per_file: objects of one annotation file, and of one folder of GLBs.
        lvis: category to indices; default: a mug of object 1, a chair of 2 and 3.
        body: gives the bytes of each object's GLB; None writes none.
        changes: `object_3={"license": "by"}` changes single annotations.
    """
    uids = [uid_of(index) for index in range(objects)]
    paths, files = {}, {}
    for index, uid in enumerate(uids):
        folder = f"000-{index // per_file:03d}"
        paths[uid] = f"glbs/{folder}/{uid}.glb"
        files.setdefault(folder, {})[uid] = annotation(index, **changes.get(f"object_{index}", {}))
        if body:
            path = root / paths[uid]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body(index))
    write_gz(root / "object-paths.json.gz", paths)
    for folder, entries in files.items():
        if not (root / f"metadata/{folder}.json.gz").exists():
            write_gz(root / f"metadata/{folder}.json.gz", entries)
    lvis = {"mug": [1], "chair": [2, 3]} if lvis is None else lvis
    write_gz(root / "lvis-annotations.json.gz", {name: [uids[i] for i in indices] for name, indices in lvis.items()})
    return uids
