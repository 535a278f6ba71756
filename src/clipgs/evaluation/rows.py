"""The configurations of the ablation's runs. Imports nothing heavy, because Snakemake reads them whenever it parses.

Each row changes a few settings of the configured run. All rows of a seed start from the same first weights: Uni3D's if
the user has its checkpoint, else those of our own point encoder, trained with that seed on the meshes' surface points.
"""

from pathlib import Path
from typing import Any

from clipgs.config import Config, check, merge
from clipgs.config.ablations import ONE_VIEW, POINTS_ONLY, ROWS
from clipgs.core.errors import UsageError

UNI3DS_TEACHER = "EVA02-E-14-plus"
ABLATION = "ablation-"  # prefix of the names of the rows' runs
START = "points-s"  # prefix of the names of the point encoder's runs


def chosen(config: Config) -> list[str]:
    """The configured rows, in the order of the table."""
    return [row for row in ROWS if row in config.ablations.rows]


def of_row(config: Config, row: str, seed: int) -> Config:
    """The configuration of a row's run with a seed. Idempotent."""
    over = {
        "encoder": {**_first_weights(config, seed), **ROWS[row].settings["encoder"]},
        "training": {**ROWS[row].settings["training"], "run": f"{ABLATION}{row}-s{seed}", "seed": seed},
        # Only what the table of ablations shows.
        "evaluation": {"pictures": [config.teacher.images], "few_shot": [], "examples": 0, "zeroed": []},
        "workers": {"gpus": 1},  # the rows are trained side by side
    }
    return _over(config, over)


def of_start(config: Config, seed: int) -> Config:
    """The configuration of the point encoder's run with a seed. Idempotent."""
    over = {
        "output": str(points_output(config)),
        "encoder": {**POINTS_ONLY, "initialisation": "none", "weights": None},
        "training": {**ONE_VIEW, "run": f"{START}{seed}", "seed": seed},
        "workers": {"gpus": 1},
    }
    return _over(config, over)


def _over(config: Config, values: dict[str, Any]) -> Config:
    return check(merge(config.model_dump(mode="json"), values), where="ablations")


def points_output(config: Config) -> Path:
    """The folder with the same objects and features, whose "splats" are the surface points of the meshes."""
    return config.output_path / "ablations" / "points"


def has_uni3d(config: Config) -> bool:
    """Whether the rows start from Uni3D's checkpoint."""
    return config.encoder.initialisation == "uni3d" and config.encoder.weights is not None


def check_uni3ds_space(config: Config) -> None:
    """Holds the teacher to Uni3D's where Uni3D itself is a row.

    Raises:
        UsageError: its embeddings lie in another teacher's space. A folder or file of the user's own is believed.
    """
    teacher = config.teacher.name
    if has_uni3d(config) and "uni3d" in config.ablations.rows and ":" not in teacher and teacher != UNI3DS_TEACHER:
        raise UsageError(
            f"config: teacher.name = {teacher}: Uni3D's embeddings lie in the space of {UNI3DS_TEACHER}, so the row "
            "uni3d cannot be measured in another; name that teacher, or leave out encoder.initialisation = uni3d"
        )


def _first_weights(config: Config, seed: int) -> dict[str, Any]:
    if has_uni3d(config):
        return {}
    return {"initialisation": "points", "weights": str(points_output(config) / "runs" / f"{START}{seed}")}
