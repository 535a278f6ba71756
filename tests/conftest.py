import os
import tempfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The folder that holds pyproject.toml, the Snakefile and src/."""
    return CHECKOUT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real meshes and reference vectors that are kept outside the repository."""
    folder = Path(os.environ.get("CLIPGS_SHARED") or CHECKOUT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no test data at {folder}: set CLIPGS_SHARED to where data/ and vectors/ are")
    return folder


@pytest.fixture(scope="session")
def vectors() -> Path:
    """Outputs of other people's code that the repository holds: tests/vectors/README.md says whose."""
    return CHECKOUT / "tests" / "vectors"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A teacher of a million parameters with weights at random, as open_clip loads it from a folder."""
    from tests.packed_world import save_model

    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def world(tmp_path, tiny):
    """An output of one packed shard of three objects, and the tiny teacher."""
    from tests.packed_world import World

    made = World(tmp_path, tiny)
    made.add_shard("00000", {"a": "a red mug", "b": "a blue chair", "c": "a tree"})
    return made


@pytest.fixture
def own_gpu_locks(monkeypatch, tmp_path):
    """No GPU is taken yet, by this process or another, and nobody has chosen one for it."""
    from clipgs.core import devices as gpus

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(gpus, "_held", [])
    for name in gpus._CHOSEN_BY:
        monkeypatch.delenv(name, raising=False)
    yield
    for lock in gpus._held:
        lock.release()


@pytest.fixture
def two_gpus(monkeypatch, own_gpu_locks):
    """What a process sees of a machine with two GPUs before it uses them: torch counts those that it may see."""
    import torch

    from clipgs.core.devices import VISIBLE, visible_gpus

    monkeypatch.setenv(VISIBLE, "4,5")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(visible_gpus()))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible_gpus()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `gpu` is skipped where torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
