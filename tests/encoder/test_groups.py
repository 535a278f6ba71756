from dataclasses import replace

import pytest
import torch

from clipgs.config import Encoder
from clipgs.core.errors import ObjectError
from clipgs.encoder.groups import centre_rows, farthest_points, nearest, prepare, take
from clipgs.splats.gaussians import PADDING_LOGIT, Gaussians
from clipgs.splats.order import farthest_point_order

from .conftest import random_gaussians


def one(N=200):
    return random_gaussians(1, N)[0]


def slow_farthest(xyz, groups):
    chosen = [0]
    while len(chosen) < groups:
        distance = torch.cdist(xyz, xyz[chosen], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        chosen.append(int(distance.argmax()))
    return chosen


def test_farthest_points_are_those_of_the_plain_loop():
    xyz = torch.randn(3, 100, 3)
    rows = farthest_points(xyz, 20)
    assert rows.tolist() == [slow_farthest(one, 20) for one in xyz]


def test_fewer_points_than_centres_are_chosen_again():
    rows = farthest_points(torch.randn(2, 5, 3), 8)
    assert torch.equal(rows[:, 5:], rows[:, :3])
    assert rows[:, :5].sort().values.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_first_rows_of_an_order_are_those_of_the_whole_order():
    xyz = torch.randn(300, 3).numpy()
    whole, first = farthest_point_order(xyz), farthest_point_order(xyz, first=30)
    assert (whole[:30] == first[:30]).all()
    assert (first[30:] == sorted(set(range(300)) - set(first[:30]))).all()
    assert (farthest_point_order(xyz, first=1000) == whole).all()


@pytest.mark.parametrize("count", [None, [60, 9]])
def test_nearest_are_those_of_a_plain_sort(count):
    xyz = torch.randn(2, 60, 3)
    counts = None if count is None else torch.tensor(count)
    centres = xyz[:, :4]
    rows = nearest(xyz, centres, 8, counts)
    assert rows.shape == (2, 4, 8)
    for b in range(2):
        real = xyz[b] if count is None else xyz[b, : count[b]]
        for patch in range(4):
            distance = (real - centres[b, patch]).norm(dim=1)
            assert rows[b, patch].tolist() == distance.argsort()[:8].tolist()


def test_an_object_of_fewer_gaussians_than_a_patch_gives_all_again_and_no_padding():
    xyz = torch.randn(3, 20, 3)
    rows = nearest(xyz, xyz[:, :4], 8, torch.tensor([20, 5, 1]))
    assert set(rows[1].flatten().tolist()) == set(range(5))
    assert torch.equal(rows[1, :, 5:], rows[1, :, :3])
    assert (rows[2] == 0).all()
    few = nearest(xyz[:, :5], xyz[:, :4], 8)
    assert torch.equal(few[..., 5:], few[..., :3])


def test_neighbours_do_not_change_when_an_object_is_turned_and_scaled():
    xyz = torch.randn(2, 80, 3)
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    moved = xyz @ turn.T * 1.2 + 0.1
    assert torch.equal(nearest(xyz, xyz[:, :9], 16), nearest(moved, moved[:, :9], 16))


def test_centres_are_the_first_rows_and_again_the_first():
    assert centre_rows(torch.tensor([9, 3]), 5).tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]


@pytest.mark.parametrize("shape", [(4,), (4, 3)])
def test_take_reads_rows_of_each_object(shape):
    values, rows = torch.randn(2, 10, 5), torch.randint(10, (2, *shape))
    taken = take(values, rows)
    assert taken.shape == (2, *shape, 5)
    for b in range(2):
        assert torch.equal(taken[b], values[b][rows[b]])


# --- prepare ---------------------------------------------------------------------------------------------------------


def test_prepare_centres_and_scales_as_uni3d_does_where_the_radius_is_the_largest():
    gaussians = one()
    settings = Encoder(radius_fraction=1.0, min_opacity=0.0, outlier_radii=10.0)
    prepared = prepare(gaussians, settings)
    means = gaussians.means - gaussians.means.mean(0)
    radius = means.norm(dim=1).max()
    order = farthest_point_order(means.numpy(), first=settings.groups)
    torch.testing.assert_close(prepared.means, (means / radius)[order])
    torch.testing.assert_close(prepared.log_scales, (gaussians.log_scales - radius.log())[order])
    assert torch.equal(prepared.colors, gaussians.colors[order])
    assert torch.equal(prepared.quats_wxyz, gaussians.quats_wxyz[order])


def test_prepare_leaves_out_the_transparent_and_the_far():
    gaussians = one()
    logits, means = gaussians.opacity_logits.clone(), gaussians.means.clone()
    logits[:50] = -6.0
    means[50] = torch.tensor([40.0, 0, 0])
    prepared = prepare(replace(gaussians, opacity_logits=logits, means=means))
    assert len(prepared) == 149
    assert prepared.means.norm(dim=1).max() < 2
    without = prepare(gaussians[51:])
    torch.testing.assert_close(prepared.means, without.means)


