import math
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import clipgs.encoder
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check
from clipgs.encoder import ClipGS
from clipgs.training import checkpoints, runs, stages
from clipgs.training import trainer as trainer_module
from clipgs.training.augment import augment
from clipgs.training.data import TrainingBatches, TrainingData, compact
from clipgs.training.trainer import Trainer, fixed_running_statistics, middles
from tests.training.small_dataset import (
    DIM,
    KINDS,
    SHAPE,
    lines,
    make,
    make_shard,
    settings,
    splat,
    unit,
    write_features,
)
from tests.training.two_processes import ALONE, ONE_THREAD, SHARDS, assert_equal_gradients, gradients

pytestmark = pytest.mark.usefixtures("one_thread")


def trainer(config, shards=SHARDS):
    data = TrainingData(config, shards, [compact(config, shard) for shard in shards])
    torch.manual_seed(0)
    return Trainer(config, ALONE, ClipGS(config.encoder, data.dim, SHAPE), data)


# --- a large batch in parts ---


@pytest.fixture
def frozen(tmp_path):
    return settings(tmp_path, encoder={"batch_norm": "frozen"})


def in_parts(tmp_path, micro_batch, **encoder):
    return settings(tmp_path, encoder={"batch_norm": "frozen", **encoder}, training={"micro_batch": micro_batch})


@pytest.mark.parametrize("micro_batch", [3, 4])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path, frozen, micro_batch):
    make(frozen)
    whole, _ = gradients(frozen, ALONE)
    parts, _ = gradients(in_parts(tmp_path, micro_batch), ALONE)
    assert_equal_gradients(parts, whole, 1e-5)


def test_the_second_pass_makes_the_first_ones_choices_and_statistics_move_once(tmp_path, monkeypatch):
    config = in_parts(tmp_path, 4, batch_norm="local", patch_dropout=0.5, drop_path=0.5)
    make(config)
    one = trainer(config)
    embed, seen = one._embed, []

    def watched(module, part, index):
        result = embed(module, part, index)
        norm = one.model.tokenizer.points.norm1.running_mean.clone()
        seen.append((torch.is_grad_enabled(), index, result.detach().clone(), norm))
        return result

    monkeypatch.setattr(one, "_embed", watched)
    one.train_step(TrainingBatches(one._data, one._data.split("train"), config)(0))
    assert [(grad, index) for grad, index, _, _ in seen] == [(False, 0), (False, 1), (True, 0), (True, 1)]
    for first, second in (seen[0::2], seen[1::2]):
        assert torch.equal(first[2], second[2])
    assert not torch.equal(seen[0][2], seen[1][2])
    assert not torch.equal(seen[0][3], seen[1][3])
    assert torch.equal(seen[1][3], seen[3][3])


def test_fixed_running_statistics_are_those_of_the_batch_and_stay():
    norm = nn.BatchNorm1d(3)
    values = torch.randn(50, 3) + 5
    with fixed_running_statistics(nn.Sequential(norm)):
        assert norm(values).mean().abs() < 1e-5
    assert (norm.running_mean == 0).all()
    norm(values)
    assert (norm.running_mean > 0.4).all()


