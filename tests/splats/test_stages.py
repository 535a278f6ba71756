"""The stages fit and render: every object comes out once, whatever fails and however often memory runs out."""

import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from clipgs.config import Config
from clipgs.core.bundles import Members, TarWriter, tar_objects
from clipgs.core.errors import ClipgsError
from clipgs.core.runner import Task
from clipgs.meshes.cameras import cameras_json
from clipgs.splats import fitting, stages
from clipgs.splats.gaussians import Gaussians
from clipgs.splats.pictures import from_image
from tests.splats.balls import balls, random_gaussians

COUNT, HELD_OUT = 6, 2


def tasks_of(folder, objects: int, broken: int | None) -> list[Task]:
    """Tasks as `fit` makes them, of balls; one object's points are not numbers."""
    points, views = balls(objects, points=300, views=COUNT + HELD_OUT)
    config = Config.model_validate(
        {
            "device": "cpu",
            "views": {"count": COUNT, "held_out": HELD_OUT, "pixels": 40},
            "fit": {"gaussians": 200, "steps": 10, "min_psnr": 0},
        }
    )
    arrays, files = {}, {}
    for b in range(objects):
        uid = f"ball{b}"
        xyz = points.xyz[b].numpy() * (np.nan if b == broken else 1)
        arrays |= {f"{uid}/xyz": xyz, f"{uid}/rgb": points.rgb[b].numpy(), f"{uid}/normals": points.normals[b].numpy()}
        files[uid] = {"cameras.json": cameras_json(views.viewmats[b].numpy(), views.Ks[b].numpy(), 40)}
        for v, rgba in enumerate(views.rgba[b].numpy()):
            data = io.BytesIO()
            Image.fromarray(rgba).save(data, "PNG")
            files[uid][f"{v:02d}.png"] = data.getvalue()
    np.savez(folder / "points.npz", **arrays)
    with TarWriter(folder / "views.tar") as tar:
        for uid, members in files.items():
            for name, data in sorted(members.items()):
                tar.add(f"{uid}/{name}", data)
    views_of = tar_objects(folder / "views.tar")
    return [
        Task(uid, "", stages.ToFit(config, uid, folder / "points.npz", views_of[uid], b)) for b, uid in enumerate(files)
    ]


class Gpu:
    """Stands in for the kernels: gives the starts back, and holds no more than so many objects."""

    def __init__(self, monkeypatch, holds: int, asked: int):
        self.holds, self.batches = holds, []
        monkeypatch.setattr(fitting, "fit", self.fit)
        monkeypatch.setattr(fitting.cuda, "objects_a_batch", lambda *_: asked)

    def fit(self, prepared, views, settings):
        assert views.rgba.shape[:2] == (len(prepared), COUNT)
        assert all(len(one.schedule.views) == settings.steps for one in prepared)
        self.batches.append(len(prepared))
        if len(prepared) > self.holds:
            raise torch.OutOfMemoryError("none left")
        return fitting.as_gaussians(torch.from_numpy(np.stack([one.raw for one in prepared])))


def test_every_object_comes_out_once(monkeypatch, tmp_path):
    gpu = Gpu(monkeypatch, holds=8, asked=3)
    tasks = tasks_of(tmp_path, 7, broken=4)
    results = {task.uid: result for task, result in stages._fit_batches(tasks, 2)}
    assert gpu.batches == [3, 2, 1]
    assert sorted(results) == [task.uid for task in tasks]
    assert results.pop("ball4") == "ObjectError: A surface point's position, colour or normal is not finite."
    for row, files in results.values():
        assert row["psnr"] > 10
        ((name, data),) = files
        assert name == "ply"
        assert len(Gaussians.from_ply(data)) == 200
    # each with its own cloud: the balls differ in size
    radii = [
        Gaussians.from_ply(files[0][1]).means.norm(dim=1).mean().item() for _, (_, files) in sorted(results.items())
    ]
    np.testing.assert_allclose(radii, [0.4, 0.45, 0.5, 0.55, 0.65, 0.7], rtol=1e-4)


def test_threads_read_the_points_in_turn(monkeypatch, tmp_path):
    """A zip file gives one thread's bytes to another, and says nothing or something strange."""
    tasks, load = tasks_of(tmp_path, 6, broken=None), np.load

    class Arrays:
        def __init__(self, *arguments, **options):
            self.opened, self.busy = load(*arguments, **options), threading.Lock()

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            self.opened.close()

        def __getitem__(self, name):
            assert self.busy.acquire(blocking=False), "two threads at once"
            time.sleep(0.002)
            self.busy.release()
            return self.opened[name]

    monkeypatch.setattr(np, "load", Arrays)
    Gpu(monkeypatch, holds=8, asked=6)
    results = [result for _, result in stages._fit_batches(tasks, 6)]
    assert [row["gaussians"] for row, _ in results] == [200] * 6


