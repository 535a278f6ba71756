import argparse
import fractions
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipgs.config import Encoder
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.encoder import build, pretrained
from clipgs.encoder.transformer import Shape

from .conftest import random_gaussians

TOLERANCE = 1e-4  # of embeddings of length about 20; the bar is 1e-3


@pytest.fixture(scope="module")
def vectors(shared):
    return shared / "vectors"


def inputs(vectors, name):
    arrays = np.load(vectors / f"{name}.npz")
    rgb = arrays["rgb"] if "rgb" in arrays else arrays["features"][..., 3:]
    return torch.from_numpy(arrays["xyz"]), torch.from_numpy(rgb), torch.from_numpy(arrays["embedding"])


@pytest.mark.parametrize("name", ["uni3d_tiny2", "openshape_pointbert_s1", "ulip2_pointbert"])
@torch.no_grad()
def test_embeddings_are_those_of_the_peers_own_code(vectors, name):
    xyz, rgb, embedding = inputs(vectors, name)
    model = pretrained.load(vectors / f"{name}.pt")
    assert not model.training
    torch.testing.assert_close(model(xyz, rgb), embedding, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_the_patches_are_those_that_one_asks_for(vectors):
    xyz, rgb, embedding = inputs(vectors, "uni3d_tiny2")
    model = pretrained.load(vectors / "uni3d_tiny2.pt", groups=64, group_size=8)
    assert (model(xyz, rgb) - embedding).abs().max() > 10 * TOLERANCE
    model.group_size = 16
    torch.testing.assert_close(model(xyz, rgb), embedding, atol=TOLERANCE, rtol=0)


def test_sizes_are_read_from_the_tensors(vectors):
    model = pretrained.load(vectors / "uni3d_tiny2.pt")
    assert model.transformer.shape == Shape(192, 2, 3, 512, gated=True, hidden_norm=False)
    model = pretrained.load(vectors / "openshape_pointbert_s1.pt")
    assert (len(model.layers), model.layers[0].heads, model.sa.size.groups) == (6, 4, 64)
    model = pretrained.load(vectors / "ulip2_pointbert.pt")
    assert (len(model.blocks), model.blocks[0].heads) == (3, 3)


# --- layouts and what is refused -------------------------------------------------------------------------------------


@pytest.fixture
def content(vectors):
    return torch.load(vectors / "uni3d_tiny2.pt", weights_only=True)


@pytest.mark.parametrize("layout", ["bare", "module.", "state_dict", "safetensors", "namespace"])
@torch.no_grad()
def test_layouts(vectors, content, tmp_path, layout):
    state, file = content["module"], tmp_path / "model.pt"
    if layout == "safetensors":
        file = tmp_path / "model.safetensors"
        save_file(state, file)
    elif layout == "namespace":
        arguments = argparse.Namespace(lr=1e-3, name="uni3d")
        best = {"best": np.float64(0.5), "step": np.int64(3), "top": np.float32(0.1)}
        torch.save({"module": state, "args": arguments, **best}, file)
    else:
        wrapped = {
            "bare": state,
            "module.": {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3},
            "state_dict": {"state_dict": state},
        }
        torch.save(wrapped[layout], file)
    xyz, rgb, embedding = inputs(vectors, "uni3d_tiny2")
    torch.testing.assert_close(pretrained.load(file)(xyz, rgb), embedding, atol=TOLERANCE, rtol=0)


class Payload:
    def __reduce__(self):
        return fractions.Fraction, (1, 2)


def test_a_class_that_is_not_known_to_be_harmless_is_named_and_never_made(content, tmp_path):
    torch.save({**content, "extra": Payload()}, tmp_path / "model.pt")
    with pytest.raises(ClipgsError, match=r"fractions\.Fraction") as error:
        pretrained.load(tmp_path / "model.pt")
    assert "\n" not in str(error.value)
    assert "model.pt" in str(error.value)


def test_a_key_that_is_not_known_is_named(content, tmp_path):
    content["module"]["point_encoder.visual.blocks.0.surprise"] = torch.zeros(1)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ClipgsError, match=r"unknown weights: point_encoder\.visual\.blocks\.0\.surprise"):
        pretrained.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    "key", ["point_encoder.cls_pos", "point_encoder.visual.blocks.1.norm2.bias", "point_encoder.trans2embed.bias"]
)
def test_a_key_that_is_missing_is_named(content, tmp_path, key):
    del content["module"][key]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ClipgsError, match=f"has no {key}"):
        pretrained.load(tmp_path / "model.pt")


