import json
import shutil

import numpy as np
import open_clip
import pytest
import torch

from clipgs import config as configuration
from clipgs.catalog.records import frozen_schema, labels_schema
from clipgs.catalog.shards import labels_path, shard_path
from clipgs.config import Caption, Coca
from clipgs.config import Teacher as Settings
from clipgs.core.bundles import read_table, tar_objects, write_table
from clipgs.core.errors import UsageError
from clipgs.core.runner import stage_schema
from clipgs.splats.pictures import to_webp
from clipgs.stages import path, stage_settings
from clipgs.teacher import features
from clipgs.teacher.model import Teacher
from clipgs.teacher.weights import open_model
from clipgs.triplets import captions_written as written
from clipgs.triplets import stages
from tests.packed_world import PIXELS, TINY_COCA, VIEWS, picture, save_model


@pytest.fixture(scope="module")
def coca(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "coca", TINY_COCA)


def blank():
    return np.full((PIXELS, PIXELS, 3), 255, np.uint8)


def with_catalog(world, texts):
    """The tables that the stage `caption` reads, for these uids with a text of the catalog each, or None."""
    frozen = {"source": "folder", "locator": "x", "sha256": None, "group": "g", "split": "train", "note": None}
    ok = {"status": "ok", "error": None}
    config = world.config()
    write_table(shard_path(config, "00000"), [{"uid": uid, **frozen} for uid in texts], frozen_schema())
    labels = [{"uid": uid, "text": text} for uid, text in texts.items()]
    write_table(labels_path(config, "00000"), labels, labels_schema())
    write_table(path(config, "meshes", "00000", ".parquet"), [{"uid": uid, **ok} for uid in texts], stage_schema())
    return world


def caption(world, model, **settings):
    """Captions of the shard by uid, made by the stage with a tiny CoCa and the tiny teacher."""
    small = {"name": f"local-dir:{model}", "views": 2, "candidates": 3}
    config = world.config(caption={"coca": {**small, **settings.pop("coca", {})}, **settings})
    if config.caption.uses_teacher:
        features.embed_images(config, "00000", 1)
    stages.caption(config, "00000", 2)
    return {row["uid"]: row for row in read_table(path(config, "captions", "00000", ".parquet"))}


@pytest.mark.parametrize(("captioner", "source"), [("coca", "CoCa"), ("consensus", "CoCa, chosen by the teacher")])
def test_the_best_of_the_candidates_is_kept(world, coca, captioner, source):
    with_catalog(world, dict.fromkeys("abc"))
    rows = caption(world, coca, captioner=captioner)
    assert list(rows) == ["a", "b", "c"]
    for row in rows.values():
        assert (row["status"], row["source"]) == ("ok", source)
        assert 2 <= len(row["candidates"]) == len(set(row["candidates"])) <= 6
        assert row["caption"] == row["candidates"][int(np.argmax(row["scores"]))]
        assert (row["score"] is None) == (captioner == "coca")
    assert rows["a"]["candidates"] != rows["b"]["candidates"]


def test_consensus_scores_are_mean_cosines_against_all_pictures(world, coca, tiny):
    with_catalog(world, dict.fromkeys("abc"))
    row = caption(world, coca, captioner="consensus")["b"]
    judge = Teacher(open_model(Settings(name=f"local-dir:{tiny}"), precision="float32", device="cpu", key="x"), batch=8)
    members = tar_objects(world.output / "renders" / "00000.tar")["b"]
    images = judge.encode_images(written.read_all(members))
    expected = (judge.encode_texts(row["candidates"]) @ images.T).mean(1)
    assert torch.allclose(torch.tensor(row["scores"]), expected, atol=1e-3)  # the features are float16
    assert row["score"] == pytest.approx(max(row["scores"]), abs=1e-6)


