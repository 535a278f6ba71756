import json
import os
import re
import socket
import time
import warnings

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

from clipgs import config as configuration
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.files import sha256_of
from clipgs.core.web import TransientError
from clipgs.teacher import hub
from clipgs.teacher import model as teacher
from clipgs.teacher.names import PREPROCESS
from tests.packed_world import TINY, picture, save_model

PICTURES = np.stack([picture(seed) for seed in range(6)])
USUAL = {"preprocess": dict(PREPROCESS)}
TEXTS = ["a red mug", "a chair with four legs", "tree"]


def config_of(name, pretrained=None, **more):
    return configuration.check({"device": "cpu", "teacher": {"name": name, "pretrained": pretrained, **more}})


def cosine(ours, theirs):
    return torch.nn.functional.cosine_similarity(ours.float(), theirs.float(), dim=-1)


def open_clips_own(name, pictures, pretrained=None, device="cpu"):
    """Image by image, text by text, as open_clip's README does it."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
    model.eval()
    with torch.no_grad():
        images = [model.encode_image(preprocess(Image.fromarray(one))[None].to(device)) for one in pictures]
        texts = [model.encode_text(open_clip.get_tokenizer(name)([text]).to(device)) for text in TEXTS]
    return torch.cat(images), torch.cat(texts)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("shape", [(48, 48), (32, 32), (20, 20), (48, 40)])
def test_features_are_open_clips_own(tiny, precision, tolerance, shape):
    pictures = np.stack([Image.fromarray(one).resize(shape[::-1]) for one in PICTURES])
    frozen = teacher.load(config_of(f"local-dir:{tiny}", precision=precision))
    images, texts = open_clips_own(f"local-dir:{tiny}", pictures)
    ours = frozen.encode_images(pictures)
    assert ours.dtype == torch.float32
    assert (1 - cosine(ours, images)).max() < tolerance
    assert (1 - cosine(frozen.encode_texts(TEXTS), texts)).max() < tolerance
    assert torch.allclose(ours.norm(dim=-1), torch.ones(len(ours)))
    # A teacher that gave all pictures one vector would pass the above.
    assert (1 - cosine(images[:-1], images[1:])).min() > 5 * tolerance or precision == "bfloat16"


def test_batches_change_nothing(tiny):
    frozen = teacher.load(config_of(f"local-dir:{tiny}"))
    whole = frozen.encode_images(PICTURES)
    frozen.batch = 4
    assert torch.allclose(frozen.encode_images(torch.from_numpy(PICTURES)), whole, atol=1e-6)
    assert frozen.encode_images(PICTURES[:0]).shape == (0, frozen.dim)
    assert frozen.encode_texts([]).shape == (0, frozen.dim)


def test_fewer_at_once_where_memory_runs_out(tiny, monkeypatch):
    frozen = teacher.load(config_of(f"local-dir:{tiny}"))
    whole = frozen.encode_images(PICTURES)
    own = frozen.model.encode_image

    def limited(pictures):
        if len(pictures) > 2:
            raise torch.OutOfMemoryError
        return own(pictures)

    monkeypatch.setattr(frozen.model, "encode_image", limited)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert torch.allclose(frozen.encode_images(PICTURES), whole, atol=1e-6)
    assert frozen.batch == 1


def test_what_is_known_of_it(tiny):
    frozen = teacher.load(config_of(f"local-dir:{tiny}"))
    assert (frozen.name, frozen.pretrained, frozen.dim) == ("local-dir:tiny", "open_clip_model.safetensors", 24)
    assert frozen.weights_sha256 == sha256_of(tiny / "open_clip_model.safetensors")
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert not frozen.model.training


def test_a_wrong_array_is_refused(tiny):
    frozen = teacher.load(config_of(f"local-dir:{tiny}"))
    for wrong in (PICTURES[0], PICTURES.astype(np.float32), PICTURES[..., :2]):
        with pytest.raises(ValueError, match=r"images must be \[n, H, W, 3\] uint8"):
            frozen.encode_images(wrong)


def test_texts_that_are_empty_or_long(tiny):
    frozen = teacher.load(config_of(f"local-dir:{tiny}"))
    with pytest.raises(ClipgsError, match="text 2 of 2 is empty; leave it out or give it words"):
        frozen.encode_texts(["a mug", " "])
    texts = ["mug " * 2500, "x" * 10_000, "a mug", "a " * 14, "a " * 15]
    assert torch.equal(frozen.encode_texts(texts[:1]), frozen.encode_texts(["mug " * 20]))
    assert torch.equal(frozen.tokens(texts[1:2]), open_clip.SimpleTokenizer(context_length=16)(["x" * 3000]))
    assert frozen.cut(texts) == [0, 1, 4]


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("EVA02-E-14-pluss", None, "open_clip has no such model; did you mean EVA02-E-14-plus?"),
        ("EVA02-E-14-plus", None, "teacher.pretrained is not set"),
        ("EVA02-E-14-plus", "laion2b_s9b_b144", "nor a file; did you mean laion2b_s9b_b144k?"),
        ("EVA02-B-16", "nowhere/weights.pt", "there is no such file"),
        ("ViT-B-32", "openai", "openai are weights of ViT-B-32-quickgelu; set teacher.name to it"),
        ("local-dir:nowhere", None, "open_clip_config.json: No such file"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_one_line(name, pretrained, words):
    with pytest.raises(UsageError, match="config: ") as error:
        teacher.load(config_of(name, pretrained))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_small_teacher_that_is_not_trained_yet(tmp_path):
    config = configuration.check({"output": str(tmp_path), "device": "cpu", "teacher": {"name": "train"}})
    with pytest.raises(ClipgsError, match=r"open_clip_config.json is missing; make it again with: snakemake"):
        teacher.load(config)


def test_a_folder_without_weights_or_model(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(UsageError, match="it has no model_cfg"):
        teacher.load(config_of(f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(UsageError, match="it is not JSON"):
        teacher.load(config_of(f"local-dir:{tmp_path}"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(UsageError, match="the folder holds no weights"):
        teacher.load(config_of(f"local-dir:{tmp_path}"))


def test_no_network_is_one_line_with_a_way_out(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")

    def unreachable(*_, **__):
        raise OSError("We couldn't connect\nto the hub")

    with pytest.raises(
        UsageError, match=r"are not on this machine, and 127\.0\.0\.1 cannot be reached \(its host"
    ) as error:
        teacher.load(config_of("EVA02-E-14-plus", "laion2b_s9b_b144k"))
    monkeypatch.setattr(hub, "silence", lambda address: None)
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", unreachable)
    with pytest.raises(ClipgsError, match=r"EVA02-E-14-plus laion2b_s9b_b144k: the weights could not be") as error:
        teacher.load(config_of("EVA02-E-14-plus", "laion2b_s9b_b144k"))
    assert "\n" not in str(error.value)
    assert "on a machine without network set teacher.pretrained to a copied .safetensors or .pt file" in str(
        error.value
    )
    with pytest.raises(ClipgsError, match="could not be downloaded"):
        teacher.load(config_of("hf-hub:someone/model"))


def test_a_repository_of_the_hub_that_is_in_the_cache_needs_no_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # read when the hub's client was imported
    monkeypatch.setattr(hub, "silence", lambda address: TransientError("it is away", unreachable=True))
    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", lambda *_, **__: pytest.fail("the hub is asked"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123")
    save_model(folder / "snapshots" / "0123", mean=[0.5] * 3)
    frozen = teacher.load(config_of("hf-hub:someone/model"))
    assert (frozen.name, frozen.pretrained, frozen.dim) == ("hf-hub:someone/model", "hub", 24)
    assert "mean: [0.5, 0.5, 0.5]" in frozen.about["preprocess"]
    with pytest.raises(UsageError, match="the weights of hf-hub:someone/other are not on this machine"):
        teacher.load(config_of("hf-hub:someone/other"))


@pytest.mark.parametrize("proxy", [False, True])
def test_a_teacher_that_cannot_come_says_so_soon(tmp_path, monkeypatch, proxy):
    """A host that accepts and never answers, or a proxy that is one."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid" if proxy else address)
        monkeypatch.setenv("http_proxy", address if proxy else "")
        monkeypatch.delenv("no_proxy", raising=False)
        begun = time.monotonic()
        with pytest.raises(UsageError, match=r"cannot be reached \(no byte was received for 2\.5 s\)"):
            teacher.load(config_of("EVA02-E-14-plus", "laion2b_s9b_b144k"))
        assert time.monotonic() - begun < 5


