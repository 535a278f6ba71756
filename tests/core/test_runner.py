"""What a stage does with its objects: made once, kept through kills and retries, failures as rows."""

import json
import time

import pyarrow as pa
import pytest

from clipgs import config as configuration
from clipgs.catalog.records import FROZEN_COLUMNS, frozen_schema, shard_path
from clipgs.core.bundles import read_tar, write_table
from clipgs.core.errors import ClipgsError
from clipgs.core.runner import Limits, Task, in_workers, marked, stage_schema, write_objects
from clipgs.operate.retry import keep_good, retries, retry
from clipgs.stages import job, table


@pytest.fixture
def config(tmp_path):
    return configuration.check({"output": str(tmp_path / "results")})


TASKS = [Task(uid, f"inputs of {uid}", uid) for uid in ("a", "b", "c", "d")]


def run(config, tasks=TASKS, *, failing=(), poor=()):
    """Runs a stage `view` over the tasks; returns the uids that were computed."""
    computed = []

    def compute(tasks):
        for task in tasks:
            computed.append(task.uid)
            if task.uid in failing:
                yield task, "Error: it did not work"
            elif task.uid in poor:
                yield task, ({"status": "failed", "error": "too poor"}, [])
            else:
                files = [("000.png", f"picture of {task.inputs}".encode()), ("thumbnail", task.uid.encode())]
                yield task, ({"faces": len(task.inputs)}, files)

    columns = {"faces": pa.int64(), "thumbnail": pa.binary()}
    with marked(job(config, "view", "00000")):
        write_objects(job(config, "view", "00000"), tasks, compute, columns)
    return computed


def made(config):
    folder = config.output_path / "views"
    return {name: (folder / name).read_bytes() for name in ("00000.tar", "00000.parquet")}


def test_the_log_names_the_file_of_a_failed_object(config, caplog):
    rows = [dict.fromkeys(FROZEN_COLUMNS) | {"uid": uid, "locator": f"{uid}.glb"} for uid in ("b", "c")]
    write_table(shard_path(config, "00000"), rows, frozen_schema())
    run(config, failing=("a", "b"))
    assert "view 00000: b (b.glb) failed: Error: it did not work" in caplog.messages
    assert "view 00000: a failed: Error: it did not work" in caplog.messages


def test_a_tar_and_a_table_of_all_objects(config):
    assert run(config, failing="b") == ["a", "b", "c", "d"]
    names = [name for name, _ in read_tar(config.output_path / "views" / "00000.tar")]
    assert names == ["a/000.png", "c/000.png", "d/000.png"]
    rows = {row["uid"]: row for row in table(config, "views", "00000")}
    assert (rows["b"]["status"], rows["b"]["error"], rows["b"]["key"]) == ("failed", "Error: it did not work", None)
    assert "thumbnail" not in rows["a"]  # pictures are read only where they are named
    assert table(config, "views", "00000", ["uid", "thumbnail"])[0] == {"uid": "a", "thumbnail": b"a"}
    assert len({row["key"] for row in rows.values()}) == 4


def test_a_retry_makes_failed_objects_only_and_ends_as_if_none_had_failed(config, tmp_path):
    undisturbed = configuration.check({"output": str(tmp_path / "undisturbed")})
    run(undisturbed)
    run(config, failing="b", poor="d")
    keep_good(config, "view", "00000")
    for file in (config.output_path / "views").iterdir():
        file.unlink()  # as Snakemake does before it starts the stage
    assert run(config) == ["b", "d"]
    assert made(config) == made(undisturbed)
    assert not [file for file in (config.output_path / "work").rglob("*") if file.is_file()]


def test_a_retry_keeps_nothing_whose_inputs_or_settings_changed(config, tmp_path):
    run(config)
    keep_good(config, "view", "00000")
    changed = [TASKS[0]._replace(inputs="other inputs"), *TASKS[1:]]
    assert run(config, changed) == ["a"]
    keep_good(config, "view", "00000")
    other = configuration.check({"output": config.output, "views": {"pixels": 64}})
    assert run(other, changed) == ["a", "b", "c", "d"]


