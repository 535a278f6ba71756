import pickle

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from clipgs.core.errors import ClipgsError
from clipgs.triplets import TripletDataset, collate


@pytest.fixture
def folder(packed):
    return packed[0].tar.parent


def test_items(folder):
    dataset = TripletDataset(folder)
    assert len(dataset) == 6
    item = dataset[1]
    assert set(item) == {"uid", "gaussians", "images", "text", "meta"}
    assert (item["uid"], item["text"]) == ("b-mug", "a mugé 0")
    assert item["gaussians"].means.shape == (5, 3)
    assert item["images"].shape == (4, 32, 32, 3)
    assert item["images"].dtype == torch.uint8
    assert item["meta"]["credit"] == "A. Maker 0"
    assert [item["uid"] for item in dataset] == list(dataset.uids)


def test_an_index_is_one_whole_number(folder):
    dataset = TripletDataset(folder)
    for one in (1, np.int64(1), np.array(1), torch.tensor(1), -5):
        assert dataset[one]["uid"] == "b-mug"
        assert dataset.shard(one) == "00000"
        assert dataset.gaussians(one).means.shape == (5, 3)
        assert "b-mug.txt" in dataset.members(one)
    for wrong in ([0, 1], np.array([0, 1]), slice(0, 2), 1.0, "b-mug", None):
        for read in (dataset.__getitem__, dataset.members, dataset.gaussians, dataset.shard):
            with pytest.raises(
                TypeError, match=r"index of a triplet is one whole number, not .*; for several use torch"
            ):
                read(wrong)
    with pytest.raises(IndexError):
        dataset[6]
    assert [item["uid"] for item in torch.utils.data.Subset(dataset, [0, 1])] == ["a_mug", "b-mug"]


def test_one_shard_needs_no_list(folder):
    (alone, listed) = (TripletDataset(folder, shards=shards) for shards in ("00001", ["00001"]))
    assert list(alone.uids) == list(listed.uids) == ["f", "g", "h"]


def test_splits(folder):
    uids = {split: [str(uid) for uid in TripletDataset(folder, split).uids] for split in ("train", "test")}
    assert uids == {"train": ["b-mug", "c" * 64, "f", "h"], "test": ["a_mug", "g"]}
    with pytest.raises(ClipgsError, match=r"no split validation \(it has: test, train\)"):
        TripletDataset(folder, "validation")


def test_loader_with_workers_gives_the_same_batches(folder):
    dataset = pickle.loads(pickle.dumps(TripletDataset(folder)))
    (batch,) = DataLoader(dataset, batch_size=6, collate_fn=collate)
    assert batch["gaussians"].means.shape == (6, 7, 3)
    assert batch["gaussians"].count.tolist() == [6, 5, 7, 5, 6, 7]
    assert batch["images"].shape == (6, 4, 32, 32, 3)
    assert batch["text"][1] == "a mugé 0"
    assert torch.equal(batch["gaussians"][2].means, dataset[2]["gaussians"].means)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves its tar open
def test_the_webdataset_library_reads_the_tars(folder):
    samples = list(webdataset.WebDataset(str(folder / "00000.tar"), shardshuffle=False).decode())
    dataset = TripletDataset(folder)
    assert [sample["__key__"] for sample in samples] == [str(uid) for uid in dataset.uids[:3]]
    for i, sample in enumerate(samples):
        assert sample["txt"] == dataset[i]["text"]
        assert sample["json"] == dataset[i]["meta"]
        assert sample["03.webp"] == dataset.members(i)[f"{sample['__key__']}.03.webp"]
        assert sample["ply"] == dataset.members(i)[f"{sample['__key__']}.ply"]


def test_a_tar_cut_short_is_found_at_once(folder):
    tar = folder / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-12000])
    with pytest.raises(ClipgsError, match=r"00001\.tar is cut short.*snakemake --force .*00001\.tar"):
        TripletDataset(folder)


@pytest.mark.parametrize("place", [100, 512, 700, 3000])  # in headers and in data
def test_a_damaged_tar_names_itself_and_the_command(folder, place):
    tar = folder / "00001.tar"
    dataset = TripletDataset(folder)
    data = bytearray(tar.read_bytes())
    data[place] ^= 0x55
    tar.write_bytes(data)
    with pytest.raises(ClipgsError, match=r"00001\.tar: the files of f .*snakemake --force .*00001\.tar"):
        dataset[3]
    assert dataset[4]["uid"] == "g"


def test_missing_files(folder):
    (folder / "00001.tar").unlink()
    with pytest.raises(ClipgsError, match=r"00001\.tar is missing"):
        TripletDataset(folder)
    index = folder / "index.parquet"
    index.write_bytes(index.read_bytes()[:300])
    with pytest.raises(ClipgsError, match=r"index\.parquet cannot be read"):
        TripletDataset(folder)
    index.unlink()
    with pytest.raises(ClipgsError, match=r"index\.parquet is missing"):
        TripletDataset(folder)
