"""Outputs that earlier versions made stay finished: a run over one plans little, and no work of hours.

The archive holds an output of version 0.1.0 with Snakemake's record of it, every file larger than 60 KB emptied, with
the times that the files had. It was made with the settings in its config.yaml, on a CPU.
"""

import tarfile
from pathlib import Path

import pytest

from .conftest import Workspace

OUTPUTS = Path(__file__).with_name("outputs")


@pytest.fixture(scope="module")
def stored(tmp_path_factory, checkout):
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(OUTPUTS / "output-of-0.1.0.tar.xz") as archive:
        archive.extractall(folder, filter="fully_trusted")  # it holds a link between its own folders
    return Workspace(folder, checkout)


EVALUATED = {"embed_shapes": 1, "evaluate": 1}
TABLE = {"ablation_evaluate": 2, "ablations": 1}


@pytest.mark.parametrize(
    ("target", "planned"),
    [
        ("triplets", {}),
        ("features", {}),
        ("train", {}),
        ("evaluate", {"embed_shapes": 1}),  # and itself, which is not listed
        ("results/evaluation/baselines.json", EVALUATED | {"baselines": 1}),
        ("results/evaluation/ablations.json", TABLE),
        ("results/report/index.html", EVALUATED | TABLE | {"baselines": 1, "report": 1}),
    ],
)
def test_the_card_is_written_once_more_with_what_reads_the_index_and_nothing_is_trained(stored, target, planned):
    """Since 0.2.0 the card says how it is loaded, and each row of the ablations has jobs of its own."""
    assert stored.planned(target=target) == {"index": 1} | planned
