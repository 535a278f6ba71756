import json

import numpy as np
import open_clip
import pytest
import torch

from clipgs.config import SmallTeacher
from clipgs.core.errors import ClipgsError
from clipgs.core.files import check, owner
from clipgs.splats.pictures import to_webp
from clipgs.teacher import model as teacher
from clipgs.teacher.names import ARCHITECTURE
from clipgs.teacher.tokenizers import small_tokenizer
from clipgs.training import runs, small_teacher, stages
from tests.packed_world import VIEWS, World

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "black": (10, 10, 10)}


def solid(colour, count=VIEWS):
    pictures = np.broadcast_to(np.array(colour, np.uint8), (count, 64, 64, 3)).copy()
    pictures[:, :8] = 255
    return pictures


def settings(**more):
    return SmallTeacher(**{"steps": 3, "batch": 4, **more})


def test_it_is_as_small_as_it_says():
    model = open_clip.CLIP(**json.loads(ARCHITECTURE.read_text()))
    assert sum(parameter.numel() for parameter in model.parameters()) < 4e6
    assert model.visual.image_size == (64, 64) or model.visual.image_size == 64


def test_it_learns_what_it_is_shown():
    images = torch.from_numpy(np.stack([solid(colour) for colour in COLOURS.values()]))
    texts = [f"a {name} ball" for name in COLOURS]
    model, loss = small_teacher.train(images, texts, [None] * 4, settings(steps=40), 0, "cpu")
    tokens = small_tokenizer()(texts)
    mean, std = (torch.tensor(value).view(3, 1, 1) * 255 for value in
                 (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))  # fmt: skip
    with torch.no_grad():
        seen = model.encode_image((images[:, 0].permute(0, 3, 1, 2).float() - mean) / std, normalize=True)
        read = model.encode_text(tokens, normalize=True)
    assert (seen @ read.T).argmax(1).tolist() == [0, 1, 2, 3]
    assert (read @ seen.T).argmax(1).tolist() == [0, 1, 2, 3]
    assert loss < np.log(4) / 2


def test_no_batch_holds_a_caption_twice_and_all_come(monkeypatch):
    texts = ["a mug"] * 5 + ["a chair", "a tree", "a house"]
    tokens = small_tokenizer()(texts)
    batches = []
    own = open_clip.CLIP.encode_text

    def watched(model, text, normalize=False):
        batches.append([row.tolist() for row in text])
        return own(model, text, normalize)

    monkeypatch.setattr(open_clip.CLIP, "encode_text", watched)
    images = torch.zeros(8, 2, 64, 64, 3, dtype=torch.uint8)
    small_teacher.train(images, texts, [None] * 8, settings(steps=12, batch=3), 0, "cpu")
    assert all(len(batch) == len({tuple(row) for row in batch}) == 3 for batch in batches)
    counts = [sum(row.tolist() in batch for batch in batches) for row in tokens[[0, 5, 6, 7]]]
    assert all(counts)
    assert counts[0] == max(counts)  # five objects have it


def test_some_steps_show_the_category(monkeypatch):
    """Then no two objects of one category, and none without one."""
    read = []
    own = open_clip.CLIP.encode_text

    def watched(model, text, normalize=False):
        read.append(
            {
                small_tokenizer().decode(row.tolist()).split("<end_of_text>")[0][len("<start_of_text>") :].strip()
                for row in text
            }
        )
        return own(model, text, normalize)

    monkeypatch.setattr(open_clip.CLIP, "encode_text", watched)
    captions, categories = ["one", "two", "three", "four"], ["mug", "teddy_bear", "mug", None]
    images = torch.zeros(4, 2, 64, 64, 3, dtype=torch.uint8)
    for share, least, most in ((0.0, 0, 0), (0.5, 1, 7), (1.0, 8, 8)):
        read.clear()
        small_teacher.train(images, captions, categories, settings(steps=8, category_steps=share), 0, "cpu")
        shown = [texts for texts in read if not texts & set(captions)]
        assert least <= len(shown) <= most
        assert all(len(texts) == 2 and sum("teddy bear" in text for text in texts) == 1 for texts in shown)
        assert all(texts == set(captions) for texts in read if texts not in shown)
    assert len(set.union(*shown)) == 6  # said in three ways each


def test_the_same_seed_gives_the_same_weights():
    images = torch.from_numpy(np.stack([solid(colour, 2) for colour in COLOURS.values()]))
    before = torch.random.get_rng_state()
    said = (list(COLOURS), [None, "mug", "tree", "mug"])
    states = [small_teacher.train(images, *said, settings(), seed, "cpu")[0].state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["text_projection"], states[2]["text_projection"])


def test_two_images_of_an_object_tell_it_from_others_of_its_text():
    """Texts alone draw objects of one text together; a search by a picture could then not find the very object."""
    names = list(COLOURS)
    images = torch.from_numpy(np.stack([solid(colour, 3) for colour in COLOURS.values()]))
    captions = ["a thing", "a thing", *names[2:]]
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in small_teacher.NORMALISED)
    cosines = {}
    for weight in (0.0, 2.0):
        model, _ = small_teacher.train(images, captions, [None] * 4, settings(steps=25, view_weight=weight), 0, "cpu")
        with torch.no_grad():
            seen = model.encode_image((images[:2, 0].permute(0, 3, 1, 2).float() - mean) / std, normalize=True)
        cosines[weight] = float(seen[0] @ seen[1])
    assert cosines[2.0] < cosines[0.0] - 0.2


