import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import nn
from torch.nn import functional as F

from clipgs.config import Encoder
from clipgs.encoder import order
from clipgs.encoder.attributes import encoded, gains, widths
from clipgs.encoder.tokenizer import (
    InnerRefinement,
    PointEncoder,
    Refinement,
    Tokenizer,
    conv1x3,
    patch_weights,
    texture,
)
from clipgs.splats.quaternions import rotation_matrices

from .conftest import random_gaussians


class WrittenOut(nn.Module):
    """Uni3D's point encoder, layer by layer."""

    def __init__(self, channels, features):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(channels, 128, 1), nn.BatchNorm1d(128), nn.ReLU(), nn.Conv1d(128, 256, 1))
        self.second = nn.Sequential(nn.Conv1d(512, 512, 1), nn.BatchNorm1d(512), nn.ReLU(), nn.Conv1d(512, features, 1))

    def forward(self, patches):
        B, g, n, C = patches.shape
        points = self.first(patches.reshape(B * g, n, C).transpose(1, 2))
        largest = points.amax(2, keepdim=True).expand(-1, -1, n)
        return self.second(torch.cat([largest, points], dim=1)).amax(2).view(B, g, -1)


def pair(channels=6, features=32):
    slow = WrittenOut(channels, features).double()
    for module in slow.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    fast = PointEncoder(channels, features).double()
    layers = [slow.first[0], slow.first[1], slow.first[3], slow.second[0], slow.second[1], slow.second[3]]
    names = ["conv1", "norm1", "conv2", "conv3", "norm3", "conv4"]
    for name, layer in zip(names, layers, strict=True):
        getattr(fast, name).load_state_dict(
            {key: value.squeeze(-1) if value.ndim == 3 else value for key, value in layer.state_dict().items()}
        )
    return fast, slow, dict(zip(names, layers, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 5, 7)])
