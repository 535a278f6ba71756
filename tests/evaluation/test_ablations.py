import itertools

import pytest

from clipgs.core.errors import UsageError
from clipgs.evaluation.ablations import ROWS, _chosen

PAPER = ["uni3d", "position-color", "all-attributes", "tokenizer", "voting"]


def test_the_papers_rows_each_add_one_thing():
    for before, name in itertools.pairwise(PAPER):
        assert ROWS[name].against == before
    assert all(ROWS[name].against == "voting" for name in ROWS if name not in PAPER)
    assert ROWS["voting"].settings == {"encoder": {}, "training": {}}  # the configured run itself
    for name in set(ROWS) - set(PAPER):
        changed = {**ROWS[name].settings["encoder"], **ROWS[name].settings["training"]}
        assert len(changed) == 1 or set(changed) == {"initialisation", "weights"}


def test_rows_come_in_the_order_of_the_table():
    assert _chosen(PAPER[::-1]) == PAPER


@pytest.mark.parametrize(
    ("rows", "words"),
    [(["voting", "votes"], "votes is not a row"), (["voting"], "held against tokenizer, which must be in the list")],
)
def test_a_wrong_list_is_one_line(rows, words):
    with pytest.raises(UsageError, match=words):
        _chosen(rows)
