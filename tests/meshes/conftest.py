from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipgs.meshes.load import Mesh, load
from tests.meshes.glb_builder import Glb


@pytest.fixture
def glb() -> Glb:
    return Glb()


@pytest.fixture
def loaded(tmp_path: Path) -> Callable[..., Mesh]:
    """Saves a `Glb`, or takes a path, and loads it under small limits."""

    def load_it(source: Glb | Path, **options: Any) -> Mesh:
        path = source if isinstance(source, Path) else source.save(tmp_path / "object.glb")
        return load(path, **{"max_faces": 100_000, "max_texture_pixels": 1 << 20} | options)

    return load_it
