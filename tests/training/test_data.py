import logging
import os
import sys
import time

import numpy as np
import pytest
import torch

from clipgs.core.bundles import TarWriter, read_table, tar_objects, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.prefetch import Prefetch
from clipgs.encoder import prepare
from clipgs.encoder.groups import nearest
from clipgs.splats.gaussians import PADDING_LOGIT, Gaussians
from clipgs.teacher import features
from clipgs.training.data import TrainingBatches, TrainingData, compact, pack, unpack
from clipgs.training.gather import Rows
from clipgs.triplets.pack import schema
from tests.training.small_dataset import DIM, PICTURES, make, make_shard, settings, splat, unit, write_features


@pytest.fixture
def config(tmp_path):
    config = settings(tmp_path)
    make(config)
    return config


def opened(config, shards=("00000", "00001")):
    return TrainingData(config, shards, [compact(config, shard) for shard in shards])


def test_a_record_holds_what_the_encoder_would_be_given(config):
    data = opened(config)
    uid = "s0o003"
    (row,) = np.flatnonzero(data.uids == uid)
    batch = data.batch(np.array([row]), np.zeros((1, 1), int), np.zeros((1, 9), np.float32))
    ply = tar_objects(config.output_path / "triplets" / "00000.tar")[uid].read()["ply"]
    wanted = prepare(Gaussians.from_ply(ply), config.encoder)
    count = int(batch.count)
    assert count == min(len(wanted), 96)
    found = batch.gaussians()
    for name in ("means", "log_scales", "opacity_logits", "colors"):
        assert torch.allclose(getattr(found, name)[0, :count], getattr(wanted, name)[:count], atol=2e-3), name
    quats = torch.nn.functional.normalize(wanted.quats_wxyz[:count], dim=-1)
    assert torch.allclose(found.quats_wxyz[0, :count], quats, atol=1e-3)
    assert batch.rows.dtype == torch.float16
    assert batch.rows.shape == (1, 96, 14)
    assert (found.opacity_logits[0, count:] == PADDING_LOGIT).all()
    assert (found.means[0, count:] == found.means[0, 0]).all()


@pytest.mark.parametrize("rows", [1, 5, 50, 200])
def test_records_of_any_number_of_gaussians(tmp_path, rows):
    encoder = settings(tmp_path).encoder
    one = splat(0, 0, rows)
    record = pack(prepare(one, encoder), encoder)
    assert record.count == min(rows, 96)
    assert record.rows.shape == (96, 14)
    count = torch.tensor([record.count])
    gaussians = unpack(torch.from_numpy(record.rows)[None], count)
    assert (gaussians.opacities[0] > 0).sum() == record.count
    centres = gaussians.means[0, torch.arange(8) % record.count]
    wanted = nearest(gaussians.means, centres[None], 8, count)[0]
    found = torch.from_numpy(record.neighbours)
    for rows_of_patch in (wanted, found):  # equal distances may stand in another order
        assert rows_of_patch.shape == (8, 8)
        assert rows_of_patch.max() < record.count
    distances = [(gaussians.means[0, r] - centres[:, None]).norm(dim=-1) for r in (wanted, found)]
    assert torch.allclose(*distances, atol=1e-6)


def test_an_object_that_cannot_be_used_is_left_out_and_named(config, caplog):
    tar = config.output_path / "triplets" / "00000.tar"
    files = {uid: members.read() for uid, members in tar_objects(tar).items()}
    clear = splat(0, 0)
    clear = Gaussians(clear.means, clear.quats_wxyz, clear.log_scales, clear.opacity_logits - 20, clear.colors)
    files["s0o005"]["ply"] = clear.to_ply()
    with TarWriter(tar) as writer:
        for uid, members in files.items():
            for name, data in members.items():
                writer.add(f"{uid}.{name}", data)
    with caplog.at_level(logging.WARNING):
        data = opened(config)
    assert len(data.uids) == 31
    assert "s0o005" not in data.uids
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "s0o005 of shard 00000" in line
    assert "opacity" in line