@pytest.mark.parametrize("key", sorted(pretrained.UNI3D_DEAD))
@torch.no_grad()
def test_dead_keys_may_be_missing_and_change_nothing(vectors, content, tmp_path, key):
    xyz, rgb, _ = inputs(vectors, "uni3d_tiny2")
    expected = pretrained.load(vectors / "uni3d_tiny2.pt")(xyz, rgb)
    old = content["module"].pop(f"point_encoder.{key}", None)
    torch.save(content, tmp_path / "missing.pt")
    assert torch.equal(pretrained.load(tmp_path / "missing.pt")(xyz, rgb), expected)
    content["module"][f"point_encoder.{key}"] = torch.full_like(old, 7) if old is not None else torch.full((3,), 7.0)
    torch.save(content, tmp_path / "other.pt")
    assert torch.equal(pretrained.load(tmp_path / "other.pt")(xyz, rgb), expected)


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (None, UsageError, "does not exist"),
        (lambda path: path.write_bytes(b"not a checkpoint"), ClipgsError, "model.pt"),
        (lambda path: path.write_bytes(b""), ClipgsError, "cannot be read"),
        (lambda path: torch.save({"epoch": 3}, path), ClipgsError, "holds no weights"),
        (lambda path: torch.save([1, 2], path), ClipgsError, "holds no weights"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), ClipgsError, "not a checkpoint of Uni3D"),
    ],
)
def test_another_file_is_one_line(tmp_path, write, error, words):
    path = tmp_path / "model.pt"
    if write:
        write(path)
    with pytest.raises(error, match=words) as raised:
        pretrained.load(path)
    assert "\n" not in str(raised.value)


def test_a_damaged_safetensors_file_is_one_line(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ClipgsError, match="cannot be read as safetensors"):
        pretrained.load(tmp_path / "model.safetensors")


# --- CLIP-GS started from them ---------------------------------------------------------------------------------------


def start(path, **more):
    return Encoder(
        size="tiny", groups=64, group_size=16, initialisation="uni3d", weights=str(path), refinement_width=16, **more
    )


def as_gaussians(vectors):
    """The points of the vectors as splats, in farthest-point order, with random values for the other attributes."""
    arrays = np.load(vectors / "uni3d_tiny2.npz")
    xyz, rgb, embedding = inputs(vectors, "uni3d_tiny2")
    B, N, _ = xyz.shape
    rows = [[*first, *sorted(set(range(N)) - set(first))] for first in arrays["fps_indices"]]
    rows = torch.tensor(np.array(rows))[..., None].expand(-1, -1, 3)
    splats = replace(random_gaussians(B, N), means=xyz.gather(1, rows), colors=rgb.gather(1, rows))
    return splats, torch.nn.functional.normalize(embedding, dim=-1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"point_attributes": "all"},
        {"attribute_encoding": "standardised"},
        {"attribute_encoding": "covariance", "point_attributes": "all"},
        {"patch_pooling": "weighted", "texture": True},
        {"refinement_along": "gaussians"},
    ],
    ids=str,
)
@torch.no_grad()
def test_clip_gs_started_from_uni3d_gives_its_output_before_the_first_step(vectors, options):
    model = build(start(vectors / "uni3d_tiny2.pt", **options), 1024).eval()
    splats, expected = as_gaussians(vectors)
    torch.testing.assert_close(model(splats), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_frozen_statistics_give_uni3ds_output_in_training_too(vectors):
    settings = start(vectors / "uni3d_tiny2.pt", batch_norm="frozen", drop_path=0.0, patch_dropout=0.0)
    splats, expected = as_gaussians(vectors)
    torch.testing.assert_close(build(settings, 1024).train()(splats), expected, atol=1e-5, rtol=0)


def test_where_the_space_differs_only_the_projection_is_new(vectors, caplog):
    caplog.set_level("INFO")
    model = build(start(vectors / "uni3d_tiny2.pt", refinement=False), 512)
    assert caplog.messages == ["encoder started from uni3d; new: transformer.embed"]
    same = build(start(vectors / "uni3d_tiny2.pt", refinement=False), 1024)
    assert caplog.messages[1] == "encoder started from uni3d; new: nothing"
    for name, parameter in model.named_parameters():
        if not name.startswith("transformer.embed"):
            assert torch.equal(parameter, same.get_parameter(name)), name


def test_the_image_model_gives_the_blocks_and_nothing_else(tmp_path):
    image = timm.create_model("eva02_tiny_patch14_224", num_classes=7)
    save_file(image.state_dict(), tmp_path / "eva.safetensors")
    weights = str(tmp_path / "eva.safetensors")
    model = build(Encoder(size="tiny", initialisation="eva02", weights=weights), 64)
    assert torch.equal(model.transformer.blocks[3].mlp.fc1.weight, image.blocks[3].mlp.fc1.weight)
    assert torch.equal(model.transformer.norm.weight, image.fc_norm.weight)
    with pytest.raises(UsageError, match=r"is of size tiny: set encoder\.size: tiny"):
        build(Encoder(size="small", initialisation="eva02", weights=weights), 64)


def test_our_own_point_encoder_is_a_start(tmp_path):
    small = {"size": "tiny", "groups": 16, "group_size": 8}
    points = build(Encoder(refinement=False, **small), 32)
    save_file(points.state_dict(), tmp_path / "model.safetensors")
    model = build(Encoder(initialisation="points", weights=str(tmp_path), **small), 32)
    for name, parameter in points.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


@pytest.mark.parametrize("initialisation", ["uni3d", "points"])
def test_weights_that_are_not_named_are_asked_for(initialisation):
    with pytest.raises(UsageError, match=r"encoder\.weights must name"):
        build(Encoder(initialisation=initialisation), 64)
