"""The fit stage's batches: every object comes out once, whatever fails and however often memory runs out."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from test_fit import balls

from clipgs.config import Config
from clipgs.meshes.cameras import cameras_json
from clipgs.splats import fit_cuda, ply, stages
from clipgs.stage import Task
from clipgs.storage import ClipgsError, Members

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
    arrays, tasks = {}, []
    for b in range(objects):
        uid = f"ball{b}"
        xyz = points.xyz[b].numpy() * (np.nan if b == broken else 1)
        arrays |= {f"{uid}/xyz": xyz, f"{uid}/rgb": points.rgb[b].numpy(), f"{uid}/normals": points.normals[b].numpy()}
        files = {"cameras.json": cameras_json(views.viewmats[b].numpy(), views.Ks[b].numpy(), 40)}
        for v, rgba in enumerate(views.rgba[b].numpy()):
            data = io.BytesIO()
            Image.fromarray(rgba).save(data, "PNG")
            files[f"{v:02d}.png"] = data.getvalue()
        bundle, entries, offset = folder / f"{uid}.bin", [], 0
        for name, content in files.items():
            entries.append((name, offset, len(content)))
            offset += len(content)
        bundle.write_bytes(b"".join(files.values()))
        tasks.append(Task(uid, "", (config, uid, folder / "points.npz", Members(str(bundle), tuple(entries)), b)))
    np.savez(folder / "points.npz", **arrays)
    return tasks


class Gpu:
    """Stands in for the kernels: gives the starts back, and holds no more than so many objects."""

    def __init__(self, monkeypatch, holds: int, asked: int):
        self.holds, self.batches = holds, []
        monkeypatch.setattr(fit_cuda, "fit_tables", self.fit_tables)
        monkeypatch.setattr(fit_cuda, "objects_a_batch", lambda *_: asked)

    def fit_tables(self, tables, views, settings, plans):
        assert views.rgba.shape[:2] == (len(tables), COUNT)
        assert len(plans) == len(tables)
        self.batches.append(len(tables))
        if len(tables) > self.holds:
            raise torch.OutOfMemoryError("none left")
        return torch.from_numpy(tables)


def test_every_object_comes_out_once(monkeypatch, tmp_path):
    gpu = Gpu(monkeypatch, holds=8, asked=3)
    tasks = tasks_of(tmp_path, 7, broken=4)
    results = {task.uid: result for task, result in stages._fit_batches(tasks)}
    assert gpu.batches == [3, 2, 1]
    assert sorted(results) == [task.uid for task in tasks]
    assert results.pop("ball4") == "ObjectError: A surface point's position, colour or normal is not finite."
    for row, files in results.values():
        assert row["psnr"] > 10
        ((name, data),) = files
        assert name == "ply"
        assert len(ply.from_bytes(data)) == 200
    # each with its own cloud: the balls differ in size
    radii = [ply.from_bytes(files[0][1]).means.norm(dim=1).mean().item() for _, (_, files) in sorted(results.items())]
    np.testing.assert_allclose(radii, [0.4, 0.45, 0.5, 0.55, 0.65, 0.7], rtol=1e-4)


def test_when_memory_runs_out_the_batch_is_halved(monkeypatch, tmp_path, caplog):
    gpu = Gpu(monkeypatch, holds=2, asked=6)
    tasks = tasks_of(tmp_path, 6, broken=0)
    results = dict((task.uid, result) for task, result in stages._fit_batches(tasks))
    assert gpu.batches == [5, 1, 2, 2]
    assert len(results) == 6
    assert "going on with 2 objects a batch" in caplog.text

    Gpu(monkeypatch, holds=0, asked=1)
    with pytest.raises(ClipgsError, match=r"views\.pixels or fit\.gaussians"):
        list(stages._fit_batches(tasks[1:]))


def test_without_objects_no_gpu_is_asked():
    assert list(stages._fit_batches([])) == []
