"""Triplets: a splat, its renders and its caption, as packed files and as a dataset."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipgs.triplets.dataset import TripletDataset as TripletDataset
    from clipgs.triplets.dataset import collate as collate


def __getattr__(name: str) -> Any:
    # Snakemake imports this package in every job, and needs neither numpy nor Pillow.
    if name in ("TripletDataset", "collate"):
        from clipgs.triplets import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