@pytest.mark.parametrize("N", [501, 1000])
def test_prepare_takes_the_median_and_the_quantiles_that_torch_takes(N):
    gaussians = one(N)
    settings = Encoder(min_opacity=0.3, outlier_radii=1.0, radius_fraction=0.9)
    means = gaussians.means[gaussians.opacities >= 0.3].double()
    distance = (means - means.median(0).values).norm(dim=1)
    means = means[distance <= distance.quantile(0.9)]
    means = means - means.mean(0)
    radius = means.norm(dim=1).quantile(0.9)
    prepared = prepare(gaussians, settings)
    order = farthest_point_order((means / radius).float().numpy(), first=settings.groups)
    torch.testing.assert_close(prepared.means, (means / radius).float()[order])


def test_a_floater_does_not_set_the_size():
    gaussians = one(1000)
    means = gaussians.means.clone()
    means[3] *= 3 / means[3].norm()
    radius = prepare(replace(gaussians, means=means)).means.norm(dim=1)
    assert radius.quantile(0.99) == pytest.approx(1, abs=0.01)


def test_prepare_does_not_depend_on_where_the_object_stands_or_how_large_it_is():
    gaussians = one()
    scale = 7.0
    moved = replace(
        gaussians,
        means=gaussians.means * scale + 3,
        log_scales=gaussians.log_scales + torch.tensor(scale).log(),
    )
    torch.testing.assert_close(prepare(moved).means, prepare(gaussians).means, atol=1e-5, rtol=0)
    torch.testing.assert_close(prepare(moved).log_scales, prepare(gaussians).log_scales, atol=1e-5, rtol=0)


def test_the_first_rows_of_a_prepared_object_are_the_centres():
    settings = Encoder(groups=32)
    means = prepare(one(), settings).means
    assert farthest_points(means[None], 32)[0].tolist() == list(range(32))


def test_of_too_many_gaussians_those_farthest_apart_stay():
    gaussians = one(500)
    settings = Encoder(gaussians=64, groups=16)
    prepared = prepare(gaussians, settings)
    assert len(prepared) == 64
    assert farthest_points(prepared.means[None], 64)[0].tolist() == list(range(64))


def test_all_gaussians_in_one_point_are_finite():
    gaussians = replace(one(50), means=torch.full((50, 3), 3.0))
    assert (prepare(gaussians).means == 0).all()


def test_infinite_logits_are_opacities_of_zero_and_one():
    gaussians = one(4)
    logits = torch.tensor([-torch.inf, torch.inf, 2.0, PADDING_LOGIT])
    prepared = prepare(replace(gaussians, opacity_logits=logits))
    assert len(prepared) == 2
    assert prepared.opacity_logits.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("means", torch.nan, "mug: means of 1 of 9 Gaussians are not finite"),
        ("quats_wxyz", torch.inf, "quats_wxyz of 1 of 9"),
        ("colors", torch.nan, "colors of 1 of 9"),
        ("opacity_logits", torch.nan, "opacity_logits of 1 of 9"),
        ("log_scales", torch.nan, "log_scales of 1 of 9"),
    ],
)
def test_a_value_that_is_no_number_is_the_objects_fault(field, value, words):
    gaussians = one(9)
    values = getattr(gaussians, field).clone()
    values[4] = value
    with pytest.raises(ObjectError, match=words):
        prepare(replace(gaussians, **{field: values}), name="mug")


def test_an_object_that_cannot_be_seen_is_named():
    gaussians = replace(one(9), opacity_logits=torch.full((9,), -torch.inf))
    with pytest.raises(ObjectError, match="mug: none of 9 Gaussians"):
        prepare(gaussians, name="mug")


def test_prepare_takes_one_object():
    with pytest.raises(ValueError, match="one object"):
        prepare(random_gaussians(2, 5))


def test_prepared_objects_stack():
    batch = Gaussians.stack([prepare(one(N)) for N in (30, 100)])
    assert batch.count is not None
    assert batch.means.shape[0] == 2


def test_what_shows_most_is_read_where_that_is_chosen():
    """Farthest points leave out where Gaussians are dense, which is where there is detail."""
    gaussians = random_gaussians(1, 1000)[0]
    large = torch.arange(1000) % 4 == 0
    gaussians = replace(gaussians, log_scales=torch.where(large[:, None], -2.0, -6.0).expand(1000, 3).contiguous())
    settings = Encoder(size="tiny", gaussians=200, groups=16, group_size=8, choice="weight")
    first, again = prepare(gaussians, settings), prepare(gaussians, settings)
    assert torch.equal(first.means, again.means)
    assert len(first) == 200
    assert len(first.means.unique(dim=0)) == 200
    share = (first.log_scales > first.log_scales.amin() + 1).all(-1).float().mean()
    farthest = prepare(gaussians, settings.model_copy(update={"choice": "farthest"}))
    assert share > 0.95 > (farthest.log_scales > farthest.log_scales.amin() + 1).all(-1).float().mean()
    whole = settings.model_copy(update={"gaussians": 5000})
    assert len(prepare(gaussians, whole)) == len(prepare(gaussians, whole.model_copy(update={"choice": "farthest"})))
