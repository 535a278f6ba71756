import dataclasses
import subprocess
import sys

import pytest
import torch

from clipgs.splats.gaussians import Gaussians, Points, Views
from clipgs.splats.order import farthest_point_order
from tests.splats.balls import random_gaussians as gaussians


def slow_farthest_point_order(points: torch.Tensor) -> list[int]:  # [N, 3]
    distances = torch.cdist(points.double(), points.double())
    order = [0]
    while len(order) < len(points):
        nearest = distances[order].amin(dim=0)
        nearest[order] = -1
        order.append(int(nearest.argmax()))
    return order


def test_properties_are_activated():
    one = gaussians(5)
    assert torch.equal(one.scales, one.log_scales.exp())
    assert torch.equal(one.opacities, one.opacity_logits.sigmoid())


def test_stack_pads_with_invisible_gaussians_and_indexing_removes_them():
    short, long = gaussians(3, 1), gaussians(7, 2)
    batch = Gaussians.stack([short, long])
    assert batch.means.shape == (2, 7, 3)
    assert batch.count.tolist() == [3, 7]
    assert (batch.opacities[0, 3:] == 0).all()
    assert torch.equal(batch.means.amax(dim=1)[0], short.means.amax(dim=0))  # the box stays
    for original, back in zip((short, long), (batch[0], batch[1]), strict=True):
        assert back.count is None
        assert torch.equal(original.means, back.means)
        assert torch.equal(original.opacity_logits, back.opacity_logits)
    assert batch[1:].count.tolist() == [7]


def test_stack_of_equal_sizes_has_no_count():
    assert Gaussians.stack([gaussians(4), gaussians(4)]).count is None


def test_stack_of_what_cannot_be_stacked():
    with pytest.raises(ValueError, match=r"^There are no objects to stack\.$"):
        Gaussians.stack([])
    with pytest.raises(ValueError, match=r"^Only single objects with at least one Gaussian can be stacked\.$"):
        Gaussians.stack([gaussians(3), gaussians(0)])
    with pytest.raises(ValueError, match="single objects"):
        Gaussians.stack([Gaussians.stack([gaussians(3)])])


def test_one_missing_row_is_padded_too():
    batch = Gaussians.stack([gaussians(3), gaussians(4)])
    assert batch.count.tolist() == [3, 4]
    assert batch.opacities[0, 3] == 0


def test_prune_keeps_the_order_of_the_visible():
    one = gaussians(50)
    one.opacity_logits[7] = 0  # an opacity of exactly the limit is kept
    kept = one.prune(0.5)
    assert torch.equal(kept.means, one.means[one.opacity_logits >= 0])
    batch = Gaussians.stack([one])
    with pytest.raises(ValueError, match=r"^prune takes one object, not a batch \[1, 50, 3\]\.$"):
        batch.prune(0.5)


@pytest.mark.parametrize(
    "batch",
    [
        Points(*torch.rand(3, 2, 5, 3)),
        Views(torch.zeros(2, 3, 4, 4, 4, dtype=torch.uint8), torch.rand(2, 3, 4, 4), torch.rand(2, 3, 3, 3)),
        Gaussians.stack([gaussians(3), gaussians(7)]),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_to_and_index_keep_every_field(batch):
    moved, second, slice_ = batch.to("meta"), batch[1], batch[1:]
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        there = getattr(moved, field.name)
        assert (there.device.type, there.shape, there.dtype) == ("meta", value.shape, value.dtype)
        assert torch.equal(getattr(slice_, field.name), value[1:])
        if field.name != "count":
            assert torch.equal(getattr(second, field.name), value[1])


def test_a_batch_is_made_where_its_objects_are():
    batch = Gaussians.stack([gaussians(3).to("meta"), gaussians(7).to("meta")])
    assert {getattr(batch, field.name).device.type for field in dataclasses.fields(batch)} == {"meta"}


def test_a_splat_is_saved_and_loaded_by_its_own_methods(tmp_path):
    one = gaussians(20)
    one = one[farthest_point_order(one.means.numpy())]
    one.save(tmp_path / "one.ply")
    back = Gaussians.load(tmp_path / "one.ply")
    assert torch.equal(back.means, one.means)
    assert torch.equal(back.opacity_logits, one.opacity_logits)


def test_errors_of_a_ply_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"^PLY: the file is empty\.$"):
        Gaussians.from_ply(b"")
    with pytest.raises(ValueError, match=r"^There are no Gaussians to save\.$"):
        gaussians(0).to_ply()


@pytest.mark.parametrize("rows", [1, 2, 300])
def test_farthest_point_order_is_that_of_the_slow_reference(rows):
    one = gaussians(rows)
    assert farthest_point_order(one.means.numpy()).tolist() == slow_farthest_point_order(one.means)


def test_farthest_point_order_is_idempotent_and_takes_equals_in_order():
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)  # nothing but ties
    points = torch.cat([grid, grid[:5]]).numpy()  # and copies
    order = farthest_point_order(points)
    assert sorted(order) == list(range(len(points)))
    assert order[-5:].tolist() == sorted(order[-5:])  # copies have distance 0 and come last
    assert farthest_point_order(points[order]).tolist() == list(range(len(points)))


def test_farthest_point_order_far_from_the_origin():
    points = gaussians(200).means.double()
    assert farthest_point_order((points + 1e6).numpy()).tolist() == slow_farthest_point_order(points)
    assert farthest_point_order((points * 1e30).numpy()).tolist() == slow_farthest_point_order(points)


def test_farthest_point_order_of_nan():
    with pytest.raises(ValueError, match="finite"):
        farthest_point_order(torch.tensor([[0.0, 0.0, float("nan")]]).numpy())


@pytest.mark.parametrize("before", ["", "import clipgs.splats.fitting, clipgs.splats.rasterizer.cpu"])
def test_names_of_the_package_whatever_was_imported_before(before):
    code = f"""
import sys
import clipgs.splats
import clipgs.splats.stages, clipgs.triplets.stages
assert "torch" not in sys.modules
{before}
assert clipgs.splats.fit.__qualname__ == "fit"
assert clipgs.splats.rasterize.__qualname__ == "rasterize"
assert clipgs.splats.Gaussians.__module__ == "clipgs.splats.gaussians"
from clipgs.splats import Gaussians, Points, Views, fit, rasterize
import clipgs
assert clipgs.Gaussians is Gaussians
assert callable(fit)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