def test_records_are_written_once_and_again_when_something_changed(config, tmp_path):
    file = compact(config, "00000")
    written, bytes_before = file.stat().st_ino, file.read_bytes()
    assert compact(config, "00000") == file
    assert file.stat().st_ino == written
    fewer = compact(settings(tmp_path, encoder={"gaussians": 40}), "00000")
    assert fewer != file
    assert file.exists()  # a run beside this one may be about to open it
    os.utime(file, (0, 0))
    compact(settings(tmp_path, encoder={"gaussians": 48}), "00000")
    assert fewer.exists()
    assert not file.exists()
    assert compact(config, "00000").read_bytes() == bytes_before
    make_shard(config, "00000", ["other"])
    assert compact(config, "00000") != file


def test_the_inputs_are_what_training_reads_and_nothing_else(config, monkeypatch):
    def differing(before):
        after = opened(config).inputs
        assert {**before, "shards": 0} == {**after, "shards": 0}
        pairs = [(before["shards"][shard], after["shards"][shard]) for shard in ("00000", "00001")]
        assert pairs[0][0] == pairs[0][1]
        return [part for part in pairs[1][0] if pairs[1][0][part] != pairs[1][1][part]]

    def write_tar(**changed):
        with TarWriter(tar) as writer:
            for uid, members in files.items():
                for name, data in (members | (changed if uid == "s1o003" else {})).items():
                    writer.add(f"{uid}.{name}", data)

    tar = config.output_path / "triplets" / "00001.tar"
    files = {uid: members.read() for uid, members in tar_objects(tar).items()}
    before = opened(config).inputs
    with monkeypatch.context() as patch:  # from the tars' checksums, without a look at the splats
        patch.setattr("clipgs.training.data.tar_objects", None)
        assert opened(config).inputs == before
    write_tar(json=b"{}", txt=b"read from the table")
    assert differing(before) == []
    write_tar(ply=files["s1o004"]["ply"])
    assert differing(before) == ["splats"]
    write_tar()
    found = features.read(config, "00001")
    images, texts = found.images.clone(), found.texts.clone()
    write_features(config, "00001", found.uids, images, texts, note="of no effect")
    assert differing(before) == []
    images[3, 2] = images[3, 1]
    write_features(config, "00001", found.uids, images, texts)
    assert differing(before) == ["features"]
    make_shard(config, "00001", [f"s1o{i:03d}" for i in range(15)], ("train",) * 6 + ("validation", "test"))
    assert differing(before) == ["objects", "captions", "splats", "features"]


def test_features_of_other_objects_are_refused(config):
    write_features(config, "00001", ["a", "b"], unit(2, PICTURES, DIM, seed=0).half(), unit(2, DIM, seed=1).half())
    with pytest.raises(ClipgsError, match="features of shard 00001 belong to other objects than its triplets"):
        opened(config)


def test_two_teachers_are_refused_and_named(config):
    uids = [f"s1o{i:03d}" for i in range(16)]
    images, texts = unit(16, PICTURES, DIM, seed=0).half(), unit(16, DIM, seed=1).half()
    write_features(config, "00001", uids, images, texts, teacher="another", weights_sha256=64 * "1")
    with pytest.raises(ClipgsError, match=r"another none .* from small none"):
        opened(config)


def test_another_dimension_is_refused(config):
    uids = [f"s1o{i:03d}" for i in range(16)]
    write_features(config, "00001", uids, unit(16, PICTURES, 7, seed=0).half(), unit(16, 7, seed=1).half())
    with pytest.raises(ClipgsError, match=r"dim 12.*dim 7|7.*12|12.*7") as error:
        opened(config)
    assert "\n" not in str(error.value)


def test_more_views_than_pictures_is_one_line(tmp_path):
    config = settings(tmp_path, training={"views": 7})
    make(config)
    with pytest.raises(ClipgsError, match=r"training.views = 7, but shard 00000 has 6 images.*training\.views to 6"):
        opened(config)


