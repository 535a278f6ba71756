"""The section `ablations`."""

from clipgs.config.fields import Section, setting


class Ablations(Section):
    """Runs that differ in one thing, trained and evaluated alike: one table."""

    rows: list[str] = setting(
        ["uni3d", "position-color", "all-attributes", "tokenizer", "voting"],
        "names",
        "the paper's five by default; docs/protocols.md lists all: orders, K, first weights, Gaussians, captions",
        min_length=1,
    )
    seeds: list[int] = setting([0, 1, 2], "seeds", "each row is trained with each of them", min_length=1)
