import pytest
from torch import nn

from clipgs.config import Training
from clipgs.training.optimizer import parameter_groups, schedule


def test_the_learning_rate_grows_and_falls():
    rates = [schedule(step, 110, 10) for step in range(110)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[60] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert schedule(0, 1, 0) == 1


def test_early_blocks_learn_slower_and_vectors_do_not_decay():
    model = nn.ModuleDict({"stem": nn.Linear(3, 3), "blocks": nn.ModuleList(nn.Linear(3, 3) for _ in range(3))})
    groups = parameter_groups(model, Training(layer_decay=0.5, weight_decay=0.1))
    found = {name: (group["factor"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found == {
        "stem.weight": (1.0, 0.1),
        "stem.bias": (1.0, 0.0),
        **{f"blocks.{i}.weight": (0.5 ** (2 - i), 0.1) for i in range(3)},
        **{f"blocks.{i}.bias": (0.5 ** (2 - i), 0.0) for i in range(3)},
    }