def test_a_batch_larger_than_the_split_is_one_line(tmp_path):
    config = settings(tmp_path, training={"batch": 25})
    make(config)
    data = opened(config)
    with pytest.raises(ClipgsError, match=r"training\.batch = 25, but only 24 objects.*training\.batch to 24"):
        TrainingBatches(data, data.split("train"), config)
    for few, number in ((data.split("train")[:1], "1"), (data.split("train")[:0], "no")):
        with pytest.raises(ClipgsError, match=f"train has {number} object, and training contrasts 2 or more; add"):
            TrainingBatches(data, few, settings(tmp_path, training={"batch": 2}))
    with pytest.raises(ClipgsError, match="8 cannot be shared evenly by 3 processes"):
        TrainingBatches(data, data.split("train"), settings(tmp_path), 0, 3)


def test_captions_that_are_all_equal_are_one_line(config, tmp_path):
    for shard in ("00000", "00001"):
        file = config.output_path / "triplets" / f"{shard}.parquet"
        write_table(file, [row | {"caption": "a misc"} for row in read_table(file)], schema())
    data = opened(config)
    with pytest.raises(ClipgsError, match="all 24 objects of the split train have the same caption, so there is none"):
        TrainingBatches(data, data.split("train"), config)
    TrainingBatches(data, data.split("train"), settings(tmp_path, training={"duplicate_captions": "paper"}))


def test_an_epoch_sees_every_object_once_in_an_order_of_its_own_over_all_shards(config):
    data = opened(config)
    train = data.split("train")
    assert len(train) == 24
    batches = TrainingBatches(data, train, config)
    assert batches.steps_per_epoch == 3
    epochs = [np.concatenate([batches.objects(3 * epoch + step) for step in range(3)]) for epoch in range(2)]
    for seen in epochs:
        assert sorted(seen) == sorted(train)
    assert epochs[0].tolist() != epochs[1].tolist()
    for step in range(6):
        assert len({data.shard_of(uid) for uid in data.uids[batches.objects(step)]}) == 2


def test_a_step_is_the_same_whoever_asks_and_when(config, tmp_path):
    data = opened(config)
    whole = TrainingBatches(data, data.split("train"), config)
    wanted = whole(4)
    halves = [TrainingBatches(data, data.split("train"), config, rank, 2)(4) for rank in range(2)]
    whole(1)
    again = whole(4)
    for name in ("rows", "count", "neighbours", "texts", "images", "scores", "captions", "draws"):
        joined = torch.cat([getattr(half, name) for half in halves])
        assert torch.equal(getattr(wanted, name), joined), name
        assert torch.equal(getattr(wanted, name), getattr(again, name)), name
    other = settings(tmp_path, training={"seed": 1})
    assert not torch.equal(TrainingBatches(data, data.split("train"), other)(4).draws, wanted.draws)


def test_a_batch_has_the_features_of_its_objects(config):
    from clipgs.teacher import features

    data = opened(config)
    batches = TrainingBatches(data, data.split("train"), config)
    batch = batches(0)
    for i, uid in enumerate(data.uids[batches.objects(0)]):
        found = features.read(config, data.shard_of(uid))
        row = list(found.uids).index(uid)
        assert torch.equal(batch.texts[i], torch.as_tensor(found.texts[row]))
        views = [[v for v in range(PICTURES) if torch.equal(found.images[row][v], image)] for image in batch.images[i]]
        assert all(len(view) == 1 for view in views)
        assert views[0] != views[1]
        assert torch.equal(batch.scores[i], found.scores[row][[view[0] for view in views]])
    part = batch[2:5]
    assert len(part) == 3
    assert torch.equal(part.scores, batch.scores[2:5])


def test_equal_captions_have_equal_numbers(config):
    data = opened(config)
    captions = data.batch(np.arange(32), np.zeros((32, 1), int), np.zeros((32, 9), np.float32)).captions
    assert torch.equal(captions[:16], captions[16:])  # both shards have the same texts
    assert len(captions.unique()) == 16


