"""Training goes on where it can; where it cannot, it says why and keeps what there was."""

import json
import logging
import shutil
from functools import partial

import pytest
from safetensors.numpy import load_file, save_file

import clipgs.encoder.model
from clipgs import config as configuration
from clipgs.core.bundles import TarWriter, read_metadata, read_table, tar_objects, write_table, write_tensors
from clipgs.core.seeds import json_digest
from clipgs.encoder import ClipGS
from clipgs.teacher import features
from clipgs.training import distributed, runs
from clipgs.training.identity import bridged, obstacles, run_record
from clipgs.training.trainer import Trainer, train
from clipgs.triplets.pack import schema
from tests.training.small_dataset import SHAPE, lines, make, make_shard, settings, write_features

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(Exception):
    pass


def of_small_shape(encoder, dim, shape=None):
    return ClipGS(encoder, dim, SHAPE)


@pytest.fixture(autouse=True)
def small_encoder(monkeypatch):
    """Smaller than any size that the configuration has."""
    monkeypatch.setattr(clipgs.encoder.model, "ClipGS", of_small_shape)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run of nine steps."""
    folder = tmp_path_factory.mktemp("finished")
    config = settings(folder)
    make(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipgs.encoder.model, "ClipGS", of_small_shape)
        train(config, "cpu", 1)
    return folder


@pytest.fixture
def finished(original, tmp_path):
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return settings(tmp_path)


def changed(config, **more):
    return configuration.check(configuration.merge(config.model_dump(mode="json"), more))


def said(caplog, config):
    """Trains, and gives what the log says of the state."""
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(config, "cpu", 1)
    (line,) = [line for line in caplog.messages if line.startswith(("train: resumes", "train: begins", "train: all"))]
    return line


def steps(config):
    return [line["step"] for line in lines(config) if "loss" in line]


def stopping_at(monkeypatch, step):
    """Training is killed instead of taking the step of this number."""
    take = Trainer.train_step

    def stops(self, batch):
        if self.step == step:
            raise Killed
        return take(self, batch)

    monkeypatch.setattr(Trainer, "train_step", stops)


def pack_again(config, shard):
    """The shard's tar with the same splats, renders and captions, and one more field in each `uid.json`."""
    tar = config.output_path / "triplets" / f"{shard}.tar"
    files = {uid: members.read() for uid, members in tar_objects(tar).items()}
    with TarWriter(tar) as writer:
        for uid, members in files.items():
            for name, data in members.items():
                more = json.dumps(json.loads(data) | {"note": "new"}).encode() if name == "json" else data
                writer.add(f"{uid}.{name}", more)


def edit_captions(config, shard):
    table = config.output_path / "triplets" / f"{shard}.parquet"
    rows = read_table(table)
    rows[3]["caption"] = "another"
    write_table(table, rows, schema())


# --- the same inputs ---


def test_a_finished_run_of_the_same_data_trains_nothing_and_is_written_again(finished, monkeypatch, caplog):
    folder = runs.run_path(finished)
    names = ("model.safetensors", "config.yaml", "README.md", "metrics.jsonl", "inputs.json")
    before = {name: (folder / name).read_bytes() for name in names}
    for name in names[:3]:
        (folder / name).unlink()
    tar = finished.output_path / "triplets" / "00001.tar"
    bytes_before = tar.read_bytes()
    pack_again(finished, "00001")
    assert tar.read_bytes() != bytes_before
    again = features.read(finished, "00001")
    write_features(finished, "00001", again.uids, again.images.clone(), again.texts.clone(), note="of no effect")
    stopping_at(monkeypatch, 9)
    records = {file.name: file.stat().st_mtime_ns for file in (finished.output_path / "work" / "train").glob("*.npy")}
    for config in (finished, changed(finished, workers={"loaders": 1, "checkpoint_steps": 1}, device="auto")):
        assert said(caplog, config) == ("train: all 9 steps of these inputs are done, so there is nothing to train")
        assert {name: (folder / name).read_bytes() for name in names} == before
    assert {file.name for file in (finished.output_path / "work" / "train").glob("*.npy")} == records.keys()
    assert not (folder / "state.old").exists()


def test_a_run_writes_down_what_it_was_trained_on(finished):
    inputs = json.loads((runs.run_path(finished) / "inputs.json").read_text())
    assert inputs["shards"] == ["00000", "00001"]
    assert {name: shard["objects"] for name, shard in inputs["data"]["shards"].items()} == {"00000": 16, "00001": 16}
    assert inputs["data"]["teacher_weights"] == 64 * "0"
    state = read_metadata(runs.run_path(finished) / "state" / "step-00000009.safetensors")
    assert state["record"]["data"] == inputs["data"]
    model = read_metadata(runs.run_path(finished) / "model.safetensors")
    assert model["data_sha256"] == json_digest(inputs["data"])
    edit_captions(finished, "00001")
    train(finished, "cpu", 1)
    later = json.loads((runs.run_path(finished) / "inputs.json").read_text())
    assert later["data"]["shards"]["00000"] == inputs["data"]["shards"]["00000"]
    captions = {one["data"]["shards"]["00001"].pop("captions") for one in (inputs, later)}
    assert len(captions) == 2
    assert later == inputs


