import errno

import pytest

from clipgs.core.errors import advice


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "; free some space or choose another `output`"),
        (errno.EDQUOT, "; your quota is used up: free some space or choose another `output`"),
        (errno.EACCES, "; choose a folder for `output` that you may write"),
        (errno.EROFS, "; choose a folder for `output` that you may write"),
        (errno.EIO, ""),
    ],
)
def test_what_helps_against_an_error_of_the_disk(number, text):
    assert advice(OSError(number, "said by the system")) == text
    assert advice(OSError(number, "said by the system"), "cache") == text.replace("output", "cache")