def test_captions_that_evaluation_takes_for_equal_are_no_negatives(config):
    """Case, white space and a full stop make no other text (evaluation.gallery)."""
    file = config.output_path / "triplets" / "00001.parquet"
    rows = read_table(file)
    for row in rows:
        row["caption"] = f" {row['caption'].upper()}."
    write_table(file, rows, schema())
    data = opened(config)
    captions = data.batch(np.arange(32), np.zeros((32, 1), int), np.zeros((32, 9), np.float32)).captions
    assert torch.equal(captions[:16], captions[16:])


def test_batches_come_in_order_and_hardly_any_time_is_waited():
    def read(item):
        time.sleep(0.004 * (item % 3))
        return torch.tensor(item)

    prefetch = Prefetch(read, range(30), 2)
    start = time.perf_counter()
    seen = []
    for value in prefetch:
        time.sleep(0.01)  # a step
        seen.append(int(value))
    assert seen == list(range(30))
    assert prefetch.waited_seconds < 0.05 * (time.perf_counter() - start) + 0.01


def test_what_goes_wrong_while_reading_ahead_is_told(config):
    def read(item):
        if item == 3:
            raise ClipgsError("no such shard")
        return torch.tensor(item)

    with pytest.raises(ClipgsError, match="no such shard"):
        list(Prefetch(read, range(10), 2))
    slow = Prefetch(lambda item: time.sleep(0.05) or torch.tensor(item), range(2), 1)
    list(slow)
    assert slow.waited_seconds > 0.05


def test_reading_is_fast(tmp_path):
    """A step of a large model takes far longer than this an object: 10,000 Gaussians are 280 kB to copy."""
    config = settings(tmp_path, encoder={"gaussians": 10_000}, training={"batch": 16})
    make(config, shards=1, objects=32, splits=("train",))
    data = opened(config, ["00000"])
    batches = TrainingBatches(data, data.split("train"), config)
    batches(0)
    start = time.perf_counter()
    for step in range(10):
        batches(step)
    assert (time.perf_counter() - start) / 160 < 0.003  # seconds an object


def test_the_records_are_mapped_and_not_loaded(config):
    data = opened(config)
    assert all(isinstance(rows.base, np.memmap) for rows in data._rows.arrays)


def test_a_larger_batch_takes_no_more_calls_of_python(config):
    """Each of them takes Python's lock from the thread that launches kernels."""
    data = opened(config)

    def calls(objects):
        counted = []
        sys.setprofile(lambda frame, event, argument: counted.append(event))
        try:
            data.batch(np.arange(objects), np.zeros((objects, 2), int), np.zeros((objects, 9), np.float32))
        finally:
            sys.setprofile(None)
        return len(counted)

    calls(1)
    assert calls(32) <= calls(2) + 5


def test_rows_of_several_arrays_are_copied_together():
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(length, 3, 2)).astype(np.float16) for length in (4, 0, 7)]
    rows = Rows(arrays)
    found = rows(np.array([2, 0, 2, 2]), np.array([6, 3, 0, 6]))
    assert found.dtype == torch.float16
    assert torch.equal(found, torch.from_numpy(np.stack([arrays[2][6], arrays[0][3], arrays[2][0], arrays[2][6]])))
    for array, row in ((0, 4), (1, 0), (2, -1)):
        with pytest.raises(IndexError, match="no row"):
            rows(np.array([2, array]), np.array([0, row]))
    with pytest.raises(ValueError, match="several kinds"):
        Rows([arrays[0], arrays[2][:, :2]])


def test_another_number_of_pictures_is_refused(config):
    uids = ["s1o000"]
    make_shard(config, "00001", uids)
    images, texts = unit(1, PICTURES + 1, DIM, seed=0).half(), unit(1, DIM, seed=1).half()
    write_features(config, "00001", uids, images, texts)
    with pytest.raises(
        ClipgsError, match=f"shard 00001 has features of {PICTURES + 1} images.*first shard of {PICTURES}"
    ):
        opened(config)
