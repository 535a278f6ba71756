"""All sections together."""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from clipgs.config import recipes
from clipgs.config.ablations import Ablations
from clipgs.config.caption import Caption
from clipgs.config.catalog import Catalog
from clipgs.config.encoder import Encoder
from clipgs.config.evaluation import Evaluation
from clipgs.config.fields import Section, section, setting
from clipgs.config.fit import Fit
from clipgs.config.meshes import Meshes
from clipgs.config.pack import Pack
from clipgs.config.points import PointCloud
from clipgs.config.render import Render
from clipgs.config.report import Report
from clipgs.config.teacher import Teacher
from clipgs.config.training import Training
from clipgs.config.views import Views
from clipgs.config.workers import Workers


class Config(Section):
    """All settings."""

    recipe: Literal["demo", "fast", "paper"] = setting("paper", "name", runtime=True)
    """The recipe gives the values of keys that are null. `demo` runs anywhere in minutes, `paper` follows the paper,
    and `fast` is `paper` with 1,500 instead of 5,000 fitting steps."""
    output: str = setting("results", "path", runtime=True, min_length=1)
    """All results are written to this folder."""
    cache: str | None = setting(None, "path", runtime=True)
    """Downloads and generated meshes are kept in this folder, which all runs share. null means ~/.cache/clipgs."""
    seed: int = setting(0, "integer", ge=0)
    """Sampling, fitting, captioning and the small teacher draw from this seed. Training and evaluation have their
    own."""
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "name", runtime=True)
    """The stages compute on this device. `auto` takes cuda if there is a GPU, and cpu otherwise."""
    temporary: list[Literal["points", "views"]] = setting([], "folders", runtime=True)
    """Snakemake deletes files in these folders once their shard is fitted. A later fit makes them again."""
    catalog: Catalog = section(Catalog)
    meshes: Meshes = section(Meshes)
    points: PointCloud = section(PointCloud)
    views: Views = section(Views)
    fit: Fit = section(Fit)
    render: Render = section(Render)
    caption: Caption = section(Caption)
    pack: Pack = section(Pack)
    teacher: Teacher = section(Teacher)
    encoder: Encoder = section(Encoder)
    training: Training = section(Training)
    evaluation: Evaluation = section(Evaluation)
    ablations: Ablations = section(Ablations)
    report: Report = section(Report)
    workers: Workers = section(Workers)

    @model_validator(mode="before")
    @classmethod
    def _fill_from_recipe(cls, values: Any) -> Any:
        recipe = values.get("recipe", "paper") if isinstance(values, dict) else None
        return recipes.fill(values, recipe) if recipe in recipes.RECIPES else values

    @property
    def output_path(self) -> Path:
        return Path(self.output)

    @property
    def cache_path(self) -> Path:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(self.cache).expanduser() if self.cache else Path(home) / "clipgs"
