import pytest
import torch

from clipgs.training import checkpoints


def test_a_state_is_loaded_as_it_was_saved(tmp_path):
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
        checkpoints.save_state(tmp_path, step, model, optimizer, names, {"record": "a", "best_step": step})
    assert {file.name for file in tmp_path.iterdir()} == {"best-00000012.safetensors", "step-00000012.safetensors"}
    fresh = torch.nn.Parameter(torch.tensor(0.0))
    theirs = optimizer_of(other, fresh)
    notes = checkpoints.read_notes(tmp_path)
    assert (notes["step"], notes["best_step"], notes["record"]) == (12, 12, "a")
    checkpoints.load_state(tmp_path, other, theirs, names)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(fresh, loose)
    for ours in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, theirs.state_dict()["state"][ours[0]][key]) for key, value in ours[1].items())


def test_a_state_of_another_model_leaves_the_model_as_it_was(tmp_path):
    model, wider = torch.nn.Linear(2, 2), torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoints.save_state(tmp_path, 1, model, optimizer, ["weight", "bias"], {})
    before = [parameter.clone() for parameter in wider.parameters()]
    theirs = torch.optim.AdamW(wider.parameters(), lr=0.1)
    with pytest.raises(checkpoints.UnusableStateError, match="not those of the model"):
        checkpoints.load_state(tmp_path, wider, theirs, ["weight", "bias"])
    assert all(torch.equal(*pair) for pair in zip(before, wider.parameters(), strict=True))
    assert not theirs.state_dict()["state"]


@pytest.mark.parametrize(
    "module", ["core/bundles", "encoder/trained", "training/checkpoints", "training/data", "training/runs"]
)
def test_nothing_that_is_read_can_run(checkout, module):
    text = (checkout / "src" / "clipgs" / f"{module}.py").read_text()
    assert "torch.load" not in text
    assert text.count("pickle") == text.count("allow_pickle=False")
