"""The section `ablations`."""

from clipgs.config.fields import Section, setting


class Ablations(Section):
    """Runs that differ in one setting, trained and evaluated alike and compared in one table."""

    rows: list[str] = setting(
        ["uni3d", "position-color", "all-attributes", "tokenizer", "voting"],
        "names",
        "The table has these rows. The default is the paper's five; docs/protocols.md lists all.",
        min_length=1,
    )
    seeds: list[int] = setting([0, 1, 2], "integers", "Each row is trained with each of these seeds.", min_length=1)
