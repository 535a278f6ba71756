"""Tensors in mapped files."""

import numpy as np
import pytest

from clipgs.core.bundles import map_tensor, write_tensors
from clipgs.core.errors import ClipgsError


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_mapped_tensor_is_the_one_that_was_written(tmp_path, kind):
    arrays = {"first": np.arange(5, dtype=np.int64), "shapes": np.arange(12).reshape(4, 3).astype(kind)}
    write_tensors(tmp_path / "a.safetensors", arrays, {"uids": ["a"]})
    found = map_tensor(tmp_path / "a.safetensors", "shapes")
    np.testing.assert_array_equal(found.array, arrays["shapes"])
    assert found.array.dtype == kind
    assert bytes(found.map[found.offset :][: found.array.nbytes]) == arrays["shapes"].tobytes()


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:40], lambda data: b"no tensors" + data])
def test_a_file_that_holds_no_such_tensor_is_one_line(tmp_path, damage):
    file = tmp_path / "a.safetensors"
    write_tensors(file, {"shapes": np.zeros((4, 3), np.float32)})
    for name in ("other", "shapes"):
        if name == "shapes":
            file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(ClipgsError, match=r"a\.safetensors has no tensor"):
            map_tensor(file, name)