def test_again_is_the_same_whatever_the_shard(world, coca):
    with_catalog(world, dict.fromkeys("abc"))
    whole = caption(world, coca, captioner="coca")
    assert caption(world, coca, captioner="coca") == whole
    with_catalog(world, {"b": None})
    assert caption(world, coca, captioner="coca") == {"b": whole["b"]}
    other = caption(world, coca, captioner="coca", coca={"top_p": 0.5})
    assert other["b"]["candidates"] != whole["b"]["candidates"]


def test_what_was_written_before_a_kill_is_kept(world, coca, monkeypatch):
    with_catalog(world, dict.fromkeys("abc"))
    whole = caption(world, coca, captioner="coca")
    shutil.rmtree(world.output / "work")  # as the command leaves it
    own, asked = written.write, []

    def watched(*arguments):
        asked.append(arguments)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return own(*arguments)

    monkeypatch.setattr(written, "write", watched)
    with pytest.raises(KeyboardInterrupt):
        caption(world, coca, captioner="coca")
    assert caption(world, coca, captioner="coca") == whole
    assert len(asked) == 4  # one before the kill, the one that was killed, and the two that were left


def test_defective_pictures_are_kept_away_from_the_captioner(world, coca, monkeypatch):
    good = [to_webp(picture(seed), 90) for seed in (1, 2)]
    empty, dark = to_webp(blank(), 90), to_webp(np.zeros_like(blank()), 90)
    world.add_shard("00000", {"a": "x", "b": "x"}, {"a": [empty, good[0], dark, good[1]], "b": [empty] * VIEWS})
    with_catalog(world, dict.fromkeys("ab"))
    shown = []
    own = written.candidates

    def watched(model, images, *arguments):
        shown.append(images)
        return own(model, images, *arguments)

    monkeypatch.setattr(written, "candidates", watched)
    rows = caption(world, coca, captioner="coca", coca={"views": 8})
    assert rows["a"]["status"] == "ok"
    assert rows["b"]["error"] == f"none of its {VIEWS} pictures shows anything"
    (images,) = shown
    assert images.shape[0] == 2
    assert all(not written.defective(image) for image in images)


def test_what_is_defective():
    dot = blank()
    dot[10:14, 10:14] = 0
    speck = blank()
    speck[0, 0] = 0
    noise = np.clip(blank().astype(int) - np.random.default_rng(0).integers(0, 9, blank().shape), 0, 255)
    assert not written.defective(dot)
    assert not written.defective(picture(0))
    for image in (blank(), speck, noise.astype(np.uint8), np.zeros_like(dot), np.full_like(dot, 128)):
        assert written.defective(image)


def test_views_are_spread_over_those_that_show_it(world, coca, monkeypatch):
    with_catalog(world, {"a": None})
    chosen = []
    monkeypatch.setattr(written, "candidates", lambda model, images, *_: chosen.append(images) or ["a mug"])
    caption(world, coca, captioner="coca", coca={"views": 3})
    pictures = written.read_all(tar_objects(world.output / "renders" / "00000.tar")["a"])
    assert np.array_equal(chosen[0], pictures[[0, 2, 3]])


def test_cap3d_where_listed_and_consensus_elsewhere(world, coca):
    with_catalog(world, {"a": "the catalog's", "b": "the catalog's"})
    listed = world.folder / "listed.csv"
    listed.write_text("a,A mug of Cap3D.\n")
    rows = caption(world, coca, captioner="cap3d", cap3d=str(listed), fallback="consensus")
    assert (rows["a"]["caption"], rows["a"]["source"], rows["a"]["score"]) == ("A mug of Cap3D.", "Cap3D", None)
    assert rows["b"]["source"] == "CoCa, chosen by the teacher"