def test_positions_are_augmented_in_single_precision(tmp_path, monkeypatch):
    """In bfloat16, which a GPU trains in, they would be moved by as much as a patch has from one to the next."""
    config = settings(tmp_path)
    make(config)
    ours = trainer(config)
    monkeypatch.setattr(ours, "_autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    given = []
    ours.model.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    batch = ours._batches(0)
    ours.train_step(batch)
    wanted = augment(batch.gaussians(), batch.draws)
    assert not torch.equal(wanted.means, batch.gaussians().means)
    for name in ("means", "quats_wxyz", "log_scales", "colors"):
        assert torch.equal(getattr(given[0], name), getattr(wanted, name)), name


@pytest.mark.parametrize("views", [1, 3])
def test_the_step_is_chosen_by_the_same_pictures_whatever_k_is(tmp_path, monkeypatch, views):
    config = settings(tmp_path, training={"views": views})
    make(config)
    one, seen = trainer(config), []
    read = one._data.batch
    monkeypatch.setattr(one._data, "batch", lambda rows, views, draws: seen.append(views) or read(rows, views, draws))
    one._validate(None)
    assert all((pictures == [0, 1, 2, 3, 4, 5]).all() for pictures in seen)


def test_pictures_to_choose_by_look_from_all_heights():
    assert middles(36, 6).tolist() == [3, 9, 15, 21, 27, 33]
    assert middles(4, 6).tolist() == [0, 1, 2, 3]
    assert middles(7, 2).tolist() == [1, 5]


def test_the_temperature_can_learn(tmp_path):
    """At the rate of a weight, a run of 30 steps could not move it by more than its rounding."""
    moved = {}
    for factor in (1.0, 10.0):
        config = settings(tmp_path, training={"epochs": 10, "logit_scale_lr": factor, "run": f"r{factor:.0f}"})
        make(config)
        one = trainer(config)
        before = one.log_scale.item()
        one.run()
        moved[factor] = abs(one.log_scale.item() - before)
    assert moved[10.0] > 4 * moved[1.0]
    assert moved[10.0] > 0.02


@pytest.mark.parametrize(("given", "first", "scale"), [(None, None, 1 / 0.07), (None, 42.0, 42.0), (20.0, 42.0, 20.0)])
def test_the_temperature_starts_where_the_first_weights_left_it(tmp_path, given, first, scale):
    config = settings(tmp_path, training={"logit_scale": given})
    make(config)
    data = TrainingData(config, SHARDS, [compact(config, shard) for shard in SHARDS])
    model = ClipGS(config.encoder, data.dim, SHAPE)
    model.first_logit_scale = first
    assert Trainer(config, ALONE, model, data).log_scale.exp().item() == pytest.approx(scale, rel=1e-5)


# --- a run ---


def test_a_run_learns_and_leaves_what_it_says(tmp_path, monkeypatch):
    config = settings(tmp_path, training={"epochs": 30})
    make(config)
    one = trainer(config)
    one.run()
    steps = [line for line in lines(config) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 91))
    assert sum(line["loss"] for line in steps[-5:]) < 0.7 * sum(line["loss"] for line in steps[:5])
    validations = [line for line in lines(config) if "validation_text_r1" in line]
    assert [line["step"] for line in validations] == list(range(3, 91, 3))
    scores = [(line["validation_text_mrr"] + line["validation_image_mrr"]) / 2 for line in validations]
    for name in ("model.safetensors", "config.yaml", "README.md"):
        check(one.folder / name)
    assert one._best["best_step"] == 3 * (scores.index(max(scores)) + 1)
    card = (one.folder / "README.md").read_text()
    assert f"Step {one._best['best_step']} of 90" in card
    assert "24 objects in 2 shards" in card
    (speed,) = {tuple(line) for line in lines(config, "speed.jsonl")}
    assert speed == ("step", "samples_per_second", "data_wait_fraction")
    assert all(line["samples_per_second"] > 1 for line in lines(config, "speed.jsonl"))
    assert list((one.folder / "tensorboard").iterdir())
    assert len(list((one.folder / "state").iterdir())) == 2  # the last state, and the best model
    monkeypatch.setattr(clipgs.encoder, "ClipGS", partial(ClipGS, shape=SHAPE))  # smaller than any size
    unseen = [splat(kind, seed) for kind in range(KINDS) for seed in range(900, 908)]
    shapes = clipgs.load(one.folder, "cpu").encode(unseen)
    known = (shapes @ unit(KINDS, DIM, seed=0).T).argmax(1) == torch.arange(KINDS).repeat_interleave(8)
    assert known.float().mean() > 0.7  # chance is a quarter


def test_the_test_split_is_never_looked_at(tmp_path):
    config = settings(tmp_path)
    make(config)
    data = trainer(config)._data
    uids = [f"s0o{i:03d}" for i in range(16)]
    from clipgs.teacher import features

    found = features.read(config, "00000")
    images, texts = found.images.clone(), found.texts.clone()
    test = [uids.index(uid) for uid in data.uids[data.split("test")] if uid in uids]
    assert len(test) == 2
    images[test], texts[test] = torch.nan, torch.nan
    write_features(config, "00000", uids, images, texts)
    trainer(config).run()
    assert all(math.isfinite(value) for line in lines(config) for value in line.values())


def test_a_loss_that_is_not_a_number_names_the_object(tmp_path):
    from clipgs.teacher import features

    config = settings(tmp_path)
    make(config)
    found = features.read(config, "00001")
    images = found.images.clone()
    images[2] = torch.nan
    write_features(config, "00001", list(found.uids), images, found.texts.clone())
    with pytest.raises(
        ClipgsError, match=r"step \d: the loss is not finite, because of s1o002 \(shard 00001\)"
    ) as error:
        trainer(config).run()
    assert "\n" not in str(error.value)
    assert not (runs.run_path(config) / "model.safetensors").exists()


def test_a_learning_rate_that_is_too_large_is_said(tmp_path):
    config = settings(tmp_path, training={"lr": 1e30})
    make(config)
    with pytest.raises(ClipgsError, match=r"lower training\.lr"):
        trainer(config).run()


def test_a_handful_of_objects_does_not_choose_the_step(tmp_path, monkeypatch):
    config = settings(tmp_path, training={"choose_from": 100})
    make(config)
    measured = iter([0.7, 0.6, 0.5])
    monkeypatch.setattr(
        trainer_module, "validation_retrieval", lambda *_: dict.fromkeys(("text_mrr", "image_mrr"), next(measured))
    )
    one = trainer(config)
    one.run()
    last = load_file(one.folder / "model.safetensors")
    assert all(torch.equal(last[name], tensor) for name, tensor in one.model.state_dict().items())
    card = (one.folder / "README.md").read_text()
    assert "Step 9 of 9, the last: the validation split has " in card
    assert "text_mrr | 0.5" in card  # measured all the same