def test_inputs_are_on_disk_before_the_first_step(tmp_path, monkeypatch):
    config = settings(tmp_path)
    make(config)
    stopping_at(monkeypatch, 0)
    with pytest.raises(Killed):
        train(config, "cpu", 1)
    assert json.loads((runs.run_path(config) / "inputs.json").read_text())["data"]["shards"].keys() == {
        "00000",
        "00001",
    }


# --- other inputs ---


def fewer_objects(config):
    make_shard(config, "00001", [f"s1o{i:03d}" for i in range(15)], ("train",) * 6 + ("validation", "test"))


def another_teacher(config):
    found = {shard: features.read(config, shard) for shard in ("00000", "00001")}
    for shard, of_shard in found.items():
        tensors = (of_shard.images.clone(), of_shard.texts.clone())
        write_features(config, shard, of_shard.uids, *tensors, weights_sha256=64 * "1")


@pytest.mark.parametrize(
    ("change", "settings_changed", "wanted"),
    [
        (None, {"training": {"lr": 0.004}}, "of other inputs: training.lr 0.002 -> 0.004"),
        (None, {"encoder": {"drop_path": 0.1}, "training": {"epochs": 4}}, "inputs: encoder.drop_path 0.0 -> 0.1"),
        (fewer_objects, {}, "inputs: shard 00001 has 15 objects instead of 16"),
        (partial(edit_captions, shard="00001"), {}, "inputs: shard 00001 has other captions"),
        (another_teacher, {}, "inputs: the teacher weights changed"),
        (None, {"training": {"epochs": 2}}, "after step 9, and training.epochs = 2 ends at 6"),
    ],
)
def test_a_state_of_other_inputs_is_kept_and_what_differs_is_said(finished, caplog, change, settings_changed, wanted):
    folder = runs.run_path(finished)
    before = {file.name: file.read_bytes() for file in (folder / "state").iterdir()}
    before |= {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "speed.jsonl")}
    if change:
        change(finished)
    config = changed(finished, **settings_changed)
    line = said(caplog, config)
    assert line.startswith("train: begins anew, because the last state cannot be used: it is ")
    assert f"{wanted}; it is kept in {folder / 'state.old'}" in line
    assert line.endswith("state.old")
    assert {file.name: file.read_bytes() for file in (folder / "state.old").iterdir()} == before
    assert steps(config) == list(range(1, 1 + config.training.epochs * 3))


def test_the_first_state_that_was_kept_gives_way_to_the_next_and_that_is_said(finished, caplog):
    said(caplog, changed(finished, training={"lr": 0.004}))
    line = said(caplog, changed(finished, training={"lr": 0.003}))
    assert line.endswith("state.old, in place of an earlier one")
    (kept,) = (runs.run_path(finished) / "state.old").glob("step-*")
    assert read_metadata(kept)["record"]["settings"]["training.lr"] == 0.004


def cut_short(folder):
    file = folder / "step-00000009.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def no_tensors(folder):
    (folder / "step-00000009.safetensors").write_bytes(b"not a state")


def another_model(folder):
    file = folder / "step-00000009.safetensors"
    tensors, notes = load_file(file), read_metadata(file)
    del tensors[min(name for name in tensors if name.startswith("model."))]
    write_tensors(file, tensors, notes, checksum=False)


def no_best_model(folder):
    (file,) = folder.glob("best-*")
    file.unlink()


def of_an_older_version(folder):
    file = folder / "step-00000009.safetensors"
    write_tensors(file, load_file(file), {"step": 9, "settings": "{} 1 abc", "best_step": 9}, checksum=False)


def of_the_first_version(folder):
    file = folder / "step-00000009.safetensors"
    save_file(load_file(file), file, {"step": "9", "settings": "{} 1 abc"})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut_short, "its file, or that of its best model, is damaged"),
        (no_tensors, "its file, or that of its best model, is damaged"),
        (no_best_model, "its file, or that of its best model, is damaged"),
        (another_model, "its tensors are not those of the model"),
        (of_an_older_version, "another version of the program wrote it"),
        (of_the_first_version, "another version of the program wrote it"),
    ],
)
def test_a_state_that_cannot_be_read_is_kept_too(finished, caplog, damage, reason):
    folder = runs.run_path(finished)
    model = (folder / "model.safetensors").read_bytes()
    damage(folder / "state")
    assert f"cannot be used: {reason}; it is kept in {folder / 'state.old'}" in said(caplog, finished)
    assert (folder / "state.old" / "step-00000009.safetensors").exists()
    assert steps(finished) == list(range(1, 10))
    assert (folder / "model.safetensors").read_bytes() == model


