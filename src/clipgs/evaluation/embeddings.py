"""Embeddings of the packed splats by one run, and their file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from clipgs.config import Config
from clipgs.core.bundles import read_metadata, write_tensors
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.core.files import check, sha256_of
from clipgs.core.lists import counted
from clipgs.core.runner import Progress
from clipgs.encoder import MODEL
from clipgs.encoder.trained import TrainedEncoder, load
from clipgs.triplets.dataset import TripletDataset


def run_folder(config: Config) -> Path:
    """The folder of the configured run's evaluation."""
    return config.output_path / "evaluation" / config.training.run


class Embeddings(NamedTuple):
    """Embeddings of splats by one run's encoder, in the teacher's space."""

    uids: list[str]
    shapes: np.ndarray  # [n, D] float32, unit length
    metadata: dict[str, Any]  # model_sha256, weights_sha256, preprocess, tokenizer and teacher

    def of(self, uids: Sequence[str]) -> np.ndarray:
        """[n, D] rows of these n objects."""
        place = {uid: i for i, uid in enumerate(self.uids)}
        missing = [uid for uid in uids if uid not in place]
        if missing:
            again = snakemake("--forcerun", "embed_shapes", "evaluate")
            what = counted(len(missing), "object has no embeddings", "objects have no embeddings")
            raise ClipgsError(f"{what} (the first: {missing[0]}); embed them again: {again}")
        return self.shapes[[place[uid] for uid in uids]]


def embed(
    run: Path, triplets: Path, *, device: str = "auto", encoder: TrainedEncoder | None = None, split: str = "all"
) -> Embeddings:
    """Embeddings of the splats in a folder of triplets by the encoder of a run.

    Args:
        encoder: the encoder of the run, if it is already loaded.

    Raises:
        ClipgsError: the run is not finished, or a triplet is damaged.
    """
    if encoder is None:
        encoder = load(run, None if device == "auto" else device)
    dataset = TripletDataset(triplets, None if split == "all" else split)
    progress = Progress("embed-shapes", len(dataset))
    shapes = encoder.encode_dataset(dataset, lambda count: progress.step(count=count)).numpy()
    progress.close()
    if not np.isfinite(shapes).all():
        raise ClipgsError(f"{run}: the encoder gives numbers that are not finite; train the run again")
    teacher = encoder.notes["teacher"]
    metadata = {
        "model_sha256": sha256_of(run / MODEL),
        **{name: teacher[name] for name in ("weights_sha256", "preprocess", "tokenizer") if name in teacher},
        "teacher": f"{teacher['teacher']} ({teacher['pretrained']})",
    }
    order = np.argsort(dataset.uids)
    return Embeddings([str(dataset.uids[i]) for i in order], shapes[order], metadata)


def write_embeddings(file: Path, found: Embeddings) -> None:
    """Writes `shapes`; `uids` and the rest are metadata."""
    write_tensors(file, {"shapes": found.shapes}, {**found.metadata, "uids": found.uids})


def read_embeddings(file: Path) -> Embeddings:
    """Reads what `write_embeddings` wrote.

    Raises:
        ClipgsError: the file is missing or damaged.
    """
    check(file)
    metadata = read_metadata(file)
    return Embeddings(metadata.pop("uids"), load_file(file)["shapes"], metadata)
