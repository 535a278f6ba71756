import pytest
from packed_world import World, save_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A teacher of a million parameters with weights at random."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def world(tmp_path, tiny):
    """An output of one packed shard of three objects."""
    made = World(tmp_path, tiny)
    made.add_shard("00000", {"a": "a red mug", "b": "a blue chair", "c": "a tree"})
    return made