class Harmful:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.fixture
def model_at(tmp_path, monkeypatch):
    """Makes `tiny-model` a name of open_clip, and gives its state."""
    file = tmp_path / "configs" / "tiny-model.json"
    file.parent.mkdir()
    file.write_text(json.dumps(TINY))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.add_model_config(file)
    return open_clip.CLIP(**TINY).state_dict()


def test_weights_that_could_run_code_are_not_opened(model_at, tmp_path):
    evil = tmp_path / "evil.pt"
    torch.save({**model_at, "x": Harmful(tmp_path / "harm")}, evil)
    with pytest.raises(
        ClipgsError, match="holds more than tensors and is not opened, because it could run code"
    ) as error:
        teacher.load(config_of("tiny-model", str(evil), **USUAL))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm").exists()


def test_checkpoints_of_open_clips_training_are_read(model_at, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in model_at.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": {"step": 1}}, tmp_path / "epoch_3.pt")
    frozen = teacher.load(config_of("tiny-model", str(tmp_path / "epoch_3.pt"), **USUAL))
    assert (frozen.name, frozen.pretrained) == ("tiny-model", "epoch_3.pt")
    assert torch.equal(frozen.model.state_dict()["text_projection"], model_at["text_projection"])
    torch.save(model_at, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    old = teacher.load(config_of("tiny-model", str(tmp_path / "old.pt"), **USUAL))
    assert torch.equal(old.model.state_dict()["text_projection"], model_at["text_projection"])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda state, file: torch.save({"a": torch.ones(2)}, file), "is not a checkpoint of tiny-model (Missing key"),
        (
            lambda state, file: torch.save({**state, "text_projection": torch.ones(32, 25)}, file),
            "is not a checkpoint of tiny-model (size mismatch for text_projection",
        ),
        (lambda state, file: torch.save({"a": 3}, file), "holds no tensors by name"),
        (lambda state, file: torch.save([torch.ones(2)], file), "holds no tensors by name"),
        (lambda state, file: torch.save({}, file), "holds no tensors by name"),
        (lambda state, file: file.write_bytes(b""), "cannot be read"),
        (lambda state, file: file.write_bytes(b"no weights"), "."),
    ],
)
def test_a_file_that_is_no_checkpoint_of_it_is_one_line(model_at, tmp_path, write, words):
    file = tmp_path / "weights.pt"
    write(model_at, file)
    with pytest.raises(ClipgsError) as error:
        teacher.load(config_of("tiny-model", str(file), **USUAL))
    assert words in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_safetensors_that_are_cut_and_other_endings(model_at, tmp_path):
    cut = tmp_path / "cut.safetensors"
    whole = save_model(tmp_path / "whole") / "open_clip_model.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ClipgsError, match="cannot be read"):
        teacher.load(config_of("tiny-model", str(cut), **USUAL))
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(UsageError, match=r"must end in .safetensors, .pt"):
        teacher.load(config_of("tiny-model", str(tmp_path / "weights.npz"), **USUAL))