def test_one_image_of_each_object_is_enough():
    images = torch.from_numpy(np.stack([solid(colour, 1) for colour in COLOURS.values()]))
    _, loss = small_teacher.train(images, list(COLOURS), [None] * 4, settings(steps=2, view_weight=1.0), 0, "cpu")
    assert np.isfinite(loss)


def test_pictures_move_and_keep_their_ground():
    pictures = torch.ones(6, 3, 16, 16)
    pictures[:, :, 4:8, 4:8] = 0
    moved = small_teacher.moved(pictures, np.random.default_rng(0))
    assert moved.shape == pictures.shape
    assert not torch.equal(moved[0], moved[1])
    assert torch.equal(moved[:, :, 0, 0], torch.ones(6, 3))
    assert (moved.amin((1, 2, 3)) < 0.1).all()


@pytest.fixture
def taught(tmp_path, tiny):
    """An output whose small teacher is trained."""
    made = World(tmp_path, tiny)
    pictures = {uid: [to_webp(view, 90) for view in solid(colour)] for uid, colour in COLOURS.items()}
    pictures["test-white"] = [to_webp(view, 90) for view in solid((255, 255, 255))]
    made.add_shard("00000", {uid: f"a {uid} ball" for uid in pictures}, pictures)
    made.settings["teacher"] = {"name": "train", "small": {"steps": 3, "batch": 4}}
    stages.teacher(made.config(), 1)
    return made


def test_open_clip_loads_it_and_so_do_we(taught):
    folder = taught.output / "teacher"
    files = sorted(path for path in folder.iterdir() if owner(path) is None)
    assert [path.name for path in files] == [
        "README.md", "inputs.json", "open_clip_config.json", "open_clip_model.safetensors", "teacher.json",
        "vocabulary.txt.gz"]  # fmt: skip
    for file in files:
        check(file)
    about = json.loads((folder / "teacher.json").read_text())
    assert (about["objects"], about["captions"], about["shards"]) == (4, 4, ["00000"])  # none of the test split
    assert "not those of EVA-CLIP" in (folder / "README.md").read_text()
    frozen = teacher.load(taught.config())
    assert (frozen.name, frozen.dim, frozen.pixels) == ("clipgs-small", 256, 64)
    own, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    assert torch.equal(own.state_dict()["text_projection"], frozen.model.state_dict()["text_projection"])
    assert preprocess.transforms[0].size == 64
    texts = ["a red couch", "a CORRUGATED contraption"]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}", bpe_path=str(folder / "vocabulary.txt.gz"))
    assert torch.equal(tokenizer(texts), frozen.tokens(texts))
    assert tokenizer(texts).max() == 4095  # the end of a text, the last of all tokens
    bfloat = teacher.load(taught.config(teacher={"precision": "bfloat16"}))
    pictures = np.stack([solid(colour)[0] for colour in COLOURS.values()])
    cosines = (frozen.encode_images(pictures) * bfloat.encode_images(pictures)).sum(-1)
    assert (1 - cosines).max() < 1e-2


def test_again_gives_the_same_bytes(taught):
    weights = taught.output / "teacher" / "open_clip_model.safetensors"
    before = weights.read_bytes()
    stages.teacher(taught.config(), 1)
    assert weights.read_bytes() == before


def test_at_most_so_many_objects(taught):
    stages.teacher(taught.config(teacher={"small": {"max_objects": 2}}), 1)
    assert json.loads((taught.output / "teacher" / "teacher.json").read_text())["objects"] == 2


def test_without_a_training_split_there_is_none(tmp_path, tiny):
    made = World(tmp_path, tiny)
    made.add_shard("00000", {"test-a": "a mug"})
    with pytest.raises(ClipgsError, match="has no split train"):
        stages.teacher(made.config(), 1)


def test_one_caption_for_all_is_refused(tmp_path, tiny):
    made = World(tmp_path, tiny)
    made.add_shard("00000", {"a": "a misc", "b": "a misc"})
    with pytest.raises(ClipgsError, match="learns to tell captions apart, and the split train has one \\('a misc'\\)"):
        stages.teacher(made.config(), 1)
    assert runs.begun_shards(made.config(), "teacher") == []  # objects that come later may be what it lacks
    made.add_shard("00001", {"c": "a mug"})
    stages.teacher(made.config(teacher={"name": "train", "small": {"steps": 1, "batch": 2}}), 1)


def test_pictures_that_cannot_be_read_are_named(taught):
    taught.add_shard("00000", {"a": "a mug"}, {"a": [b"RIFF"]})
    with pytest.raises(ClipgsError, match="the images of a cannot be read: UnidentifiedImageError"):
        stages.teacher(taught.config(), 1)


@pytest.mark.gpu
def test_it_learns_on_a_gpu():
    images = torch.from_numpy(np.stack([solid(colour) for colour in COLOURS.values()]))
    captions = [f"a {name} ball" for name in COLOURS]
    _, loss = small_teacher.train(images, captions, [None] * 4, settings(steps=60), 0, "cuda")
    assert loss < np.log(4) / 2