def test_a_damaged_file_is_not_kept(config):
    run(config)
    tar = config.output_path / "views" / "00000.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    keep_good(config, "view", "00000")
    assert run(config) == ["a", "b", "c", "d"]


def test_what_was_made_outlives_a_disk_that_fills_while_the_table_is_written(config, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clipgs.core.runner.write_table", full)
        with pytest.raises(OSError, match="No space"):
            run(config)
    mark = json.loads(job(config, "view", "00000").mark.read_text())
    assert (mark["state"], mark["error"]) == ("failed", "[Errno 28] No space left on device")
    assert run(config) == []
    assert not job(config, "view", "00000").mark.exists()


def test_a_stage_that_runs_is_marked(config):
    def state():
        return json.loads(job(config, "fit", "00003").mark.read_text())

    def fails():
        with marked(job(config, "fit", "00003")):
            assert state()["state"] == "running"
            raise ClipgsError("the GPU\nis gone")

    with pytest.raises(ClipgsError):
        fails()
    assert (state()["state"], state()["error"]) == ("failed", "the GPU is gone")


MANY = [Task(f"{i:03d}", f"inputs of {i}", f"{i:03d}") for i in range(100)]


def test_a_shard_of_which_too_many_objects_fail_fails_as_a_whole(tmp_path):
    config = configuration.check({"output": str(tmp_path), "workers": {"max_failed_fraction": 0.3}})
    with pytest.raises(ClipgsError, match=r"^view 00000: 31 of 100 objects failed: 31 x Error: it did not work$"):
        run(config, MANY, failing={task.uid for task in MANY[:31]})
    assert not list(tmp_path.rglob("*.parquet"))
    assert json.loads(job(config, "view", "00000").mark.read_text())["state"] == "failed"
    assert len(run(config, MANY, failing={task.uid for task in MANY[:30]})) == 31  # the 69 that were made are kept
    assert sum(row["status"] == "failed" for row in table(config, "views", "00000")) == 30


def test_in_a_small_shard_many_failures_may_be_chance(config):
    run(config, MANY[:99], failing={task.uid for task in MANY})
    assert {row["status"] for row in table(config, "views", "00000")} == {"failed"}


def allocate(megabytes):
    time.sleep(0 if megabytes else 60)
    return {"bytes": len(bytes(megabytes << 20))}, []


def test_an_object_that_reached_a_limit_names_the_setting():
    compute = in_workers(allocate, 1, Limits(20, 400, "workers.load_"))
    found = {task.payload: result for task, result in compute([Task("a", "", 2000), Task("b", "", 0)])}
    assert found == {
        2000: "MemoryError: needed more than 400 MB, which workers.load_memory_mb sets",
        0: "TimeoutError: ran longer than 20 s, which workers.load_timeout_seconds sets",
    }


def test_an_object_that_failed_in_stages_of_the_same_files_is_tried_again_in_all(config):
    rows = [dict.fromkeys(FROZEN_COLUMNS) | {"uid": uid, "locator": f"{uid}.glb"} for uid in "abcd"]
    write_table(shard_path(config, "00000"), rows, frozen_schema())
    run(config, failing=("a", "b"))
    for stage, failed in {"sample": "b", "fetch": "", "fit": "c"}.items():
        rows = [
            {"uid": uid, "status": "failed" if uid in failed else "ok", "error": None, "key": uid} for uid in "abcd"
        ]
        write_table(job(config, stage, "00000").file(".parquet"), rows, stage_schema())
    assert retry(config, "sample", []) == {"sample": {"00000": 1}, "view": {"00000": 1}}
    assert retries(config) == {"sample": {"00000": 1}, "view": {"00000": 1}}
    assert retry(config, "view", []) == {"view": {"00000": 2}, "sample": {"00000": 1}}
    assert retry(config, "fit", []) == {"fit": {"00000": 1}}
    assert retry(config, "fetch", []) == {}
