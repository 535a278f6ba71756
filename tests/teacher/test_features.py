import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from clipgs.core.bundles import TarWriter, read_metadata, tar_objects, write_table, write_tensors
from clipgs.core.errors import ClipgsError
from clipgs.core.runner import stage_schema
from clipgs.report import sections
from clipgs.splats.pictures import from_image, to_webp
from clipgs.teacher import features, hub
from clipgs.teacher import model as teacher
from clipgs.triplets import card, stages
from clipgs.triplets.pack import read_rows
from tests.packed_world import PIXELS, VIEWS, picture, save_model


def embed(config, shard="00000", threads=1):
    features.embed_images(config, shard, threads)
    features.embed_texts(config, shard, threads)
    return features.read(config, shard)


def test_rows_are_the_teachers_of_every_packed_triplet(world, tiny):
    config = world.config()
    found = embed(config)
    frozen = teacher.load(config)
    assert found.uids == ["a", "b", "c"]
    assert (found.images.shape, found.images.dtype) == ((3, VIEWS, 24), torch.float16)
    assert (found.texts.shape, found.texts.dtype) == ((3, 24), torch.float16)
    assert (found.scores.shape, found.scores.dtype) == ((3, VIEWS), torch.float32)
    members = tar_objects(world.output / "renders" / "00000.tar")["b"].read()
    for view in range(VIEWS):
        ours = found.images[1, view].float()
        theirs = frozen.encode_images(from_image(members[f"{view:02d}.webp"])[None])[0]
        assert torch.allclose(ours, theirs, atol=1e-3)
    assert torch.allclose(found.texts[2].float(), frozen.encode_texts(["a tree"])[0], atol=1e-3)
    assert torch.allclose(found.images.float().norm(dim=-1), torch.ones(3, VIEWS), atol=2e-3)
    expected = torch.stack([found.images[i].float() @ found.texts[i].float() for i in range(3)])
    assert torch.allclose(found.scores, expected, atol=1e-6)
    assert found.metadata["teacher"] == "local-dir:tiny"
    assert found.metadata["pretrained"] == "open_clip_model.safetensors"
    assert found.metadata["dim"] == "24"
    assert found.metadata["images"] == "splats"
    assert len(found.metadata["weights_sha256"]) == 64


def test_the_files_are_safetensors_with_fixed_names(world):
    config = world.config()
    embed(config)
    for kind, names in (("images", {"images"}), ("texts", {"texts", "scores"})):
        file = world.output / "features" / config.teacher.slug / kind / "00000.safetensors"
        assert load_file(file).keys() == names
        assert read_metadata(file)["uids"] == ["a", "b", "c"]


def test_a_rerun_is_the_same_bytes_whatever_threads_and_shard(world):
    config = world.config()
    whole = embed(config)
    files = [features.features_path(config, kind, "00000") for kind in ("images", "texts")]
    before = [file.read_bytes() for file in files]
    embed(config, threads=3)
    assert [file.read_bytes() for file in files] == before
    members = tar_objects(world.output / "renders" / "00000.tar")["b"].read()
    world.add_shard("00001", {"b": "a blue chair"}, {"b": list(members.values())})
    alone = embed(config, "00001")
    assert torch.equal(alone.images[0], whole.images[1])
    assert torch.equal(alone.texts[0], whole.texts[1])


def test_the_way_of_a_gpu_gives_the_same_rows(world):
    """Batches of several objects, decoded in other processes."""
    config = world.config()
    expected = embed(config).images
    frozen = teacher.load(config)
    frozen.batch = 2 * VIEWS
    members = tar_objects(world.output / "renders" / "00000.tar")
    tasks = [features.Task(uid, "", features.shown(members[uid], config)) for uid in members]
    broken = features.Task("x", "", features.Members(str(world.output / "nowhere"), (("00.webp", 0, 9),)))
    done = dict(features.on_gpu(frozen, [*tasks[:2], broken, *tasks[2:]], 2, config))
    assert "FileNotFoundError" in done.pop(broken)
    for index, task in enumerate(tasks):
        _, ((_, data),) = done[task]
        ours = torch.from_numpy(np.frombuffer(data, np.float16).reshape(VIEWS, -1).copy())
        assert torch.allclose(ours, expected[index], atol=2e-3)
    assert len(done) == 3


def test_batches_hold_whole_objects_of_one_shape():
    def images(count, pixels):
        return np.zeros((count, pixels, pixels, 3), np.uint8)

    failure = features.workers.Failure("x")
    decoded = [images(4, 8), images(4, 8), failure, images(4, 8), images(4, 6), images(30, 6), images(2, 6)]
    batches = list(features._batches(enumerate(decoded), 8))
    assert [[index for index, _ in batch] for batch in batches] == [[0, 1, 2], [3], [4], [5], [6]]


