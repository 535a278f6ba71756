import itertools
from contextlib import nullcontext

import pytest

from clipgs import config as configuration
from clipgs.config.ablations import ROWS
from clipgs.core.errors import UsageError
from clipgs.evaluation.rows import check_uni3ds_space, chosen, of_row, of_start
from clipgs.stages import from_settings, runtime_settings, stage_settings

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
    assert chosen(configuration.check({"ablations": {"rows": PAPER[::-1]}})) == PAPER


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["voting", "votes"], "votes is not a row; did you mean voting?"),
        (["voting"], "compared with tokenizer, which must be in the list"),
    ],
)
def test_a_wrong_list_is_one_line(rows, words):
    with pytest.raises(UsageError, match=words.replace("?", r"\?")):
        configuration.check({"ablations": {"rows": rows}})


@pytest.mark.parametrize("start", [{}, {"initialisation": "uni3d", "weights": "uni3d.pt"}])
@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_itself_again_from_its_settings(row, start):
    """A rule gives its command the settings of the row, and the command makes the row's configuration of them."""
    config = configuration.check({"encoder": {"size": "tiny", **start}, "training": {"epochs": 3}, "output": "here"})
    once = of_row(config, row, 7)
    assert of_row(once, row, 7) == once
    for stage in ("ablation-train", "ablation-evaluate"):
        told = from_settings(stage_settings(once, stage), runtime_settings(config))
        assert of_row(told, row, 7).encoder == once.encoder
        assert of_row(told, row, 7).evaluation.few_shot == []
    assert of_row(from_settings(stage_settings(once, "ablation-train"), runtime_settings(config)), row, 7).training == (
        once.training
    )


def test_the_start_is_itself_again_and_lies_beside_the_triplets():
    config = configuration.check({"output": "here"})
    once = of_start(config, 2)
    assert once.output == "here/ablations/points"
    told = from_settings(stage_settings(once, "ablation-start"), runtime_settings(config))
    assert of_start(told, 2) == once.model_copy(update={"workers": of_start(told, 2).workers})


@pytest.mark.parametrize(
    ("teacher", "refused"),
    [("EVA02-E-14-plus", False), ("ViT-B-32", True), ("train", True), ("local-dir:eva", False)],
)
def test_uni3d_is_a_row_in_its_own_teachers_space_alone(teacher, refused):
    start = {"encoder": {"initialisation": "uni3d", "weights": "uni3d.pt"}, "teacher": {"name": teacher}}
    with pytest.raises(UsageError, match="space of EVA02-E-14-plus") if refused else nullcontext():
        check_uni3ds_space(configuration.check(start))
    check_uni3ds_space(configuration.check({"teacher": {"name": teacher}}))  # without Uni3D any teacher will do
