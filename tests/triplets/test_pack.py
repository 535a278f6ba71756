import json
import tarfile

import numpy as np
import pytest

from clipgs.core.bundles import read_table, read_tar
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check
from clipgs.splats.gaussians import Gaussians
from clipgs.triplets.pack import merge_index


def test_members_of_an_object(shard):
    shard.pack()
    names = [name for name, _ in read_tar(shard.tar)]
    assert [name for name in names if name.startswith("a_mug.")] == [
        *(f"a_mug.{view:02d}.webp" for view in range(4)),
        "a_mug.json",
        "a_mug.ply",
        "a_mug.txt",
    ]
    assert [name.split(".")[0] for name in names] == sorted(7 * ["a_mug", "b-mug", "c" * 64])
    files = dict(read_tar(shard.tar))
    assert files["b-mug.txt"].decode() == "a mugé 0"
    assert len(Gaussians.from_ply(files["b-mug.ply"])) == 5
    check(shard.tar)


def test_json_says_all_that_is_needed_to_use_and_credit_the_object(shard):
    shard.pack()
    meta = json.loads(dict(read_tar(shard.tar))["b-mug.json"])
    cameras = meta.pop("cameras")
    assert meta == {
        "uid": "b-mug",
        "file": "in/b-mug.glb",
        "shard": "00000",
        "split": "train",
        "group": "b-mug",
        "caption": "a mugé 0",
        "caption_source": "catalog text",
        "caption_score": None,
        "category": "mug",
        "license": "CC-BY-4.0",
        "credit": "A. Maker 0",
        "page": "https://example.org/0",
        "quality": {"psnr": 35.5, "psnr_foreground": 30.25, "ssim": 0.98, "alpha_iou": 0.99, "gaussians": 5},
        "mesh": {"source": "folder", "sha256": 64 * "a", "up_axis": "y"},
        "mesh_to_splat": {"centre": [1.0, 2.0, 3.0], "scale": 0.5},
    }
    assert cameras["convention"] == "opencv world-to-camera"
    assert cameras["pixels"] == 32
    expected = shard.inputs["cameras"]
    assert np.array_equal(np.array(cameras["viewmats"], np.float32), expected.viewmats)  # to the last bit
    assert np.array_equal(np.array(cameras["Ks"], np.float32), expected.Ks)


def test_every_object_is_a_row_with_its_place_or_its_failure(shard):
    rows = {row["uid"]: row for row in shard.pack()}
    stored = {row["uid"]: row for row in read_table(shard.table)}
    assert {uid: row["status"] for uid, row in stored.items()} == {uid: row["status"] for uid, row in rows.items()}
    assert (stored["d"]["status"], stored["d"]["stage"]) == ("failed", "fit")
    assert "12.3 dB" in stored["d"]["error"]
    assert (stored["e"]["stage"], stored["e"]["error"]) == ("catalog", "duplicate of b-mug")
    assert stored["e"]["license"] == "CC-BY-4.0"
    assert {uid: row["file"] for uid, row in stored.items()} == {uid: f"in/{uid}.glb" for uid in stored}
    with tarfile.open(shard.tar) as tar:
        starts = {}
        for info in tar:
            starts.setdefault(info.name.split(".")[0], info.offset)
    for uid, start in starts.items():
        assert stored[uid]["offset"] == start
        assert stored[uid]["gaussians"] in (5, 6, 7)


def test_the_first_failure_counts(shard):
    shard.inputs["stages"]["fetch"][3] |= {"status": "failed", "error": "no such file"}
    row = {row["uid"]: row for row in shard.pack()}["d"]
    assert (row["stage"], row["error"]) == ("fetch", "no such file")


def test_same_input_same_bytes_in_any_order(shard):
    shard.pack()
    before = shard.tar.read_bytes(), shard.table.read_bytes()
    for rows in (shard.inputs["objects"], shard.inputs["labels"], *shard.inputs["stages"].values()):
        rows.reverse()
    shard.pack()
    assert (shard.tar.read_bytes(), shard.table.read_bytes()) == before


def test_what_no_stage_failed_on_must_be_there(shard):
    del shard.inputs["stages"]["caption"][0]
    with pytest.raises(ClipgsError, match="b-mug has no row of the stage caption, though no stage failed on it"):
        shard.pack()
    assert not shard.tar.exists()


def test_an_object_missing_from_a_tar(shard):
    shard.inputs["stages"]["fit"][3]["status"] = "ok"
    with pytest.raises(ClipgsError, match="d has no splat, though no stage failed on it"):
        shard.pack()


def test_a_shard_where_all_failed(shard):
    for row in shard.inputs["stages"]["fit"]:
        row |= {"status": "failed", "error": "diverged"}
    assert {row["status"] for row in shard.pack()} == {"failed"}
    assert list(read_tar(shard.tar)) == []
    merge_index([shard.table], shard.folder / "index.parquet")
    assert read_table(shard.folder / "index.parquet") == []


def test_index_holds_the_packed_objects_of_all_shards(packed):
    index = read_table(packed[0].tar.parent / "index.parquet")
    places = {"00000": ("a_mug", "b-mug", "c" * 64), "00001": ("f", "g", "h")}
    assert [(row["shard"], row["uid"]) for row in index] == [(shard, uid) for shard in places for uid in places[shard]]
    assert set(index[0]) >= {"split", "group", "category", "caption", "license", "credit", "psnr", "gaussians", "file"}
    assert not set(index[0]) & {"status", "stage", "error"}
    again = packed[0].folder / "again.parquet"
    merge_index([shard.table for shard in reversed(packed)], again)
    assert again.read_bytes() == (packed[0].tar.parent / "index.parquet").read_bytes()
