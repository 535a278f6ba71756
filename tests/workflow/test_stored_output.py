"""Outputs that earlier versions made stay finished: a run over one plans nothing.

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


@pytest.mark.parametrize("target", ["triplets", "features", "train", "evaluate", "results/evaluation/baselines.json"])
def test_a_finished_output_of_an_earlier_version_plans_nothing(stored, target):
    assert stored.planned(target=target) == {}


def test_the_table_of_its_ablation_is_put_together_once_more_and_no_row_is_trained(stored):
    """Each row has jobs of its own since 0.2.0, so the table has other inputs. It takes seconds."""
    assert stored.planned(target="results/evaluation/ablations.json") == {"ablations": 1}
    assert stored.planned(target="results/report/index.html") == {"ablations": 1, "report": 1}
