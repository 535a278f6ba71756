import numpy as np
import pytest
import torch

from clipgs.encoder import prepare
from clipgs.evaluation.baselines import BASELINES, MISSING_COLOR, PUBLISHED, _splats, embed_points, preprocess
from clipgs.triplets.dataset import TripletDataset
from tests.training.small_dataset import make_shard, settings

UNI3D, OPENSHAPE, ULIP2 = BASELINES


def cloud(points, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(points, 3, generator=generator) * 3 + 5, torch.rand(points, 3, generator=generator)


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda one: one.name)
def test_points_are_centred_and_scaled_as_the_models_know_them(baseline):
    xyz, rgb = cloud(12_000)
    points, colors = preprocess(baseline, xyz, rgb)
    assert points.shape == colors.shape == (10_000, 3)
    torch.testing.assert_close(points.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    assert points.norm(dim=1).max() == pytest.approx(1)
    torch.testing.assert_close(colors, rgb[:10_000])


def test_openshape_sees_y_and_z_exchanged():
    xyz, _ = cloud(500)
    ours, theirs = preprocess(UNI3D, xyz, None)[0], preprocess(OPENSHAPE, xyz, None)[0]
    torch.testing.assert_close(theirs, ours[:, [0, 2, 1]])
    torch.testing.assert_close(preprocess(ULIP2, xyz, None)[0], ours)


def test_a_missing_color_is_what_the_models_were_trained_with():
    assert (preprocess(UNI3D, cloud(5)[0], None)[1] == MISSING_COLOR).all()


def test_clouds_of_several_sizes_go_through_in_order():
    clouds = [cloud(size, seed) for seed, size in enumerate([30, 30, 50, 30] + [40] * 20)]

    class Model(torch.nn.Linear):
        def forward(self, xyz, rgb):
            return torch.cat([xyz[:, 0], rgb[:, 0], torch.full((len(xyz), 1), xyz.shape[1])], dim=1)

    found = embed_points(Model(1, 1), UNI3D, iter(clouds), len(clouds))
    assert found[:, 6].tolist() == [len(xyz) for xyz, _ in clouds]
    for row, (xyz, rgb) in zip(found, clouds, strict=True):
        points, colors = preprocess(UNI3D, xyz, rgb)
        np.testing.assert_allclose(row[:6], torch.cat([points[0], colors[0]]), rtol=1e-5)


def test_published_numbers_are_never_ours():
    for row in PUBLISHED:
        assert row["source"].startswith("published: ")
        assert "ours" not in row
        assert all(0 <= value <= 1 for value in row.values() if isinstance(value, float))


def test_a_baseline_can_be_asked_with_what_our_encoder_reads(tmp_path):
    """A floater would else be among the first points, and nearly clear Gaussians among the patches' centres."""
    config = settings(tmp_path)
    uids = make_shard(config, "00000", [f"u{i}" for i in range(4)])
    whole = [len(xyz) for xyz, _ in _splats(config, uids, None)]
    assert min(whole) > 10
    assert [len(xyz) for xyz, _ in _splats(config, uids, 10)] == [10] * 4
    dataset = TripletDataset(config.output_path / "triplets")
    ours = [prepare(dataset.gaussians(i), config.encoder) for i in range(4)]
    for (xyz, rgb), wanted in zip(_splats(config, uids, config.encoder.gaussians), ours, strict=True):
        assert torch.equal(xyz, wanted.means)
        assert torch.equal(rgb, wanted.colors)
