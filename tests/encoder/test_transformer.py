from functools import partial

import pytest
import timm
import torch

from clipgs.encoder.pretrained import _eva_blocks, _Keys
from clipgs.encoder.transformer import SIZES, TIMM_NAMES, Block, PatchTransformer, Shape, drop_patches


@pytest.mark.parametrize("size", list(SIZES))
def test_sizes_are_those_of_timms_models(size):
    with torch.device("meta"):
        model = timm.create_model(TIMM_NAMES[size], num_classes=0)
    keys = _Keys("timm", dict(model.state_dict()), frozenset())
    weights, shape = _eva_blocks(keys, "")
    assert shape == SIZES[size]
    with torch.device("meta"):
        ours = PatchTransformer(shape, 1024).state_dict()
    assert {key: value.shape for key, value in weights.items()} == {
        key.replace("blocks", "transformer.blocks", 1)
        if key.startswith("blocks")
        else "transformer." + key: value.shape
        for key, value in ours.items()
        if key.startswith(("blocks.", "norm."))
    }


@pytest.mark.parametrize(
    "form",
    [
        {"swiglu_mlp": True, "qkv_fused": True},
        {"swiglu_mlp": True, "qkv_fused": False, "scale_mlp": True},
        {"swiglu_mlp": False, "qkv_fused": True},
    ],
)
def test_blocks_are_timms_without_rotary_embedding(form):
    size = {"img_size": 28, "patch_size": 14, "embed_dim": 64, "depth": 3, "num_heads": 1, "mlp_ratio": 2.0}
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    model = timm.models.eva.Eva(**size, num_classes=0, norm_layer=norm, **form).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights, shape = _eva_blocks(_Keys("timm", dict(model.state_dict()), frozenset()), "")
    ours = PatchTransformer(shape, 32).eval()
    ours.load_state_dict({key.removeprefix("transformer."): value for key, value in weights.items()}, strict=False)
    patches, centres = torch.randn(2, 10, 64), torch.randn(2, 10, 3)
    tokens = torch.cat([ours.class_token.expand(2, 1, 64), patches + ours.position(centres)], dim=1)
    for block in model.blocks:
        tokens = block(tokens)
    expected = ours.embed(model.fc_norm(tokens[:, 0]))
    torch.testing.assert_close(ours(patches, centres), expected, atol=2e-5, rtol=1e-4)


def test_the_last_block_gives_the_first_token_what_it_would_get_among_all():
    block = Block(Shape(64, 1, 2, 96, gated=True, hidden_norm=True), drop_path=0.0)
    torch.nn.init.normal_(block.attn.q_bias)
    torch.nn.init.normal_(block.attn.v_bias)
    tokens = torch.randn(3, 9, 64)
    torch.testing.assert_close(block(tokens, first_only=True), block(tokens)[:, :1])


def test_stochastic_depth_leaves_out_whole_objects_and_keeps_the_mean():
    block = Block(Shape(16, 1, 1, 16, gated=False, hidden_norm=False), drop_path=0.25)
    branch = torch.ones(4000, 2, 3)
    dropped = block._drop(branch)
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert block.eval()._drop(branch) is branch


def test_dropped_patches_differ_between_objects_and_none_comes_twice():
    patches = torch.arange(20.0).expand(5, 20)[..., None]
    kept = drop_patches(patches, 0.5)[..., 0]
    assert kept.shape == (5, 10)
    assert all(len(set(row)) == 10 for row in kept.tolist())
    assert len({tuple(sorted(row)) for row in kept.tolist()}) > 1


def test_patches_are_dropped_in_training_alone():
    model = PatchTransformer(Shape(16, 2, 1, 16, gated=True, hidden_norm=False), 8, patch_dropout=0.5)
    patches, centres = torch.randn(2, 12, 16), torch.randn(2, 12, 3)
    assert not torch.equal(model(patches, centres), model(patches, centres))
    model.eval()
    assert torch.equal(model(patches, centres), model(patches, centres))
