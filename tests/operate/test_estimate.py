import json

import pytest

from clipgs.config import check
from clipgs.operate.estimate import needs, plan_text, time_text


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


def measured(checkout, name):
    return json.loads((checkout / "benchmarks" / "results" / f"{name}.json").read_text())["results"]


def seconds(tmp_path, stage, unit, *, shard_objects=100_000, **sections):
    """What `clipgs plan` reckons with for one object."""
    catalog = {"shard_objects": shard_objects, "procedural": {"objects": 1000}}
    _, stages = needs(config_of(tmp_path, catalog=catalog, **sections))
    return next(getattr(need, f"{unit}_hours") for need in stages if need.stage == stage) * 3600 / 1000


def test_a_fit_on_a_gpu_takes_as_long_as_was_measured(tmp_path, checkout):
    rows = [row for row in measured(checkout, "fit")["rows"] if row["way"] == "clipgs"]
    assert len(rows) >= 4
    for row in rows:
        fit = {"gaussians": row["gaussians"], "steps": row["steps"]}
        estimate = seconds(tmp_path, "fit", "gpu", fit=fit, views={"pixels": row["px"]})
        assert estimate == pytest.approx(3600 / row["objects_per_hour"], rel=0.35), row


def test_the_jobs_of_a_fit_take_as_long_as_was_measured(tmp_path, checkout):
    """From the workflow's own jobs: their starts and ends count, spread over the objects of a shard."""
    fit = measured(checkout, "triplets")["stages"]["fit"]
    estimate = seconds(tmp_path, "fit", "gpu", shard_objects=250, fit={"gaussians": 16_000}, views={"pixels": 256})
    assert estimate == pytest.approx(3600 / fit["objects_per_hour"], rel=0.15)


def test_a_fit_on_a_core_takes_as_long_as_was_measured(tmp_path, checkout):
    steps = [row["ms_a_step"] for row in measured(checkout, "rasterize_cpu")["rows"] if "ms_a_step" in row]
    estimate = seconds(tmp_path, "fit", "core", fit={"gaussians": 10_000, "steps": 5000}, views={"pixels": 128})
    assert estimate == pytest.approx(5000 * sum(steps) / len(steps) / 1000, rel=0.35)


@pytest.mark.parametrize("supersample", [1, 2])
def test_views_take_as_long_as_was_measured(tmp_path, checkout, supersample):
    taken = measured(checkout, "views")["by_supersample"][str(supersample)]["seconds_an_object"] * 40 / 36
    estimate = seconds(tmp_path, "view", "core", views={"pixels": 256, "supersample": supersample})
    assert 0.5 < estimate / taken < 2


def test_the_table_shows_these_hours(tmp_path):
    config = config_of(tmp_path)
    (fit,) = [need for need in needs(config)[1] if need.stage == "fit"]
    (line,) = [line for line in plan_text(config).splitlines() if line.startswith("fit ") and "runs" not in line]
    assert line.split(maxsplit=3)[3].split("  ")[-1].strip() == time_text(fit.gpu_hours)
    assert time_text(2.0) == "2.0 h"
    assert time_text(0.5) == "30.0 min"