@pytest.mark.parametrize("channels", [6, 19])
def test_the_point_encoder_is_uni3ds_written_out(training, shape, channels):
    fast, slow, layers = pair(channels)
    fast.train(training)
    slow.train(training)
    x = torch.randn(*shape, channels, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    a, b = fast(x), slow(y)
    torch.testing.assert_close(a, b)
    weights = torch.randn_like(a)
    (a * weights).sum().backward()
    (b * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for name, layer in layers.items():
        ours = getattr(fast, name)
        torch.testing.assert_close(ours.weight.grad, layer.weight.grad.view_as(ours.weight))
        torch.testing.assert_close(ours.bias.grad, layer.bias.grad)
        if isinstance(layer, nn.BatchNorm1d):
            torch.testing.assert_close(ours.running_mean, layer.running_mean)
            torch.testing.assert_close(ours.running_var, layer.running_var)


def test_in_half_precision_it_stays_near_the_written_out_one():
    fast, slow, _ = pair()
    fast, slow = fast.float(), slow.float()
    x = torch.cat([torch.randn(4, 16, 32, 3) * 0.05, torch.rand(4, 16, 32, 3)], dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(x).float(), slow(x).float()
    exact = slow(x)
    assert (ours - exact).norm() < 1.5 * (theirs - exact).norm() + 1e-3 * exact.norm()


def test_a_patch_holds_what_its_gaussians_are(small):
    gaussians = random_gaussians(2, 50)
    patches, centres, _ = Tokenizer(small, 32).patches(gaussians)
    assert patches.shape == (2, 16, 8, 24)
    assert torch.equal(centres, gaussians.means[:, :16])
    one = patches[1, 3, 0]  # the nearest to a centre is the centre itself
    assert torch.equal(one[:3], torch.zeros(3))
    torch.testing.assert_close(one[3:6], gaussians.colors[1, 3])
    torch.testing.assert_close(one[6], gaussians.opacities[1, 3])
    torch.testing.assert_close(one[7:10], gaussians.log_scales[1, 3].sigmoid())
    rotation = rotation_matrices(F.normalize(gaussians.quats_wxyz[1, 3], dim=-1))
    torch.testing.assert_close(one[10:19], rotation.flatten())  # by rows
    assert (one[19:] == 0).all()


ATTRIBUTES = widths("paper")


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_an_attribute_that_is_left_out_changes_nothing(small, name):
    settings = small.model_copy(update={"attributes": [other for other in ATTRIBUTES if other != name]})
    gaussians = random_gaussians(2, 50)
    field = {"color": "colors", "opacity": "opacity_logits", "scale": "log_scales", "rotation": "quats_wxyz"}.get(name)
    tokenizers = [Tokenizer(chosen, 32) for chosen in (settings, small)]
    for tokenizer in tokenizers:
        nn.init.normal_(tokenizer.add.weight)
    if field is None:  # positions still choose patches; inside of one they are gone
        assert (tokenizers[0].patches(gaussians)[0][..., :3] == 0).all()
        return
    other = replace(gaussians, **{field: torch.rand_like(getattr(gaussians, field))})
    without, with_all = ((tokenizer(gaussians)[0] - tokenizer(other)[0]).abs().max() for tokenizer in tokenizers)
    assert without == 0
    assert with_all > 1e-3


def axes_exchanged(gaussians, permutation, signs):
    """The same ellipsoids by other axes: a turn of the axes among themselves, with the scales in that order."""
    turn = torch.zeros(3, 3)
    for place, axis in enumerate(permutation):
        turn[axis, place] = signs[place]
    matrices = rotation_matrices(F.normalize(gaussians.quats_wxyz, dim=-1)) @ turn
    quats = torch.from_numpy(Rotation.from_matrix(matrices.flatten(0, -3).numpy()).as_quat(scalar_first=True)).float()
    return replace(
        gaussians, quats_wxyz=quats.view_as(gaussians.quats_wxyz), log_scales=gaussians.log_scales[..., permutation]
    )


def test_standardised_says_which_axis_is_which():
    """Sorted scales with an unsorted matrix would read discs that face z and x as one."""
    sizes = torch.tensor([[[-2.0, -3.0, -8.0], [-8.0, -3.0, -2.0]]])
    both = replace(random_gaussians(1, 2), log_scales=sizes, quats_wxyz=torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 4))
    assert not torch.equal(*encoded(both, "standardised")[0, :, -9:])


@pytest.mark.parametrize(
    ("permutation", "signs"), [([1, 2, 0], [1, 1, 1]), ([0, 1, 2], [-1, -1, 1]), ([1, 0, 2], [1, -1, 1])]
)
def test_equal_gaussians_are_read_as_equal(permutation, signs):
    """A Gaussian has 24 rotations with its scales. Which one is written down says nothing of it."""
    gaussians = random_gaussians(2, 50)
    other = axes_exchanged(gaussians, permutation, signs)
    torch.testing.assert_close(encoded(gaussians, "covariance"), encoded(other, "covariance"), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(encoded(gaussians, "paper"), encoded(other, "paper"), atol=0.1)


def test_a_round_gaussian_has_no_direction():
    gaussians = random_gaussians(1, 20)
    sphere = replace(gaussians, log_scales=torch.full((1, 20, 3), -4.0))
    assert encoded(sphere, "covariance")[..., -12:].abs().max() < 1e-5
    disc = replace(gaussians, log_scales=torch.tensor([-4.0, -4.0, -9.0]).expand(1, 20, 3))
    # A needle looks alike however it is turned about its long axis.
    turn = torch.tensor([[math.cos(a / 2), math.sin(a / 2), 0.0, 0.0] for a in torch.linspace(0, 3, 20)])
    needle = replace(gaussians, log_scales=torch.tensor([-2.0, -6.0, -6.0]).expand(1, 20, 3), quats_wxyz=turn[None])
    rotations = encoded(needle, "covariance")[0, :, -12:]
    torch.testing.assert_close(rotations, rotations[:1].expand_as(rotations), atol=1e-5, rtol=0)
    flatness, stretch = encoded(disc, "covariance")[..., -12:].split(6, dim=-1)
    torch.testing.assert_close(flatness[..., :3].sum(-1), torch.full((1, 20), 1 - math.exp(-5.0)))  # of unit length
    assert stretch.abs().max() < 1e-5


@pytest.mark.parametrize(
    ("encoding", "least", "most"), [("paper", 0.0, 0.95), ("standardised", 0.03, 0.6), ("covariance", 0.02, 0.7)]
)
def test_no_attribute_drowns_the_others_in_the_first_layer(encoding, least, most):
    """With the paper's encoding a fresh layer sees rotations alone."""
    settings = Encoder(size="tiny", groups=64, group_size=16, attribute_encoding=encoding)
    sizes = torch.tensor([-3.6, -4.2, -7.3]) + torch.tensor([0.6, 0.8, 1.0]) * torch.randn(4, 2000, 3)
    gaussians = replace(random_gaussians(4, 2000), log_scales=sizes, opacity_logits=1.2 * torch.randn(4, 2000))
    gaussians = replace(gaussians, means=F.normalize(torch.randn(4, 2000, 3), dim=-1) * 0.5)  # a surface
    patches, _, _ = Tokenizer(settings, 32).patches(gaussians)
    read = patches[..., : len(gains(encoding))] * torch.tensor(gains(encoding))
    variance = read.flatten(0, 2).var(0)
    shares = [part.sum() / variance.sum() for part in variance.split(list(widths(encoding).values()))]
    assert min(shares) > least
    assert max(shares) < most
    if encoding == "paper":
        assert shares[3] < 0.001
        assert shares[4] > 0.85


def test_what_shows_most_weighs_most():
    gaussians = replace(
        random_gaussians(1, 3, [3]),
        opacity_logits=torch.tensor([[40.0, 40.0, 0.0]]),
        log_scales=torch.tensor([[[0.0, -9.0, 0.0], [math.log(2), math.log(2), -5.0], [0.0, 0.0, -1.0]]]),
    )
    weights = patch_weights(gaussians, torch.tensor([[[0, 1, 2]]]))
    torch.testing.assert_close(weights, torch.tensor([[[1, 4, 0.5]]]) / 5.5)
    equal = patch_weights(gaussians, torch.tensor([[[0, 1, 2]]]), 0.0, 0.0)  # both attributes are left out
    torch.testing.assert_close(equal, torch.full((1, 1, 3), 1 / 3))


def test_the_weighted_mean_is_added_to_the_maximum():
    points = PointEncoder(pooling="weighted").eval()
    patches, weights = torch.randn(2, 5, 7, 6), torch.rand(2, 5, 7).softmax(-1)
    before = points(patches, None, weights)
    torch.testing.assert_close(before, PointEncoder.forward(points, patches, None, weights.flip(-1)))  # from zero
    nn.init.normal_(points.mean.weight)
    moved = points(patches, None, weights) - before
    alone = points(patches, None, torch.eye(7)[0].expand(2, 5, 7)) - before  # all weight on the first Gaussian
    first = points(patches[:, :, :1].expand(-1, -1, 7, -1), None, weights)
    assert moved.abs().max() > 0.1
    assert not torch.allclose(moved, alone)
    assert first.shape == before.shape


def test_texture_says_how_colours_vary_and_where_to():
    x = torch.linspace(-1, 1, 9)
    patch = torch.zeros(1, 1, 9, 8)
    patch[..., 0] = x
    weights = torch.full((1, 1, 9), 1 / 9)
    assert texture(patch, weights).abs().max() == 0  # one colour
    patch[..., 3:6] = (0.5 + 0.1 * x)[:, None]
    found = texture(patch, weights)[0, 0]
    assert (found[:6] > 0).all()
    assert found[6] > 0
    assert found[7:].abs().max() < 1e-6
    torch.testing.assert_close(texture(patch + 3, weights), texture(patch, weights))  # centred patches say the same
    patch[..., 0] = -x
    assert texture(patch, weights)[0, 0, 6] == -found[6]


def test_padding_is_in_no_patch(small):
    gaussians = random_gaussians(2, 50, [50, 30])
    tokenizer = Tokenizer(small, 32).eval()
    changed = replace(gaussians, colors=gaussians.colors.clone(), means=gaussians.means.clone())
    changed.colors[1, 30:] = 9.0
    changed.means[1, 30:] = gaussians.means[1, :1]
    torch.testing.assert_close(tokenizer(gaussians)[0], tokenizer(changed)[0])


def test_stored_neighbours_are_taken_as_they_are(small):
    from clipgs.encoder.groups import nearest

    gaussians = random_gaussians(2, 50)
    tokenizer = Tokenizer(small, 32).eval()
    rows = nearest(gaussians.means, gaussians.means[:, :16], 8).to(torch.int16)
    assert torch.equal(tokenizer(gaussians)[0], tokenizer(gaussians, rows)[0])
    assert not torch.equal(tokenizer(gaussians)[0], tokenizer(gaussians, rows.flip(1))[0])


# --- the GS Refinement Block -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_conv1x3_is_torchs_convolution(batch):
    values, linear = torch.randn(*batch, 7, 4), nn.Linear(12, 5)
    convolution = nn.Conv1d(4, 5, 3, padding=1)
    convolution.weight.data = linear.weight.data.view(5, 3, 4).transpose(1, 2)
    convolution.bias.data = linear.bias.data
    expected = convolution(values.reshape(-1, 7, 4).transpose(1, 2)).transpose(1, 2).reshape(*batch, 7, 5)
    torch.testing.assert_close(conv1x3(values, linear), expected)


def slow_refinement(block, patches, centres):
    """One object, one order after the other, in evaluation mode."""
    lifted = F.relu(block.lift_norm(block.lift(patches[..., :19]))).amax(1)  # [g, 128]
    low, side = centres.amin(0), (centres.amax(0) - centres.amin(0)).max()
    grid = ((centres - low) / side * 2**block.order_depth).long().clamp(0, 2**block.order_depth - 1)
    results = []
    for name in block.orders:
        rows = order.encode(grid, name, block.order_depth).argsort(stable=True)
        both = block.norm1(conv1x3(lifted[rows], block.conv1))
        hidden, shortcut = both.chunk(2, dim=-1)
        along = F.relu(block.norm2(conv1x3(F.relu(hidden), block.conv2)) + shortcut)
        back = torch.empty_like(along)
        for place, row in enumerate(rows):
            back[row] = along[place]
        results.append(back)
    return results


@pytest.mark.parametrize("fusion", ["average", "concatenate"])
def test_each_order_is_followed_and_comes_back_to_its_patches(fusion):
    block = Refinement(Encoder(refinement_width=16, order_fusion=fusion)).eval()
    for norm in (block.lift_norm, block.norm1, block.norm2):
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    patches, centres = torch.randn(2, 20, 6, 24), torch.randn(2, 20, 3)
    refined = block(patches, centres)
    assert refined.shape == (2, 20, block.features)
    for b in range(2):
        results = slow_refinement(block, patches[b], centres[b])
        expected = torch.stack(results).mean(0) if fusion == "average" else torch.cat(results, dim=-1)
        torch.testing.assert_close(refined[b], expected)


def test_a_sampled_order_is_one_of_them_in_training_and_all_when_encoding():
    block = Refinement(Encoder(refinement_width=16, order_fusion="sample", orders=["xyz", "hilbert"]))
    centres = torch.randn(40, 20, 3)
    both = block.eval().rows(centres)
    one = block.train().rows(centres)
    assert both.shape == (40, 2, 20)
    assert one.shape == (40, 1, 20)
    first, second = ((one[:, 0] == both[:, index]).all(1) for index in (0, 1))
    assert (first | second).all()
    assert first.any()
    assert second.any()


@pytest.mark.parametrize("fusion", ["average", "concatenate"])
def test_gaussians_of_a_patch_are_followed_in_each_order(fusion):
    settings = Encoder(refinement_width=16, order_fusion=fusion, refinement_along="gaussians")
    block = InnerRefinement(settings).eval()
    for norm in (block.lift_norm, *block.norms):
        nn.init.normal_(norm.running_mean)
    for vector in (*block.scale, *block.shift):
        nn.init.normal_(vector)
    patches = torch.randn(2, 3, 7, 24)
    refined = block(patches, torch.randn(2, 3, 3))
    assert refined.shape == (2, 3, block.features)
    lifted = F.relu(block.lift_norm(block.lift(patches[..., :19])))
    for b in range(2):
        for g in range(3):
            places = patches[b, g, :, :3]
            low, side = places.amin(0), (places.amax(0) - places.amin(0)).max()
            grid = ((places - low) / side * 2**10).long().clamp(0, 2**10 - 1)
            results = []
            for i, name in enumerate(block.orders):
                along = (
                    lifted[b, g][order.encode(grid, name, 10).argsort(stable=True)] * block.scale[i] + block.shift[i]
                )
                for place, (convolution, norm) in enumerate(zip(block.convolutions, block.norms, strict=True)):
                    kernel = convolution.weight.view(16, 3, -1).transpose(1, 2)
                    stride = 2 if place == 2 else 1
                    along = F.relu(norm(F.conv1d(along.T, kernel, padding=1, stride=stride).T))
                results.append(along.amax(0))
            expected = torch.stack(results).mean(0) if fusion == "average" else torch.cat(results)
            torch.testing.assert_close(refined[b, g], expected, atol=1e-5, rtol=1e-4)


def test_the_gradient_reaches_what_was_put_in_order():
    block = Refinement(Encoder(refinement_width=8)).double()
    patches = torch.randn(2, 6, 4, 19, dtype=torch.float64, requires_grad=True)
    centres = torch.randn(2, 6, 3, dtype=torch.float64)
    block.eval()
    assert torch.autograd.gradcheck(lambda x: block(x, centres), patches, fast_mode=True)


def test_the_order_of_the_patches_does_not_matter():
    block = Refinement(Encoder(refinement_width=8)).eval()
    patches, centres = torch.randn(1, 12, 4, 24), torch.randn(1, 12, 3)
    other = torch.randperm(12)
    torch.testing.assert_close(block(patches[:, other], centres[:, other]), block(patches, centres)[:, other])