def saved(folder, architecture=TINY, **more):
    """The state of a tiny model of this architecture in a file."""
    file = folder / "weights.pt"
    torch.save({**open_clip.CLIP(**architecture).state_dict(), **more}, file)
    return file


def test_weights_of_another_width_or_other_positions_are_refused(model_at, tmp_path):
    other = "set teacher.name to the model of these weights"
    for wrong, words in (
        (with_part("text_cfg", width=64, heads=4), other),
        (
            with_part("vision_cfg", image_size=64),
            f"with 65 places in a picture, and tiny-model has 17; {other}",
        ),
        (
            with_part("text_cfg", context_length=32),
            f"with 32 tokens of a text, and tiny-model has 16; {other}",
        ),
        ({**TINY, "embed_dim": 32}, other),
    ):
        with pytest.raises(ClipgsError) as error:
            teacher.load(config_of("tiny-model", str(saved(tmp_path, wrong)), **USUAL))
        assert words in str(error.value)
        assert "\n" not in str(error.value)


def with_part(part, **changed):
    return {**TINY, part: {**TINY[part], **changed}}


def test_a_bias_of_the_logits_changes_no_cosine(model_at, tmp_path):
    torch.manual_seed(0)
    plain = teacher.load(config_of("tiny-model", str(saved(tmp_path)), **USUAL))
    torch.manual_seed(0)
    biased = teacher.load(config_of("tiny-model", str(saved(tmp_path, logit_bias=torch.tensor(-10.0))), **USUAL))
    assert torch.equal(plain.encode_texts(TEXTS), biased.encode_texts(TEXTS))
    assert torch.equal(plain.encode_images(PICTURES), biased.encode_images(PICTURES))


