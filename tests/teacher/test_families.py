"""One model of each family of open_clip, small: clipgs gives the features that open_clip's own code gives."""

import pytest
import timm

from clipgs import config as configuration
from clipgs.catalog.shards import Plan
from clipgs.operate.checks import Jobs, of_jobs
from clipgs.teacher import model as teacher
from clipgs.teacher import names
from tests.teacher.small_models import (
    STATED,
    architecture,
    differences,
    family,
    make,
    preprocessings,
    registered,
    save_folder,
)

NAMES = (
    "ViT-M-16-alt",  # its blocks scale what they add
    "RN50-quickgelu",
    "convnext_tiny",
    "EVA02-B-16",
    "ViTamin-S",
    "swin_base_patch4_window7_224",
    "MobileCLIP-S1",
    "PE-Core-T-16-384",
    "ViT-B-16-SigLIP",
    "ViT-B-32-SigLIP2-256",
    "ViT-L-14-CLIPA",
    "ViT-H-14-worldwide",
    "coca_ViT-B-32",
    "roberta-ViT-B-32",
    "nllb-clip-base",
    "mt5-base-ViT-B-32",
)
DISAGREE = "ViT-L-14"  # its tags prepare pictures in two ways
JOBS = Jobs({"embed-images": ["00000"]}, Plan((), ("00000",), {}, "", (), 24))


@pytest.fixture(scope="session")
def small_of(tmp_path_factory):
    """Gives a name's small model, which is made once."""
    made = {}

    def get(name):
        if name not in made:
            settings = architecture(name)
            if "hf_tokenizer_name" in settings["text_cfg"]:
                pytest.importorskip("transformers")
            if (tower := settings["vision_cfg"].get("timm_model_name")) and not timm.is_model(tower):
                pytest.skip(f"timm {timm.__version__} has no {tower}")
            made[name] = make(name, tmp_path_factory.mktemp("small"))
        return made[name]

    return get


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # A small model has other shapes than the name that is known without open_clip's registry.
    monkeypatch.setattr(names, "_first_layers", lambda architecture: {})


def config_of(name, device="cpu", **settings):
    return configuration.check({"device": device, "teacher": {"name": name, "pretrained": None, **settings}})


def file_of(small, **settings):
    tokenizer = {"tokenizer": str(small.folder)} if small.folder else {}
    return config_of(small.name, **{"pretrained": str(small.file), "precision": "float32", **tokenizer, **settings})


def stated(name):
    """What has to be stated of a file's preprocessing, and what it then is."""
    if tags := preprocessings(name):
        return {}, next(iter(tags.values()))
    return {"preprocess": STATED}, STATED


def test_every_family_is_tried():
    from open_clip import list_models

    assert {family(name) for name in list_models()} == {family(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_open_clips_features(name, small_of):
    with registered(name, architecture(name)):
        small = small_of(name)
        settings, preprocessing = stated(name)
        config = file_of(small, **settings)
        assert not of_jobs(config, JOBS).errors
        found = differences(small, teacher.load(config), preprocessing)
    assert found["text"] < 1e-6
    assert max(found["pictures"].values()) < 1e-3, found["pictures"]
    assert found["spread"] > 0.05  # features that are all alike would agree with anything


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_gives_them_in_bfloat16(name, small_of, tmp_path):
    with registered(name, architecture(name)):
        small = small_of(name)
        _, preprocessing = stated(name)
        folder = save_folder(small, tmp_path / "folder", preprocessing)
        config = config_of(f"local-dir:{folder}", precision="bfloat16")
        assert not of_jobs(config, JOBS).errors
        found = differences(small, teacher.load(config), preprocessing)
    assert found["cosine"] > 0.99
    assert found["found"] == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_them(name, precision, small_of):
    with registered(name, architecture(name)):
        small = small_of(name)
        settings, preprocessing = stated(name)
        found = differences(
            small, teacher.load(file_of(small, device="cuda", precision=precision, **settings)), preprocessing
        )
    assert found["found"] == 1
    assert found["cosine"] > (0.99 if precision == "bfloat16" else 0.9999), found


@pytest.mark.parametrize("name", [name for name in NAMES if "hf_tokenizer_name" in architecture(name)["text_cfg"]])
def test_a_file_without_its_tokenizer_is_refused(name, small_of):
    settings, _ = stated(name)
    small = small_of(name)
    (error,) = of_jobs(file_of(small, tokenizer=None, **settings), JOBS).errors
    assert f"config: teacher: the tokenizer of {name}" in error
    assert "set teacher.tokenizer to a folder" in error
    assert "\n" not in error


@pytest.mark.parametrize("name", [*(name for name in NAMES if not preprocessings(name)), DISAGREE])
def test_a_file_without_known_preprocessing_is_refused(name, small_of):
    (error,) = of_jobs(file_of(small_of(name)), JOBS).errors
    assert "teacher.preprocess" in error
    assert "\n" not in error


def test_each_tag_that_is_stated_counts(small_of):
    tags = {str(value): tag for tag, value in preprocessings(DISAGREE).items()}
    assert len(tags) == 2
    with registered(DISAGREE, architecture(DISAGREE)):
        small = small_of(DISAGREE)
        for tag in tags.values():
            frozen = teacher.load(file_of(small, preprocess=tag))
            found = differences(small, frozen, preprocessings(DISAGREE)[tag])
            assert max(found["pictures"].values()) < 1e-3, found["pictures"]
