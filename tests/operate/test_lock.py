import json
import os
import signal
import subprocess
import sys

import pytest

from clipgs.core.errors import ClipgsError
from clipgs.operate.lock import OutputLock, describe, holder, lock_path

HOLD = "import sys, time; from pathlib import Path; from clipgs.operate.lock import OutputLock\n"
HOLD += "lock = OutputLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def other(tmp_path):
    """A process that holds the output."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_with_the_holders_name(tmp_path, other):
    found = holder(tmp_path)
    assert found["process"] == other.pid
    with pytest.raises(ClipgsError) as error:
        OutputLock(tmp_path)
    assert f"in use by another run ({describe(found)})" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_killed_run_holds_nothing(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert holder(tmp_path) is None
    with OutputLock(tmp_path):
        assert holder(tmp_path)["process"] == os.getpid()
    assert holder(tmp_path) is None


def test_a_run_of_another_host_counts_where_locks_stay_on_one_host(tmp_path):
    lock_path(tmp_path).write_text(json.dumps({"user": "ada", "host": "elsewhere", "process": 1, "since": "then"}))
    assert holder(tmp_path)["user"] == "ada"
    with pytest.raises(ClipgsError, match=r"ada on elsewhere.*remove .*run.lock"):
        OutputLock(tmp_path)
    lock_path(tmp_path).unlink()
    OutputLock(tmp_path).release()


def test_an_output_that_nobody_used(tmp_path):
    assert holder(tmp_path / "nowhere") is None
