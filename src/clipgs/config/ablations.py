"""The section `ablations`, and the rows that there are."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from pydantic import field_validator

from clipgs.config.fields import Section, setting


class Variant(NamedTuple):
    """One row: what it is called, what it is compared with, and its settings over the configured ones."""

    title: str
    against: str | None
    settings: Mapping[str, Any]


def _variant(title: str, against: str | None, encoder: dict[str, Any] | None = None, **training: Any) -> Variant:
    return Variant(title, against, {"encoder": encoder or {}, "training": training})


_PLAIN = {"refinement": False, "patch_pooling": "max", "texture": False}
POINTS_ONLY = {"attributes": ["position", "color"], "point_attributes": "position_color", **_PLAIN}
_ALL_ATTRIBUTES = {"point_attributes": "all", **_PLAIN}
# One image of weight 1: Uni3D's own loss.
ONE_VIEW: dict[str, Any] = {"views": 1, "score_norm": "uniform", "image_loss": "voting"}

# The paper's table 5, then rows on what the paper leaves open. First weights: `clipgs.evaluation.rows`.
ROWS: Mapping[str, Variant] = {
    "uni3d": _variant("Uni3D as it is, on positions and colours", None, POINTS_ONLY, **ONE_VIEW),
    "position-color": _variant("fine-tuned on positions and colours", "uni3d", POINTS_ONLY, **ONE_VIEW),
    "all-attributes": _variant("fine-tuned on all attributes", "position-color", _ALL_ATTRIBUTES, **ONE_VIEW),
    "tokenizer": _variant("with the GS Tokenizer", "all-attributes", **ONE_VIEW),
    "voting": _variant("with the Image Voting Loss", "tokenizer"),
    "order-xyz": _variant("one order: xyz", "voting", {"orders": ["xyz"]}),
    "order-hilbert": _variant("one order: Hilbert", "voting", {"orders": ["hilbert"]}),
    "order-z": _variant("one order: Z", "voting", {"orders": ["z"]}),
    "orders-concatenated": _variant("orders concatenated", "voting", {"order_fusion": "concatenate"}),
    "orders-sampled": _variant("one order at random", "voting", {"order_fusion": "sample"}),
    "views-1": _variant("K = 1", "voting", views=1),
    "views-3": _variant("K = 3", "voting", views=3),
    "views-10": _variant("K = 10", "voting", views=10),
    "scores-mean-one": _variant("scores of mean 1", "voting", score_norm="mean_one"),
    "scores-softmax": _variant("softmax of the scores", "voting", score_norm="softmax"),
    "scores-uniform": _variant("images of equal weight", "voting", score_norm="uniform"),
    "multi-positive": _variant("all views as positives of one softmax", "voting", image_loss="multi_positive"),
    "start-none": _variant("random first weights", "voting", {"initialisation": "none", "weights": None}),
    "start-eva02": _variant("first weights of EVA-02", "voting", {"initialisation": "eva02", "weights": None}),
    "gaussians-1024": _variant("1,024 Gaussians", "voting", {"gaussians": 1024}),
    "gaussians-4096": _variant("4,096 Gaussians", "voting", {"gaussians": 4096}),
    "encoding-standardised": _variant("attributes standardised", "voting", {"attribute_encoding": "standardised"}),
    "encoding-covariance": _variant("rotation as covariance", "voting", {"attribute_encoding": "covariance"}),
    "pooling-weighted": _variant("weighted mean beside the maximum", "voting", {"patch_pooling": "weighted"}),
    "texture": _variant("texture of the patches", "voting", {"texture": True}),
    "chosen-by-weight": _variant("Gaussians drawn by opacity x area", "voting", {"choice": "weight"}),
    "along-gaussians": _variant("convolutions along Gaussians", "voting", {"refinement_along": "gaussians"}),
    "duplicates-paper": _variant("equal captions as negatives", "voting", duplicate_captions="paper"),
}


class Ablations(Section):
    """Runs that differ in one setting, trained and evaluated alike and compared in one table."""

    rows: list[str] = setting(
        ["uni3d", "position-color", "all-attributes", "tokenizer", "voting"], "names", min_length=1
    )
    """The table has these rows. The default is the paper's five; docs/protocols.md lists all."""
    seeds: list[int] = setting([0, 1, 2], "integers", min_length=1)
    """Each row is trained with each of these seeds."""

    point_colors: Literal["lit", "unlit"] = setting("lit", "name", assumed=True)
    """The point encoder of the first row learns from surface points with the colours that the pictures show (`lit`), or
    with those of the material (`unlit`)."""

    @field_validator("rows")
    @classmethod
    def _known(cls, rows: list[str]) -> list[str]:
        for row in rows:
            if row not in ROWS:
                near = difflib.get_close_matches(row, ROWS, n=1, cutoff=0.0)[0]
                raise ValueError(f"{row} is not a row; did you mean {near}? (there are: {', '.join(ROWS)})")
        for row in rows:
            against = ROWS[row].against
            if against is not None and against not in rows:
                raise ValueError(f"{row} is compared with {against}, which must be in the list too")
        return rows

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if min(seeds) < 0 or len(set(seeds)) < len(seeds):
            raise ValueError("seeds are 0 or more, each once")
        return seeds