def test_a_picture_that_cannot_be_read_leaves_its_object_out(world, caplog):
    good = [to_webp(picture(v), 90) for v in range(VIEWS)]
    world.add_shard("00000", {"a": "a mug", "b": "a cup", "c": "a jug"},
                    {"b": [*good[:-1], b"RIFF not a picture"], "c": good[:-1]})  # fmt: skip
    found = embed(world.config())
    assert found.uids == ["a"]
    assert "b (b.glb) failed: UnidentifiedImageError" in caplog.text
    assert f"c (c.glb) failed: it has {VIEWS - 1} pictures, and views.count is {VIEWS}" in caplog.text
    assert "b is left out: it has no features of its pictures" in caplog.text


def test_an_object_without_caption_is_encoded_and_not_read(world):
    """So that a caption which is found later sends no picture through the teacher."""
    world.add_shard("00000", {"a": "a mug", "b": None, "c": "a jug"})
    config = world.config()
    first = embed(config)
    assert first.uids == ["a", "c"]
    world.add_shard("00000", {"a": "a mug", "b": "a cup", "c": "a jug"})
    features.embed_texts(config, "00000", 1)
    found = features.read(config, "00000")
    assert found.uids == ["a", "b", "c"]
    assert torch.equal(found.images[[0, 2]], first.images)
    assert torch.allclose(found.scores[1], found.images[1].float() @ found.texts[1].float(), atol=1e-6)


def test_pictures_of_the_meshes(world):
    config = world.config(teacher={"images": "meshes"})
    (world.output / "views").mkdir()
    with TarWriter(world.output / "views" / "00000.tar") as tar:
        for index, uid in enumerate("abc"):
            for view in range(VIEWS + 2):  # the last two are held out
                rgba = np.dstack([picture(7 * index + view), np.full((PIXELS, PIXELS), 255 * (view % 2), np.uint8)])
                data = world.folder / "view.png"
                Image.fromarray(rgba).save(data)
                tar.add(f"{uid}/{view:03d}.png", data.read_bytes())
            tar.add(f"{uid}/cameras.json", b"{}")
    rows = [{"uid": uid, "status": "ok", "error": None} for uid in "abc"]
    write_table(world.output / "views" / "00000.parquet", rows, stage_schema())
    found = embed(config)
    assert found.metadata["images"] == "meshes"
    frozen = teacher.load(config)
    white = frozen.encode_images(np.full((1, PIXELS, PIXELS, 3), 255, np.uint8))[0]
    assert torch.allclose(found.images[0, 0].float(), white, atol=1e-3)  # all of it is transparent
    assert torch.allclose(found.images[0, 1].float(), frozen.encode_images(picture(1)[None])[0], atol=1e-3)


def test_a_long_caption_is_cut_and_said(world, caplog):
    world.add_shard("00000", {"a": "mug " * 2500, "b": "x" * 10_000, "c": "a jug"})
    with caplog.at_level(logging.WARNING):
        found = embed(world.config())
    assert found.texts.isfinite().all()
    assert (found.metadata["cut"], found.metadata["context"]) == (["a", "b"], 16)
    (line,) = [record.getMessage() for record in caplog.records if "captions are longer" in record.getMessage()]
    assert "2 captions are longer than the 16 tokens" in line
    assert "lower caption.max_characters" in line


def test_the_card_and_the_report_say_which_captions_are_cut(world):
    config = world.config()
    world.add_shard("00000", {"a": "a mug", "b": "a jug"})
    embed(config)
    tables = [world.output / "triplets" / "00000.parquet"]
    assert stages._cut(config, tables[0]) == features.cut_captions(config, ["00000"]) == ""
    world.add_shard("00000", {"a": "mug " * 20, "b": "a jug"})
    embed(config)
    said = "1 caption is longer than the 16 tokens that local-dir:tiny reads (a); the rest is ignored."
    assert features.cut_captions(config, ["00000", "00001"]) == said
    assert stages._cut(config, tables[0]) == said
    text = card.readme(read_rows(tables), "Mugs", cut=said)
    assert card.escape(said) in text.split("## Captions")[1].split("## Categories")[0]
    packed = read_rows(tables)
    shown = sections.objects(SimpleNamespace(config=config, triplets=SimpleNamespace(packed=packed)))
    assert shown["cut"] == said