def test_when_memory_runs_out_the_batch_is_halved(monkeypatch, tmp_path, caplog):
    gpu = Gpu(monkeypatch, holds=2, asked=6)
    tasks = tasks_of(tmp_path, 6, broken=0)
    results = dict((task.uid, result) for task, result in stages._fit_batches(tasks, 2))
    assert gpu.batches == [5, 1, 2, 2]
    assert len(results) == 6
    assert "going on with 2 objects a batch" in caplog.text

    Gpu(monkeypatch, holds=0, asked=1)
    with pytest.raises(ClipgsError, match=r"views\.pixels or fit\.gaussians"):
        list(stages._fit_batches(tasks[1:], 2))


def test_without_objects_no_gpu_is_asked():
    assert list(stages._fit_batches([], 2)) == []


def ready_splats(folder, objects: int, device: str = "cpu") -> list[Task]:
    """Tasks as `render` makes them, of splats of different sizes; one file is cut."""
    config = Config.model_validate(
        {"device": device, "views": {"count": COUNT}, "render": {"pixels": 32, "webp_quality": 100}}
    )
    tasks = []
    for b in range(objects):
        data = random_gaussians(40 + 10 * b, seed=b).to_ply()
        data = data[:-100] if b == 3 else data
        (folder / f"{b}.ply").write_bytes(data)
        tasks.append(Task(f"splat{b}", "", (config, Members(str(folder / f"{b}.ply"), (("ply", 0, len(data)),)))))
    return tasks


def test_pictures_of_a_batch_are_those_of_each(monkeypatch, tmp_path, caplog):
    tasks = ready_splats(tmp_path, 7)
    alone = {task.uid: stages._render_one(task.payload) for task in tasks if task.uid != "splat3"}
    drawing, batches = stages._drawing, []

    def on_a_small_gpu(config, _):
        draw = drawing(config, "cpu")

        def held(splats):
            batches.append(len(splats))
            if len(splats) > 4:
                raise torch.OutOfMemoryError("none left")
            return draw(splats)

        return held

    monkeypatch.setattr(stages, "_drawing", on_a_small_gpu)
    results = {task.uid: result for task, result in stages._render_batches(tasks, 2)}
    assert batches == [6, 3, 2, 1]
    assert "going on with 3 objects a batch" in caplog.text
    assert "cut short" in results.pop("splat3")
    assert results == alone  # the same bytes


@pytest.mark.gpu
def test_pictures_on_the_gpu_are_those_of_the_cpu(tmp_path):
    pytest.importorskip("gsplat", reason="needs gsplat")
    tasks = ready_splats(tmp_path, 7, "cuda")
    results = {task.uid: result for task, result in stages._render_batches(tasks, 2)}
    assert "cut short" in results.pop("splat3")
    for task in tasks:
        if task.uid in results:
            (_, theirs), (_, ours) = stages._render_one(task.payload), results[task.uid]
            assert [name for name, _ in ours] == [name for name, _ in theirs]
            for (_, one), (_, other) in zip(ours, theirs, strict=True):
                off = from_image(one).astype(int) - from_image(other)
                assert abs(off).mean() < 0.5


@pytest.mark.gpu
def test_the_stage_fits_on_the_gpu_what_it_fits_on_the_cpu(tmp_path):
    tasks = tasks_of(tmp_path, 5, broken=2)
    settings = {"gaussians": 200, "steps": 300, "lr_factor": 3.0, "min_psnr": 0}
    payloads = {}
    for device in ("cpu", "cuda"):
        config = Config.model_validate(
            {"device": device, "views": {"count": COUNT, "held_out": HELD_OUT, "pixels": 40}, "fit": settings}
        )
        payloads[device] = [Task(task.uid, "", task.payload._replace(config=config)) for task in tasks]
    results = {task.uid: result for task, result in stages._fit_batches(payloads["cuda"], 2)}
    assert "is not finite" in results.pop("ball2")
    for task in payloads["cpu"]:
        if task.uid in results:
            row, _ = stages._fit_one(task.payload)
            assert abs(results[task.uid][0]["psnr"] - row["psnr"]) < 0.2, task.uid