@pytest.mark.parametrize(("least", "marked"), [(-1.0, False), (1.0, True)])
def test_a_caption_that_is_unlike_its_pictures_is_marked(world, coca, least, marked):
    with_catalog(world, {"a": "a mug", "b": "a cup"})
    rows = caption(world, coca, captioner="catalog", min_score=least)
    for row in rows.values():
        assert -1 < row["score"] < 1
        assert (row["note"] is not None) == marked
        assert row["status"] == "ok"
    if marked:
        assert rows["a"]["note"] == f"scores {rows['a']['score']:.3f} against its own pictures, caption.min_score is 1"


def test_an_object_without_pictures_is_a_failed_row(world, coca):
    with_catalog(world, {"a": None, "gone": None})
    rows = caption(world, coca, captioner="coca")
    assert rows["a"]["status"] == "ok"
    assert rows["gone"]["error"] == "no pictures of it in renders/00000.tar"


def test_words_that_are_none_are_no_caption(world, coca, monkeypatch):
    with_catalog(world, {"a": None})
    monkeypatch.setattr(written, "candidates", lambda *_: ["...", " "])
    assert caption(world, coca, captioner="coca")["a"]["error"] == "CoCa wrote nothing of its pictures"


def test_a_model_that_does_not_write_is_one_line(world, tiny):
    with_catalog(world, {"a": None})
    with pytest.raises(UsageError, match=r"cannot write captions, because it has no decoder; choose a CoCa"):
        caption(world, tiny, captioner="coca")
    with pytest.raises(UsageError, match=r"caption\.coca\.name = nothing: open_clip has no such model"):
        caption(world, tiny, captioner="coca", coca={"name": "nothing"})


@pytest.mark.parametrize(
    "settings",
    [
        {"captioner": "consensus"},
        {"min_score": 0.1},
        {"captioner": "cap3d", "cap3d": "x.csv", "fallback": "consensus"},
    ],
)
def test_a_teacher_that_learns_from_captions_cannot_judge_them(settings):
    with pytest.raises(UsageError, match=r"teacher\.name = train is trained on the captions themselves") as error:
        configuration.check({"teacher": {"name": "train"}, "caption": settings})
    assert "\n" not in str(error.value)
    configuration.check({"teacher": {"name": "EVA02-E-14-plus"}, "caption": settings})


def test_only_what_looks_at_pictures_depends_on_them():
    def keys(**settings):
        config = configuration.check({"caption": {"cap3d": "x.csv", **settings}})
        return set(json.loads(stage_settings(config, "caption")))

    plain = {"stage", "version", "caption"}
    assert keys() == keys(captioner="cap3d") == keys(fallback="consensus") == plain
    assert keys(captioner="coca") == plain | {"seed", "views", "teacher"}
    assert keys(captioner="consensus") == keys(captioner="cap3d", fallback="consensus") == keys(captioner="coca")
    assert keys(min_score=0.2) == plain | {"teacher"}


@pytest.mark.slow
def test_the_real_coca_writes_from_a_file_of_its_weights(tmp_path):
    """coca_ViT-B-32 with weights at random, saved and loaded back as a user's own; only what it says is missing."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = open_clip.create_model("coca_ViT-B-32")
        for parameter in model.parameters():  # some of which it leaves as the memory was
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02)
    torch.save(model.state_dict(), tmp_path / "coca.pt")
    del model
    settings = Caption(captioner="coca", coca=Coca(name="coca_ViT-B-32", pretrained=str(tmp_path / "coca.pt")))
    config = configuration.check({"device": "cpu", "caption": settings.model_dump()})
    coca = written.open_coca(config)
    texts = written.candidates(coca, picture(1)[None], 2, 0.9, seed=0, max_tokens=8)
    assert len(texts) == 2
    assert all(texts)
    assert texts[0] != texts[1]


@pytest.mark.gpu
def test_captions_are_written_on_a_gpu(world, coca):
    world.settings["device"] = "cuda"
    with_catalog(world, dict.fromkeys("abc"))
    rows = caption(world, coca, captioner="consensus")
    assert all(row["status"] == "ok" and len(row["candidates"]) > 1 for row in rows.values())