def test_a_teacher_without_a_tokenizer_here_leaves_the_card_without_a_count(world, monkeypatch, caplog):
    monkeypatch.setattr(hub, "silence", lambda address: pytest.fail("the card asks no network"))
    world.add_shard("00000", {"a": "mug " * 20})
    config = world.config(teacher={"name": "ViT-B-16-SigLIP", "pretrained": "webli"})
    with caplog.at_level(logging.WARNING):
        assert stages._cut(config, world.output / "triplets" / "00000.parquet") == ""
    assert (
        "too long for the teacher are not counted: the tokenizer of ViT-B-16-SigLIP is not on this machine"
        in caplog.text
    )
    assert stages._cut(world.config(teacher={"name": "train"}), world.output / "triplets" / "00000.parquet") == ""


def test_a_shard_whose_captions_all_failed_has_no_texts(world):
    world.add_shard("00000", {"a": None, "b": None})
    found = embed(world.config())
    assert (found.uids, found.texts.shape, found.metadata["cut"]) == ([], (0, 24), [])


def test_an_empty_caption_is_named(world):
    world.add_shard("00000", {"a": "a mug", "b": " "})
    with pytest.raises(ClipgsError, match="the caption of b is empty; correct its text") as error:
        embed(world.config())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"seed": 1}, {"mean": [0.5, 0.5, 0.5]}])
def test_a_mixture_of_teachers_is_refused_and_both_are_named(world, tmp_path, change):
    world.add_shard("00001", {"d": "a door"})
    other = config = world.config(teacher={"name": f"local-dir:{save_model(tmp_path / 'tiny')}"})
    embed(config)
    first = embed(config, "00001")
    save_model(tmp_path / "tiny", **change)
    with pytest.raises(ClipgsError, match="a mixture of teachers") as error:
        features.embed_texts(other, "00001", 1)
    assert "\n" not in str(error.value)
    features.embed_images(other, "00001", 1)
    with pytest.raises(ClipgsError, match="a mixture of teachers"):
        features.read(other, "00001")  # its texts are the first teacher's
    features.embed_texts(other, "00001", 1)
    with pytest.raises(ClipgsError, match="a mixture of teachers") as error:
        features.read(other, "00001")
    assert first.metadata["weights_sha256"][:12] in str(error.value)
    assert "mean: [0.48145466, 0.4578275, 0.40821073]" in str(error.value)
    assert "00000.safetensors" in str(error.value)
    features.read(other, "00000")


def test_texts_of_another_tokenizer_are_refused_and_pictures_do_not_care(world, monkeypatch):
    world.add_shard("00001", {"d": "a door"})
    config = world.config()
    embed(config)
    assert embed(config, "00001").metadata["tokenizer"] == "open_clip, 16 tokens"
    features.read(config, "00001")
    images = features.features_path(config, "images", "00001")
    assert "tokenizer" not in read_metadata(images)
    monkeypatch.setattr("clipgs.teacher.weights.identity", lambda *_: f"{64 * 'a'}, 64 tokens")
    features.embed_texts(config, "00001", 1)
    with pytest.raises(ClipgsError, match=r"a mixture of teachers: .*, tokenizer a{12}, 64 tokens\).*open_clip, 16"):
        features.read(config, "00001")


def test_texts_that_do_not_say_their_tokenizer_are_stale(world):
    config = world.config()
    embed(config)
    file = features.features_path(config, "texts", "00000")
    about = read_metadata(file)
    del about["tokenizer"]
    write_tensors(file, load_file(file), about)
    with pytest.raises(ClipgsError, match=r"does not say its tokenizer; make it again with: snakemake .*--force"):
        features.read(config, "00000")


def test_a_damaged_or_foreign_file_is_one_line(world):
    config = world.config()
    embed(config)
    file = features.features_path(config, "texts", "00000")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ClipgsError, match="make it again"):
        features.read(config, "00000")
    write_tensors(file, {"texts": np.zeros((1, 2), np.float16)}, {"uids": []})
    with pytest.raises(ClipgsError, match="does not say its teacher"):
        features.read(config, "00000")


def test_a_shard_without_objects_has_empty_features(world):
    world.add_shard("00002", {})
    found = embed(world.config(), "00002")
    assert found.uids == []
    assert found.images.shape == (0, VIEWS, 24)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_on_a_gpu_the_rows_are_those_of_a_cpu(world, precision, tolerance):
    expected = embed(world.config(teacher={"precision": "float32"}))
    found = embed(world.config(device="cuda", teacher={"precision": precision, "batch": 2 * VIEWS}), threads=2)
    assert found.uids == expected.uids
    for name in ("images", "texts"):
        ours, theirs = getattr(found, name).float(), getattr(expected, name).float()
        assert (1 - torch.nn.functional.cosine_similarity(ours, theirs, dim=-1)).max() < tolerance


@pytest.mark.gpu
def test_the_teacher_on_a_gpu_is_bfloat16_by_itself(world):
    assert teacher.load(world.config(device="cuda")).dtype == torch.bfloat16
