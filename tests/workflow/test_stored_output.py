"""Outputs that earlier versions made, and what a run over one makes again: that, and no more.

The archive holds an output of version 0.1.0 with Snakemake's record of it, every file larger than 60 KB emptied, with
the times that the files had. It was made with the settings in its config.yaml, on a CPU. Its meshes are built-in
objects; they are written again here, since an emptied mesh is another object.

Since 0.2.0 meshes are read and drawn otherwise, so points and views of 0.1.0 are made once more, with all that is made
of them. The catalog, the files of the meshes and the captions stay.
"""

import os
import tarfile
from pathlib import Path

import pytest

from clipgs.catalog.sources import procedural

from .conftest import Workspace

OUTPUTS = Path(__file__).with_name("outputs")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, checkout):
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(OUTPUTS / "output-of-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="fully_trusted")  # it holds a link between its own folders
    for file in (folder / "meshes").glob("*.glb"):
        category, seed, number = file.stem.split("-")
        times = file.stat()
        file.write_bytes(procedural.build(f"{category}/{int(number)}/{seed}"))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return Workspace(folder, checkout)


SPLATS = {"sample": 2, "view": 2, "fit": 2, "render": 2}
PACKED = {**SPLATS, "pack": 2, "index": 1}
FEATURES = {**SPLATS, "pack": 2, "teacher": 1, "embed_images": 2, "embed_texts": 2}
EMBEDDED = {**PACKED, **FEATURES, "train": 1, "embed_shapes": 1}
EVALUATED = {**EMBEDDED, "evaluate": 1}
ROWS = {"ablation_points": 2, "ablation_start": 1, "ablation_train": 1, "ablation_evaluate": 2}


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("results/catalog/objects.parquet", {}),
        ("triplets", PACKED),
        ("features", FEATURES),
        ("train", FEATURES),  # and itself
        ("evaluate", EMBEDDED),  # and itself
        ("results/evaluation/baselines.json", {**EVALUATED, "baselines": 1}),
        ("results/evaluation/ablations.json", {**PACKED, **FEATURES, **ROWS, "ablations": 1}),
        ("results/report/index.html", {**EVALUATED, "baselines": 1, "report": 1}),  # the ablations as they are
    ],
)
def test_an_output_of_an_earlier_version_is_made_again_from_its_points_and_views_on(stored, target, jobs):
    assert stored.planned(target=target) == jobs
