"""The CPU engine against gsplat's own output and against a dense float64 reference."""

import numpy as np
import pytest
import torch

from clipgs.splats.rasterizer import rasterize

NAMES = ("means", "quats_wxyz", "scales", "opacities", "colors")


def hold_to_gsplat(stored, mode):
    """Pictures, and gradients where there are some, of gsplat's CUDA kernels."""

    def tensor(name):
        return torch.from_numpy(stored[name])

    inputs = [tensor(name).requires_grad_() for name in NAMES]
    images, alphas = rasterize(
        *inputs,
        tensor("viewmats"),
        tensor("Ks"),
        int(stored["width"]),
        int(stored["height"]),
        backgrounds=tensor("backgrounds"),
        mode=mode,
    )
    for ours, name in ((images, f"{mode}_image"), (alphas, f"{mode}_alpha")):
        whole = stored[name].dtype == np.uint16  # of 65,535: rounding alone is 3.8e-6 in the mean
        off = (ours - tensor(name).float() / (65535 if whole else 1)).detach().abs()
        assert off.max() < 1e-4
        assert off.mean() < (5e-6 if whole else 1e-6)
    if f"{mode}_w_image" not in stored:
        return
    (images * tensor(f"{mode}_w_image")).sum().add((alphas * tensor(f"{mode}_w_alpha")).sum()).backward()
    for name, ours in zip(("means", "quats", "scales", "opacities", "colors"), inputs, strict=True):
        theirs = tensor(f"{mode}_grad_{name}")
        assert (ours.grad - theirs).norm() < 1e-4 * theirs.norm(), name


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_agrees_with_gsplat(vectors, mode):
    hold_to_gsplat(np.load(vectors / "gsplat_raster.npz"), mode)


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
def test_agrees_with_gsplat_to_the_last_digits(shared, mode):
    hold_to_gsplat(np.load(shared / "vectors" / "gsplat_raster.npz"), mode)


