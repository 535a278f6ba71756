"""Triplets: a splat, its pictures and its caption, packed and read again."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipgs.triplets.dataset import TripletDataset as TripletDataset
    from clipgs.triplets.dataset import collate as collate


def __getattr__(name: str) -> Any:
    # The stages' commands import this package too, and need no torch.
    if name in ("TripletDataset", "collate"):
        from clipgs.triplets import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
