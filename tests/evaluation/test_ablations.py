import pytest

from clipgs.evaluation.ablations import ROWS, _chosen
from clipgs.storage import UsageError

PAPER = ["uni3d", "position-color", "all-attributes", "tokenizer", "voting"]


def test_the_papers_rows_each_add_one_thing():
    for before, name in zip(PAPER, PAPER[1:], strict=False):
        assert ROWS[name].against == before
    assert all(ROWS[name].against == "voting" for name in ROWS if name not in PAPER)
    assert ROWS["voting"].settings == {"encoder": {}, "training": {}}  # the configured run itself
    for name in ROWS:
        if name not in PAPER:
            changed = {**ROWS[name].settings["encoder"], **ROWS[name].settings["training"]}
            assert set(changed) in ({"initialisation", "weights"}, *({key} for key in changed))


def test_rows_come_in_the_order_of_the_table():
    assert _chosen(PAPER[::-1]) == PAPER


@pytest.mark.parametrize(
    ("rows", "words"),
    [(["voting", "votes"], "votes is not a row"), (["voting"], "held against tokenizer, which must be in the list")],
)
def test_a_wrong_list_is_one_line(rows, words):
    with pytest.raises(UsageError, match=words):
        _chosen(rows)