def scene(batch=(), gaussians=150, views=2, seed=0):
    """Gaussians from a pixel to half the frame in size, some behind the camera or beside the frame."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*batch, *shape, generator=rng)

    inputs = {
        "means": (uniform(gaussians, 3) - 0.5) * torch.tensor([2.4, 1.6, 5.5]),
        "quats_wxyz": torch.randn(*batch, gaussians, 4, generator=rng),
        "scales": 0.01 * 40 ** uniform(gaussians, 3),
        "opacities": uniform(gaussians).sqrt(),
        "colors": uniform(gaussians, 3),
    }
    viewmats = torch.eye(4).repeat(*batch, views, 1, 1)
    angles = 0.6 * uniform(views)
    viewmats[..., 0, 0], viewmats[..., 0, 2] = angles.cos(), angles.sin()
    viewmats[..., 2, 0], viewmats[..., 2, 2] = -angles.sin(), angles.cos()
    viewmats[..., :3, 3] = torch.tensor([0.1, -0.05, 2.2])
    Ks = torch.tensor([[32.0, 0, 19.0], [0, 30.0, 10.0], [0, 0, 1]]).repeat(*batch, views, 1, 1)
    return inputs, viewmats, Ks, uniform(views, 3)


def dense_reference(means, quats_wxyz, scales, opacities, colors, viewmat, K, width, height, background, mode):
    """One picture, every Gaussian at every pixel, float64. Returns it, its alpha, and where no decision
    (alpha >= 1/255, transmittance > 1e-4) hangs on the last digits, so that float32 must decide alike."""
    w, x, y, z = torch.nn.functional.normalize(quats_wxyz, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).unflatten(-1, (3, 3))
    axes = rotation * scales[:, None, :]
    position = means @ viewmat[:3, :3].T + viewmat[:3, 3]
    order = position[:, 2].argsort(stable=True)
    order = order[position[order, 2] >= 0.01]
    axes, position, opacities, colors = axes[order], position[order], opacities[order], colors[order]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    depth = position[:, 2]
    ratio_x = (position[:, 0] / depth).clamp(-cx / fx - 0.15 * width / fx, (width - cx) / fx + 0.15 * width / fx)
    ratio_y = (position[:, 1] / depth).clamp(-cy / fy - 0.15 * height / fy, (height - cy) / fy + 0.15 * height / fy)
    zero = torch.zeros_like(depth)
    jacobian = torch.stack(
        [fx / depth, zero, -fx * ratio_x / depth, zero, fy / depth, -fy * ratio_y / depth], dim=-1
    ).unflatten(-1, (2, 3))
    projected = jacobian @ viewmat[:3, :3] @ axes
    sharp = projected @ projected.transpose(-1, -2)
    covariance = sharp + 0.3 * torch.eye(2, dtype=sharp.dtype)
    if mode == "antialiased":
        opacities = opacities * (sharp.det() / covariance.det()).clamp_min(0).sqrt()
    centre = torch.stack([fx * position[:, 0] / depth + cx, fy * position[:, 1] / depth + cy], dim=-1)
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    offset = torch.stack([columns, rows], dim=-1)[:, :, None] - centre  # [H, W, N, 2]
    distance = (offset[..., None, :] @ covariance.inverse() @ offset[..., None])[..., 0, 0]
    alpha = (opacities * torch.exp(-0.5 * distance)).clamp_max(0.999)
    clear = ((alpha * 255 - 1).abs() > 1e-3).all(-1)
    alpha = torch.where(alpha >= 1 / 255, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, dim=-1)
    clear &= ((after / 1e-4 - 1).abs() > 1e-3).all(-1)
    alpha = torch.where(after > 1e-4, alpha, torch.zeros_like(alpha))  # `after` only falls: finished stays finished
    after = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
    image = (alpha * before) @ colors + after[..., -1:] * background
    return image, 1 - after[..., -1:], clear


@pytest.mark.parametrize("mode", ["classic", "antialiased"])
@pytest.mark.parametrize("batch", [(), (2,), (1, 2)])
def test_agrees_with_dense_reference(batch, mode):
    width, height = 37, 22
    inputs, viewmats, Ks, backgrounds = scene(batch)
    ours = [value.clone().requires_grad_() for value in inputs.values()]
    our_ground = backgrounds.clone().requires_grad_()
    images, alphas = rasterize(*ours, viewmats, Ks, width, height, backgrounds=our_ground, mode=mode)
    assert images.shape == (*batch, 2, height, width, 3)
    assert alphas.shape == (*batch, 2, height, width, 1)

    theirs = [value.double().requires_grad_() for value in inputs.values()]
    their_ground = backgrounds.double().requires_grad_()
    rng = torch.Generator().manual_seed(1)
    ours_sum, theirs_sum = 0.0, 0.0
    for index in np.ndindex(*batch, 2):
        image, alpha, clear = dense_reference(
            *(value[index[:-1]] for value in theirs),
            viewmats[index].double(),
            Ks[index].double(),
            width,
            height,
            their_ground[index],
            mode,
        )
        assert clear.double().mean() > 0.9
        assert alpha.max() > 0.99  # pixels that finish early are among those compared
        assert (image - images[index])[clear].abs().max() < 1e-5
        assert (alpha - alphas[index])[clear].abs().max() < 1e-5
        weights = torch.randn(height, width, 4, generator=rng) * clear[..., None]
        theirs_sum = theirs_sum + (weights * torch.cat([image, alpha], dim=-1)).sum()
        ours_sum = ours_sum + (weights * torch.cat([images[index], alphas[index]], dim=-1)).sum()
    ours_sum.backward()
    theirs_sum.backward()
    for name, mine, reference in zip(
        (*NAMES, "backgrounds"), (*ours, our_ground), (*theirs, their_ground), strict=True
    ):
        assert (mine.grad - reference.grad).norm() < 1e-4 * reference.grad.norm(), name


def test_results_repeat_and_do_not_depend_on_the_batch():
    inputs, viewmats, Ks, backgrounds = scene((2,))

    def run(index):
        values = [value[index].clone().requires_grad_() for value in inputs.values()]
        images, alphas = rasterize(*values, viewmats[index], Ks[index], 37, 22, backgrounds=backgrounds[index])
        (images.square().sum() + alphas.sum()).backward()
        return [images.detach(), alphas.detach(), *(value.grad for value in values)]

    both = run(slice(0, 2))
    for first, second in zip(both, run(slice(0, 2)), strict=True):
        assert torch.equal(first, second)
    for first, second in zip(both, run(1), strict=True):
        assert torch.equal(first[1], second)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gaussian_that_is_not_finite_is_not_drawn(name, value):
    inputs, viewmats, Ks, _ = scene()
    without = rasterize(*(tensor[1:] for tensor in inputs.values()), viewmats, Ks, 37, 22)
    inputs[name][0] = value
    tensors = [tensor.requires_grad_() for tensor in inputs.values()]
    images, alphas = rasterize(*tensors, viewmats, Ks, 37, 22)
    assert torch.equal(images, without[0])
    assert torch.equal(alphas, without[1])
    images.sum().backward()
    for tensor in tensors:
        assert tensor.grad.isfinite().all()
        assert not tensor.grad[0].any()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 3), (8, 5), (9, 16), (103, 4)])
def test_every_width_is_drawn_whole(width, height):
    """One Gaussian far larger than the frame: every pixel has its colour, none has another row's."""
    images, alphas = rasterize(
        torch.tensor([[0.0, 0, 1]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 1e3),
        torch.tensor([0.5]),
        torch.tensor([[0.2, 0.4, 0.6]]),
        torch.eye(4)[None],
        torch.tensor([[[50.0, 0, width / 2], [0, 50, height / 2], [0, 0, 1]]]),
        width,
        height,
    )
    torch.testing.assert_close(alphas, torch.full_like(alphas, 0.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(images, torch.tensor([0.1, 0.2, 0.3]).expand_as(images), atol=1e-5, rtol=0)


def test_no_gaussians_leave_the_ground():
    _, viewmats, Ks, backgrounds = scene()
    empty = [torch.zeros(0, size) for size in (3, 4, 3)]
    images, alphas = rasterize(*empty, torch.zeros(0), torch.zeros(0, 3), viewmats, Ks, 10, 6, backgrounds=backgrounds)
    assert torch.equal(images, backgrounds[:, None, None].expand(2, 6, 10, 3))
    assert not alphas.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quats_wxyz": torch.zeros(150, 3)}, r"quats_wxyz .*\[\.\.\., N, 4\].*\[150, 4\].*not \[150, 3\]"),
        ({"opacities": torch.zeros(150, 1)}, r"opacities .*\[150\].*not \[150, 1\]"),
        ({"colors": torch.zeros(150, 3, dtype=torch.int64)}, r"colors must be a floating tensor"),
        ({"means": torch.zeros(3)}, r"means must be a tensor \[\.\.\., N, 3\]"),
        ({"viewmats": torch.zeros(4, 4)}, r"viewmats must be a tensor \[\.\.\., V, 4, 4\]"),
        ({"Ks": torch.zeros(1, 3, 3)}, r"Ks .*\[2, 3, 3\].*not \[1, 3, 3\]"),
        ({"backgrounds": torch.zeros(3)}, r"backgrounds .*\[2, 3\]"),
        ({"viewmats": torch.eye(4).repeat(2, 1, 1).requires_grad_()}, r"viewmats requires a gradient"),
        ({"width": 0}, r"width and height must be at least 1 pixel"),
        ({"mode": "sharp"}, r"mode must be \"classic\" or \"antialiased\""),
        ({"engine": "gpu"}, r"engine must be \"auto\", \"cpu\" or \"cuda\""),
    ],
)
def test_wrong_arguments_are_named(change, message):
    inputs, viewmats, Ks, _ = scene()
    arguments = {**inputs, "viewmats": viewmats, "Ks": Ks, "width": 8, "height": 8, **change}
    with pytest.raises(ValueError, match=message):
        rasterize(**arguments)