def test_first_weights_are_known_by_their_bytes(finished, tmp_path, monkeypatch, caplog):
    """A point encoder that was trained again gives another run; the same one in another folder does not."""
    for name in ("one", "two"):
        shutil.copytree(runs.run_path(finished), tmp_path / name)
    start = {"initialisation": "points", "weights": str(tmp_path / "one")}
    config = changed(finished, training={"run": "from"}, encoder=start)
    train(config, "cpu", 1)
    with monkeypatch.context() as patch:
        stopping_at(patch, 9)
        assert said(caplog, changed(config, encoder={"weights": str(tmp_path / "two")})).endswith("nothing to train")
    weights = load_file(tmp_path / "one" / "model.safetensors")
    write_tensors(tmp_path / "one" / "model.safetensors", {name: 1.01 * value for name, value in weights.items()})
    assert "inputs: the first weights changed; it is kept" in said(caplog, config)


# --- other epochs, other processes ---


@pytest.mark.parametrize(
    ("encoder", "training", "means"),
    [
        ({"batch_norm": "frozen"}, {}, "rounding"),
        ({"batch_norm": "sync"}, {}, "rounding"),
        ({"batch_norm": "sync"}, {"micro_batch": 4}, "rounding, batch norms over 8 objects instead of 4"),
        ({"batch_norm": "local"}, {}, "rounding, batch norms over 4 objects instead of 8"),
        ({"batch_norm": "local"}, {"micro_batch": 4}, "rounding"),
        ({"batch_norm": "frozen", "drop_path": 0.1}, {}, "rounding, other draws of dropout"),
        ({"batch_norm": "frozen", "patch_dropout": 0.1}, {}, "rounding, other draws of dropout"),
    ],
)
def test_what_another_number_of_processes_means(tmp_path, encoder, training, means):
    config = settings(tmp_path, encoder=encoder, training=training)
    old, new = (run_record(config, processes, {"shards": {}}) for processes in (1, 2))
    assert obstacles(old, new) == ""
    assert bridged(old, new, 4, 9) == [f"processes 1 -> 2: later steps differ by {means}"]
    assert bridged(old, new, 9, 9) == []


def test_many_differences_are_counted(tmp_path):
    shard = {"objects": 3, "captions": "a", "splats": "a", "features": "a"}
    shards = {f"{i:05d}": shard for i in range(9)}
    old = run_record(settings(tmp_path), 1, {"record_format": 2, "shards": shards})
    other = {name: {**one, "splats": "b", "features": "b"} for name, one in list(shards.items())[1:]}
    new = run_record(settings(tmp_path, encoder={"weights": "x"}), 1, {"record_format": 3, "shards": other})
    assert obstacles(old, new) == (
        "the record format changed; shard 00000 is gone; shard 00001 has other splats and features; "
        "shard 00002 has other splats and features and 6 more"
    )


def test_more_epochs_go_on(finished, caplog, monkeypatch):
    folder = runs.run_path(finished)
    before = (folder / "metrics.jsonl").read_text()
    longer = changed(finished, training={"epochs": 4})
    assert runs.begun_shards(longer, "train") == ["00000", "00001"]
    line = said(caplog, longer)
    change = (
        "training.epochs 3 -> 4: the first 9 steps had the learning rates of 3 epochs, so the result is not that of a "
        "run from the start"
    )
    assert line == f"train: resumes after step 9 of 12; {change}"
    assert (folder / "metrics.jsonl").read_text().startswith(before)
    assert steps(longer) == list(range(1, 13))
    assert f"Changed on the way, after step 9, {change}." in (folder / "README.md").read_text()
    assert not (folder / "state.old").exists()
    card = (folder / "README.md").read_bytes()
    stopping_at(monkeypatch, 12)
    assert said(caplog, longer).endswith("nothing to train")
    assert (folder / "README.md").read_bytes() == card  # it still says so


def test_another_number_of_processes_goes_on_and_differs_by_rounding(tmp_path, monkeypatch, caplog):
    """One process, killed; two, to the end; and one again, for an epoch more."""
    config = settings(tmp_path, encoder={"batch_norm": "sync"})
    monkeypatch.undo()  # the processes that are launched have the encoder of the configuration
    make(config)
    alone = settings(tmp_path / "alone", encoder={"batch_norm": "sync"})
    make(alone)
    train(alone, "cpu", 1)
    with monkeypatch.context() as patch:
        stopping_at(patch, 5)
        with pytest.raises(Killed):
            train(config, "cpu", 1)
    with caplog.at_level(logging.INFO):
        distributed.launch(config, 2)
    assert "resumes after step 4 of 9; processes 1 -> 2: later steps differ by rounding" in caplog.text
    found, wanted = ([line for line in lines(one) if "loss" in line] for one in (config, alone))
    assert found[:4] == wanted[:4]
    assert [line["step"] for line in found] == list(range(1, 10))
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in wanted], rel=1e-3)
    longer = changed(config, training={"epochs": 4})
    assert "resumes after step 9 of 12; processes 2 -> 1: later steps differ by rounding; training.epochs" in (
        said(caplog, longer)
    )
    assert steps(longer) == list(range(1, 13))