def test_a_page_or_a_pointer_in_place_of_weights_is_no_file_of_weights(model_at, tmp_path):
    for text in ("<!DOCTYPE html><title>404</title>", "version https://git-lfs.github.com/spec/v1\noid sha256:00"):
        (tmp_path / "w.pt").write_text(text)
        with pytest.raises(ClipgsError, match=r"(is no file of weights|cannot be read).*copy or download it again"):
            teacher.load(config_of("tiny-model", str(tmp_path / "w.pt"), **USUAL))


def test_a_tokenizer_with_more_tokens_than_the_model_has_words(tiny):
    frozen = teacher.load(config_of(f"local-dir:{tiny}"))
    frozen.model.vocab_size = 100
    with pytest.raises(
        ClipgsError, match=r"has a token \d+, and the model knows 100; the tokenizer is another model's"
    ):
        frozen.encode_texts(["a mug"])


def test_a_torchscript_archive_is_named_as_such(model_at, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it outdated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(ClipgsError, match=r"is a TorchScript archive, .* clipgs fetch-teacher NAME openai"):
        teacher.load(config_of("tiny-model", str(tmp_path / "ViT-B-32.pt"), **USUAL))


@pytest.mark.parametrize("changed", [{"mean": [0.5] * 3, "std": [0.25] * 3}, {"interpolation": "bilinear"}])
@pytest.mark.parametrize("shape", [(48, 48), (48, 40)])
def test_pictures_are_prepared_as_it_is_stated(model_at, tmp_path, changed, shape):
    pictures = np.stack([np.asarray(Image.fromarray(one).resize(shape[::-1])) for one in PICTURES])
    file = saved(tmp_path)
    usual = teacher.load(config_of("tiny-model", str(file), **USUAL)).encode_images(pictures)
    ours = teacher.load(config_of("tiny-model", str(file), preprocess={**PREPROCESS, **changed}))
    model, _, preprocess = open_clip.create_model_and_transforms(
        "tiny-model", str(file), **{f"image_{key}": value for key, value in changed.items()}
    )
    model.eval()
    with torch.no_grad():
        theirs = torch.cat([model.encode_image(preprocess(Image.fromarray(one))[None]) for one in pictures])
    assert (1 - cosine(ours.encode_images(pictures), theirs)).max() < 2e-6
    # Resizing by another filter moves the vectors of a model at random by less than other colours do.
    assert (1 - cosine(usual, theirs)).max() > (2e-3 if "mean" in changed else 1e-6)
    assert yaml.safe_load(ours.about["preprocess"]) == {**PREPROCESS, **changed}


def test_a_model_that_cannot_encode_is_one_line(tiny, monkeypatch):
    def fail(self, *_, **__):
        raise RuntimeError("mat1 and mat2 must have\nthe same dtype")

    monkeypatch.setattr(open_clip.CLIP, "encode_image", fail)
    with pytest.raises(ClipgsError, match="cannot encode a text and a picture in float32: RuntimeError: mat1") as error:
        teacher.load(config_of(f"local-dir:{tiny}"))
    assert "\n" not in str(error.value)


def slug(name, pretrained=None):
    return configuration.Teacher(name=name, pretrained=pretrained).slug


def test_slugs(tmp_path, monkeypatch):
    assert slug("EVA02-E-14-plus", "laion2b_s9b_b144k") == "EVA02-E-14-plus-laion2b_s9b_b144k"
    assert slug("EVA02-E-14-plus", "LAION2b-s9b-b144k") == "EVA02-E-14-plus-laion2b_s9b_b144k"
    assert slug("ViT-B-32", "some where/my weights.pt") == "ViT-B-32-my-weights.pt-ffb4cdbc"
    assert slug("ViT-B-32", "elsewhere/my weights.pt") == "ViT-B-32-my-weights.pt-83b718c9"
    assert slug("train", "laion2b_s9b_b144k") == "clipgs-small"
    assert slug("local-dir:models/mine", "x") == "mine-171437ae"
    assert slug("../..", "..").startswith("teacher-")
    assert len(slug("local-dir:" + 250 * "x")) < 140
    monkeypatch.chdir(tmp_path)
    assert slug("local-dir:.").startswith(re.sub(r"[^A-Za-z0-9_.-]+", "-", tmp_path.name)[:100])


@pytest.mark.parametrize(
    "names",
    [
        [("local-dir:/x/a:b",), ("local-dir:/y/a:b",), ("local-dir:/x/b",), ("local-dir:/x/a-b",)],
        [("hf-hub:a/b-c",), ("hf-hub:a-b/c",), ("local-dir:a-b-c",)],
        [("train",), ("local-dir:clipgs-small",), ("local-dir:x/clipgs-small",), ("hf-hub:clipgs/small",)],
        [("RN50", "quickgelu-w.pt"), ("RN50-quickgelu", "w.pt"), ("RN50", "a/quickgelu-w.pt"), ("RN50", "w.pt")],
        [("ViT-B-32", "openai"), ("ViT-B-32", "openai.pt"), ("ViT-B-32", "./openai"), ("hf-hub:ViT-B-32/openai",)],
        [("local-dir:/\u043c",), ("local-dir:/\u043d",), ("local-dir:/x/\u043d",)],
    ],
)
def test_no_two_teachers_share_a_folder(names):
    assert len({slug(*one) for one in names}) == len(names)


def test_every_tag_of_open_clip_has_a_folder_of_its_own():
    pairs = open_clip.list_pretrained()
    assert len({slug(*pair) for pair in pairs}) == len(pairs)
    assert all(configuration.Teacher(name=name, pretrained=tag).pretrained == tag for name, tag in pairs)


@pytest.mark.slow
def test_eva_from_a_file_of_its_weights(tmp_path):
    """The real architecture and the real way of a user's checkpoint; only what the weights know is missing."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = open_clip.create_model("EVA02-B-16")
    torch.save(model.state_dict(), tmp_path / "eva.pt")
    frozen = teacher.load(config_of("EVA02-B-16", str(tmp_path / "eva.pt")))
    assert (frozen.dim, frozen.pixels, frozen.name) == (512, 224, "EVA02-B-16")
    images, texts = open_clips_own("EVA02-B-16", PICTURES[:2], str(tmp_path / "eva.pt"))
    assert (1 - cosine(frozen.encode_images(PICTURES[:2]), images)).max() < 1e-3
    assert (1 - cosine(frozen.encode_texts(TEXTS), texts)).max() < 1e-3
