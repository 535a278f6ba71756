import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional

import clipgs
from clipgs.core.bundles import read_metadata
from clipgs.core.errors import ClipgsError, ObjectError
from clipgs.core.files import check
from clipgs.encoder import ClipGS
from clipgs.splats import Gaussians
from clipgs.training import runs
from tests.training.small_dataset import DIM, make, settings, splat, unit

NOTES = {
    "dim": DIM,
    "teacher": {
        "teacher": "small",
        "pretrained": "none",
        "weights_sha256": 64 * "0",
        "preprocess": "{}",
        "tokenizer": "numbers",
    },
    "pictures": 6,
    "objects": {"train": 24, "validation": 4},
    "shards": ["00000", "00001"],
    "step": 6,
    "steps": 9,
    "logit_scale": 14.0,
    "validation": {"text_r1": 0.25, "image_r1": 0.5},
    "changes": [],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a run, and the model that was written there."""
    config = settings(tmp_path_factory.mktemp("run"))
    make(config)
    torch.manual_seed(3)
    model = ClipGS(config.encoder, DIM)
    torch.nn.init.normal_(model.tokenizer.add.weight, std=0.1)
    model.tokenizer.points.norm1.running_mean += 0.01
    runs.write_run(runs.run_path(config), config, model.state_dict(), NOTES)
    return runs.run_path(config), model.eval()


@pytest.fixture
def teacher(monkeypatch):
    """A teacher that knows the kinds by their number."""
    table = functional.normalize(unit(4, DIM, seed=0), dim=-1)
    one = SimpleNamespace(
        weights_sha256=64 * "0", cut=lambda texts: [], encode_texts=lambda texts: table[[int(t) for t in texts]]
    )
    one.about = {"preprocess": "{}", "tokenizer": "numbers"}
    monkeypatch.setattr("clipgs.teacher.model.load", lambda config: one)
    return one


def test_what_was_written_is_loaded_and_encodes_the_same(written):
    run, model = written
    for name in ("model.safetensors", "config.yaml", "README.md"):
        check(run / name)
    assert read_metadata(run / "model.safetensors") == NOTES
    encoder = clipgs.load(run)
    assert (encoder.dim, encoder.device) == (DIM, torch.device("cpu" if not torch.cuda.is_available() else "cuda"))
    one = splat(1, 5)
    found = encoder.encode(one)
    from clipgs.encoder import prepare

    with torch.no_grad():
        wanted = model(Gaussians.stack([prepare(one, encoder.config.encoder)]))
    assert torch.allclose(found, wanted, atol=1e-6)
    assert found.norm().item() == pytest.approx(1)
    assert found.dtype == torch.float32


def test_splats_in_any_form_give_the_same_rows(written, tmp_path):
    encoder = clipgs.load(str(written[0]))
    splats = [splat(kind, kind, rows=70 + 5 * kind) for kind in range(3)]
    for i, one in enumerate(splats):
        one.save(tmp_path / f"{i}.ply")
    paths = [tmp_path / f"{i}.ply" for i in range(3)]
    rows = encoder.encode(paths)
    assert rows.shape == (3, DIM)
    for same in (
        encoder.encode([str(path) for path in paths]),
        encoder.encode([Gaussians.load(path) for path in paths]),
        encoder.encode(Gaussians.stack([Gaussians.load(path) for path in paths])),
        torch.cat([encoder.encode(str(path)) for path in paths]),
    ):
        assert torch.allclose(same, rows, atol=1e-5)
    assert encoder.encode([]).shape == (0, DIM)


def test_the_splat_that_cannot_be_encoded_is_named(written, tmp_path):
    encoder = clipgs.load(written[0])
    good = splat(0, 0)
    clear = dataclasses.replace(good, opacity_logits=good.opacity_logits - 20)
    for name, one in (("good", good), ("clear", clear)):
        one.save(tmp_path / f"{name}.ply")
    with pytest.raises(ObjectError, match=r"clear\.ply: none of 80 Gaussians"):
        encoder.encode([tmp_path / "good.ply", str(tmp_path / "clear.ply")])
    with pytest.raises(ObjectError, match=r"^splat 2: none of 80 Gaussians"):
        encoder.encode([good, tmp_path / "good.ply", clear])
    with pytest.raises(ObjectError, match=r"^splat 1: none of 80 Gaussians"):
        encoder.encode(Gaussians.stack([good, clear]))
    with pytest.raises(ObjectError, match=r"^the splat: none of 80 Gaussians"):
        encoder.encode(clear)
    for wrong, named in ((3, "int"), ([good, None], "NoneType"), (good.means, r"Tensor\[3\]")):
        with pytest.raises(
            TypeError, match=f"encode takes Gaussians, the path of a PLY, or a list of them, not {named}"
        ):
            encoder.encode(wrong)
    assert encoder.encode(path for path in [tmp_path / "good.ply"]).shape == (1, DIM)


def test_texts_are_encoded_by_the_teacher_of_the_run_and_by_no_other(written, teacher):
    encoder = clipgs.load(written[0])
    assert torch.equal(encoder.encode_text(["2", "1"]), teacher.encode_texts(["2", "1"]))
    assert torch.equal(encoder.encode_text("3"), teacher.encode_texts(["3"]))
    assert torch.equal(encoder.encode_text("003"), teacher.encode_texts(["3"]))  # one text, not three
    assert torch.equal(encoder.encode_text(np.array(["2", "1"])), teacher.encode_texts(["2", "1"]))
    for wrong, named in ((None, "NoneType"), (["1", 2], "int"), (b"1", "int"), (torch.zeros(2), r"Tensor\[\]")):
        with pytest.raises(TypeError, match=f"encode_text takes a text or a list of texts, not {named}"):
            encoder.encode_text(wrong)
    with pytest.raises(TypeError, match=r"search takes one text or one vector \[D\], not list"):
        encoder.search(["1", "2"])
    with pytest.raises(TypeError, match=r"search takes one text or one vector \[D\], not Tensor\[1, 12\]"):
        encoder.search(teacher.encode_texts(["1"]))
    teacher.weights_sha256, about = 64 * "1", teacher.about
    with pytest.raises(ClipgsError, match=r"trained with small .*, and the weights found for it are others"):
        clipgs.load(written[0]).encode_text(["1"])
    teacher.weights_sha256, teacher.about = 64 * "0", {**about, "preprocess": "{mean: [0, 0, 0]}"}
    with pytest.raises(ClipgsError, match=r"prepared as {}, and the teacher found for it prepares them as {mean"):
        clipgs.load(written[0]).encode_text(["1"])
    teacher.about = {**about, "tokenizer": f"{64 * '1'}, 77 tokens"}
    with pytest.raises(ClipgsError, match=r"tokenizer numbers, and the teacher found for it has 111111111111, 77 tok"):
        clipgs.load(written[0]).encode_text(["1"])


def test_search_gives_the_nearest_objects(written, teacher):
    encoder = clipgs.load(written[0])
    found = encoder.search("1", k=4)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    from clipgs.triplets import TripletDataset

    dataset = TripletDataset(written[0].parent.parent / "triplets")
    assert len(dataset) == 32
    (uid, best), *_ = found
    from clipgs.splats.gaussians import Gaussians

    (place,) = [i for i, name in enumerate(dataset.uids) if name == uid]
    row = encoder.encode(Gaussians.from_ply(dataset.members(place)[f"{uid}.ply"]))
    assert (row @ teacher.encode_texts(["1"])[0]).item() == pytest.approx(best, abs=1e-5)
    assert len(encoder.search("1", k=100)) == 32


def test_search_in_a_gallery_gives_equal_ones_in_its_order(written, teacher):
    near, far = teacher.encode_texts(["1"])[0], teacher.encode_texts(["2"])[0]
    shapes = torch.stack([far, near + 1e-12, 3 * near, near])
    found = clipgs.load(written[0]).search(near, k=3, gallery=(["a", "b", "c", "d"], shapes))
    assert [uid for uid, _ in found] == ["b", "c", "d"]
    assert [cosine for _, cosine in found] == pytest.approx([1, 1, 1])


def test_the_settings_stand_beside_and_hold_no_path_of_the_machine(written):
    run, _ = written
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert {"encoder", "training"} <= set(values)
    assert "output" not in values
    assert "workers" not in values
    assert str(run.parent.parent) not in (run / "config.yaml").read_text()


def test_the_card_says_what_was_trained_on_what(written):
    text = (written[0] / "README.md").read_text()
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", text, re.DOTALL).groups()
    assert yaml.safe_load(front)["library_name"] == "clipgs"
    assert yaml.safe_load(front)["license"] == "unknown"  # until the user says it
    assert "[CLIP-GS](https://arxiv.org/abs/2412.19142)" in body  # the paper; clipgs is not the paper
    for words in ("24 objects in 2 shards", "Step 6 of 9", "| image_r1 | 0.5000 |", 64 * "0", "space of small (none)"):
        assert words in body


def test_equal_runs_have_equal_bytes(written, tmp_path):
    config = settings(tmp_path)
    runs.write_run(tmp_path, config, written[1].state_dict(), NOTES)
    for name in ("model.safetensors", "config.yaml", "README.md"):
        assert (tmp_path / name).read_bytes() == (written[0] / name).read_bytes()


def test_a_published_folder_is_half_as_large_and_encodes_nearly_the_same(written, tmp_path):
    run, _ = written
    done = subprocess.run([sys.executable, "-m", "clipgs", "publish", str(run), "--to", str(tmp_path / "out")])
    assert done.returncode == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"model.safetensors", "config.yaml", "README.md"}
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size == pytest.approx((run / "model.safetensors").stat().st_size / 2, rel=0.02)
    (tmp_path / "plain").touch()  # with the mode that the umask gives
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {(tmp_path / "plain").stat().st_mode}
    one = splat(2, 9)
    ours, theirs = clipgs.load(run).encode(one), clipgs.load(tmp_path / "out").encode(one)
    assert (ours * theirs).sum().item() > 0.9999


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_teacher_that_has_moved_is_asked_for_in_a_sentence(written, tmp_path, monkeypatch, named):
    run, loaded = tmp_path / "published", []
    runs.publish(written[0], run)
    values = yaml.safe_load((run / "config.yaml").read_text())
    gone = tmp_path / "gone" / "w.pt"
    values["teacher"] = (
        {"name": "ViT-B-32", "pretrained": str(gone)} if named == "file" else {"name": f"local-dir:{gone}"}
    )
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ClipgsError) as error:
        clipgs.load(run).encode_text("1")
    assert str(error.value) == (
        f"{run} was trained with small (none), and {gone} does not exist; say where it lies now: "
        "clipgs.load(RUN, teacher=PLACE), or put a link to it there"
    )
    now = tmp_path / "now" / "w.pt"
    now.parent.mkdir()
    now.touch()

    def load(config):
        loaded.append(config.teacher)
        raise ClipgsError("found")

    monkeypatch.setattr("clipgs.teacher.model.load", load)
    place = now if named == "file" else now.parent
    with pytest.raises(ClipgsError, match=r"^found$"):
        clipgs.load(run, teacher=place).encode_text("1")
    settings = loaded[0]
    with pytest.raises(ClipgsError, match="teacher = nope: there is no such file or folder"):
        clipgs.load(run, teacher="nope")
    with pytest.raises(ClipgsError, match=r"^found$"):  # and not that there are no triplets
        clipgs.load(run, teacher=place).search("1")
    assert str(place) in (settings.name.removeprefix("local-dir:"), settings.pretrained)


def test_what_is_no_folder_of_a_run_is_said_with_the_runs_that_there_are(written, tmp_path, monkeypatch):
    run, _ = written
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClipgsError, match=r"model\.safetensors is a file; name its folder, .*runs/base$"):
        clipgs.load(run / "model.safetensors")
    with pytest.raises(ClipgsError, match=r"there is no folder user/name \(there is no finished run here\)"):
        clipgs.load("user/name")
    (tmp_path / "results").symlink_to(run.parent.parent)
    for wrong in ("user/name", "runs/nope", "results/runs/nope"):
        with pytest.raises(ClipgsError, match=rf"there is no folder {wrong} \(finished runs: results/runs/base\)"):
            clipgs.load(wrong)
        with pytest.raises(ClipgsError, match=rf"there is no folder {wrong} \(finished runs: results/runs/base\)"):
            runs.publish(Path(wrong), tmp_path / "out")
    for wrong in ("results", "results/runs", "results/triplets"):
        with pytest.raises(ClipgsError, match=rf"^{wrong} has no model.safetensors; train .*: results/runs/base\)$"):
            clipgs.load(wrong)
    for given in ("runs/nope", "nope"):
        command = [sys.executable, "-m", "clipgs", "search", "a chair", "--run", given]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"no folder results/{given} (finished runs: results/runs/base)" in done.stderr.splitlines()[-1]


def test_weights_that_do_not_fit_or_are_damaged_are_one_line(written, tmp_path):
    with pytest.raises(ClipgsError, match="train the run first"):
        clipgs.load(tmp_path)
    runs.write_run(tmp_path, settings(tmp_path), written[1].state_dict(), {**NOTES, "dim": DIM + 1})
    with pytest.raises(ClipgsError, match=r"does not fit .*embed") as error:
        clipgs.load(tmp_path)
    assert "\n" not in str(error.value)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipgsError, match="cannot be read") as error:
        clipgs.load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ClipgsError, match="set aside"):
        runs.publish(tmp_path, tmp_path / "out")