def test_the_smallest_batch_and_no_validation_split(tmp_path, caplog):
    config = settings(tmp_path, training={"batch": 2, "micro_batch": 1, "epochs": 1})
    make(config, shards=1, objects=5, splits=("train",))
    one = trainer(config, ["00000"])
    one.run()
    losses = [line["loss"] for line in lines(config)]
    assert len(losses) == 2
    assert min(losses) > 0.01
    check(one.folder / "model.safetensors")
    assert "the validation split has no objects" in (one.folder / "README.md").read_text()


def test_a_run_is_frozen_on_its_shards(tmp_path):
    config = settings(tmp_path)
    make(config)
    assert runs.begun_shards(config, "train") == []
    runs.begin(config, "train", ["00000"])
    assert runs.begun_shards(config, "train") == ["00000"]
    assert runs.begun_shards(settings(tmp_path, training={"epochs": 9}), "train") == ["00000"]  # it goes on
    assert runs.begun_shards(settings(tmp_path, training={"seed": 9}), "train") == []
    assert runs.begun_shards(config, "teacher") == []
    make_shard(config, "00002", ["new"])
    runs.begin(config, "train", ["00000"], {"shards": {}})
    assert runs.begun_shards(config, "train") == ["00000"]
    file = runs.run_path(config) / "inputs.json"
    for text in ("{", "[]", '{"shards": []}', '{"settings": 1, "shards": []}', '{"settings": "{", "shards": []}'):
        file.write_text(text)
        assert runs.begun_shards(config, "train") == []


# --- killed and gone on ---


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
def test_gone_on_after_any_step_it_repeats_the_curve(tmp_path, monkeypatch, at):
    """As if killed: nothing is flushed or written after the step."""
    config = settings(tmp_path, encoder={"patch_dropout": 0.3, "drop_path": 0.2})
    make(config)
    trainer(config).run()
    folder = runs.run_path(config)
    wanted = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors", "README.md")}
    for file in sorted(folder.rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    one = trainer(config)
    step = one.train_step

    def stops(batch):
        if one.step == at:
            raise Killed
        return step(batch)

    monkeypatch.setattr(one, "train_step", stops)
    with pytest.raises(Killed):
        one.run()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "lo')  # a line cut short
    again = trainer(config)
    again.run()
    assert {name: (folder / name).read_bytes() for name in wanted} == wanted


@pytest.mark.parametrize(("share", "steps"), [(0.0, [3, 4, 8, 9]), (math.inf, [3, 4, 6, 8, 9])])
def test_a_validation_is_kept_where_that_is_cheap_and_each_state_holds_the_best_so_far(
    tmp_path, monkeypatch, share, steps
):
    """A small dataset is validated every few steps, and the state of a large model takes seconds to write."""
    monkeypatch.setattr(trainer_module, "_STATE_SHARE", share)
    config = settings(tmp_path, workers={"checkpoint_steps": 4})
    make(config)
    ours, found, measured = trainer(config), {}, iter([0.5, 0.7, 0.6])  # validated after steps 3, 6 and 9

    def retrieval(*_):
        return dict.fromkeys(("text_mrr", "image_mrr"), next(measured))

    monkeypatch.setattr(trainer_module, "validation_retrieval", retrieval)
    save = checkpoints.save_state

    def note(folder, step, *rest):
        save(folder, step, *rest)
        (found[step],) = (file.name for file in folder.glob("best-*.safetensors"))

    monkeypatch.setattr(checkpoints, "save_state", note)
    ours.run()
    assert found == {step: f"best-{3 if step < 6 else 6:08d}.safetensors" for step in steps}
    assert "\nStep 6 of 9, the best" in (ours.folder / "README.md").read_text()


def test_killed_for_real_and_gone_on_it_ends_with_the_same_bytes(tmp_path):
    more = {"training": {"epochs": 4}, "encoder": {"patch_dropout": 0.3}}
    undisturbed, killed = (settings(tmp_path / name, **more) for name in ("undisturbed", "killed"))
    make(undisturbed)
    make(killed)
    stages.train(undisturbed)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(killed.model_dump(mode="json")))
    command = [sys.executable, "-m", "clipgs", "train", "--threads", "1", "--config", str(tmp_path / "config.yaml")]
    folder = runs.run_path(killed)
    metrics = folder / "metrics.jsonl"
    with subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 200
        while not metrics.exists() or metrics.read_text().count('"loss"') < 7:
            assert run.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
    assert not (folder / "model.safetensors").exists()
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumes after step" in done.stderr
    assert metrics.read_bytes().count(b'"loss"') == 12
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (folder / name).read_bytes() == (runs.run_path(undisturbed) / name).read_bytes()


def test_the_command_line_says_a_fault_in_one_line(tmp_path):
    config = settings(tmp_path, training={"batch": 999})
    make(config)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    done = subprocess.run([sys.executable, "-m", "clipgs", "train"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "training.batch = 999, but only 24 objects" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
