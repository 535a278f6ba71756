"""Outputs that earlier versions made stay finished: a run over one makes no splat, no feature and no model again.

The archive holds an output of version 0.1.0 with Snakemake's record of it, every file larger than 60 KB emptied, with
the times that the files had. It was made with the settings in its config.yaml, on a CPU. Its meshes are built-in
objects; they are written again here, since an emptied mesh is another object.

Since 0.2.0 triplets name their source file, so an output of 0.1.0 is packed once more, and what reads the packed texts
and index follows. No splat is fitted and no picture is drawn or embedded again.
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


PACKED = {"pack": 2, "index": 1}
FEATURES = {**PACKED, "embed_texts": 2}
EMBEDDED = {**FEATURES, "embed_shapes": 1}
EVALUATED = {**EMBEDDED, "evaluate": 1}


@pytest.mark.parametrize(
    ("target", "jobs"),
    [
        ("results/catalog/objects.parquet", {}),
        ("triplets", PACKED),
        ("features", FEATURES),
        ("train", FEATURES),
        ("evaluate", EMBEDDED),  # and itself
        ("results/evaluation/baselines.json", {**EVALUATED, "baselines": 1}),
    ],
)
def test_a_finished_output_of_an_earlier_version_is_packed_once_more_and_nothing_else_is_made(stored, target, jobs):
    assert stored.planned(target=target) == jobs


def test_the_table_of_its_ablation_is_put_together_once_more_and_no_row_is_trained(stored):
    """Each row has jobs of its own since 0.2.0, so the table has other inputs."""
    jobs = {**FEATURES, "ablation_points": 2, "ablation_evaluate": 2, "ablations": 1}
    assert stored.planned(target="results/evaluation/ablations.json") == jobs
    assert stored.planned(target="results/report/index.html") == {**EVALUATED, **jobs, "baselines": 1, "report": 1}
