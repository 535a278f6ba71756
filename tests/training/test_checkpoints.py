import pytest
import torch

from clipgs.training import checkpoints


def test_a_state_of_other_settings_is_not_gone_on_with(tmp_path):
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    loose = torch.nn.Parameter(torch.tensor(2.0))
    names = ["weight", "bias", "scale"]

    def optimizer_of(module, scale):
        return torch.optim.AdamW([*module.parameters(), scale], lr=0.1)

    optimizer = optimizer_of(model, loose)
    (model(torch.ones(1, 2)).sum() * loose).backward()
    optimizer.step()
    for step in (4, 12):
        checkpoints.save_best(tmp_path, step, model.state_dict())
        checkpoints.save_state(tmp_path, step, model, optimizer, names, {"settings": "a", "best_step": step})
    assert {file.name for file in tmp_path.iterdir()} == {"best-00000012.safetensors", "step-00000012.safetensors"}
    fresh = torch.nn.Parameter(torch.tensor(0.0))
    theirs = optimizer_of(other, fresh)
    assert checkpoints.load_state(tmp_path, other, theirs, names, "b") is None
    assert fresh == 0
    notes = checkpoints.load_state(tmp_path, other, theirs, names, "a")
    assert (notes["step"], notes["best_step"]) == (12, 12)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(fresh, loose)
    for ours in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, theirs.state_dict()["state"][ours[0]][key]) for key, value in ours[1].items())


@pytest.mark.parametrize(
    "module", ["core/bundles", "encoder/trained", "training/checkpoints", "training/data", "training/runs"]
)
def test_nothing_that_is_read_can_run(checkout, module):
    text = (checkout / "src" / "clipgs" / f"{module}.py").read_text()
    assert "torch.load" not in text
    assert text.count("pickle") == text.count("allow_pickle=False")
