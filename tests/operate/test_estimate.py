import pytest

from clipgs.config import check
from clipgs.operate.estimate import needs, plan_text


def config_of(tmp_path, **more):
    settings = {"output": str(tmp_path), "catalog": {"shard_objects": 100, "procedural": {"objects": 1000}}}
    return check(settings | more)


def test_needs_grow_with_objects_pixels_and_gaussians(tmp_path):
    plan, stages = needs(config_of(tmp_path))
    assert plan.objects == 1000
    jobs = {need.stage: need.jobs for need in stages}
    over_shards = ("label", "fetch", "sample", "view", "fit", "render", "caption", "pack")
    assert jobs == dict.fromkeys(over_shards, 10) | {"freeze": 1, "objects": 1, "index": 1}
    small = {need.stage: need for need in stages}
    large = {
        need.stage: need for need in needs(config_of(tmp_path, views={"pixels": 512}, fit={"gaussians": 32_000}))[1]
    }
    assert large["view"].disk_bytes == pytest.approx(4 * small["view"].disk_bytes)
    assert large["fit"].disk_bytes == pytest.approx(2 * small["fit"].disk_bytes)
    assert large["fit"].gpu_hours > small["fit"].gpu_hours
    assert not (tmp_path / "catalog").exists()


def test_a_splat_is_as_large_as_estimated(tmp_path):
    """10,000 Gaussians of 14 float32."""
    _, stages = needs(config_of(tmp_path, fit={"gaussians": 10_000}))
    fit = next(need for need in stages if need.stage == "fit")
    assert fit.disk_bytes / 1000 == pytest.approx(560_000)


def test_what_is_dropped_is_said(tmp_path):
    text = plan_text(config_of(tmp_path, temporary=["views"]))
    (line,) = [line for line in text.splitlines() if line.startswith("view")]
    assert line.endswith("dropped when no longer needed")
    assert "1,000 objects in 10 shards" in text
