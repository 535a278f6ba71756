"""The fetch stage over a network: what fails is a row, what was complete is never fetched again."""

import hashlib
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from clipgs import config as configuration
from clipgs.catalog.shards import plan
from clipgs.catalog.stages import freeze
from clipgs.core.bundles import read_table
from clipgs.core.errors import ClipgsError
from clipgs.meshes.stages import fetch
from tests.catalog.server import OBJAVERSE, Fault, Server, make_objaverse


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("HF_TOKEN", "CLIPGS_RUNTIME"):
            monkeypatch.delenv(name)


def glb(index: int) -> bytes:
    """Bytes of 4 kB with the header of a GLB; no two are equal."""
    body = hashlib.sha256(b"%d" % index).digest() * 128
    return b"glTF" + (2).to_bytes(4, "little") + (12 + len(body)).to_bytes(4, "little") + body


def settings(tmp_path, server, **downloads):
    return {
        "output": str(tmp_path / "results"),
        "cache": str(tmp_path / "cache"),
        "catalog": {
            "source": "objaverse",
            "shard_objects": 250,
            "objaverse": {"root": str(tmp_path / "none")},
            "downloads": {"endpoint": server.url, "per_second": 5000.0, "timeout_seconds": 10.0, **downloads},
        },
    }


def frozen(tmp_path, server, **downloads):
    config = configuration.check(settings(tmp_path, server, **downloads))
    freeze(config, list(plan(config).pending))
    return config


def rows_of(config):
    tables = sorted((config.output_path / "meshes").glob("*.parquet"))
    return {row["uid"]: row for table in tables for row in read_table(table)}


def check_complete(config, uids):
    rows = rows_of(config)
    assert len(rows) == len(uids)
    for index, uid in enumerate(uids):
        row, data = rows[uid], glb(index)
        assert (row["status"], row["error"], row["bytes"]) == ("ok", None, len(data))
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert (config.cache_path / row["path"]).read_bytes() == data


def test_500_objects_arrive_complete_and_none_twice_when_a_tenth_of_requests_fails(tmp_path):
    uids = make_objaverse(tmp_path / "served", 500, body=glb)
    with Server(tmp_path / "served", failure_rate=0.1, seed=3) as server:
        config = frozen(tmp_path, server)
        for shard in ("00000", "00001"):
            fetch(config, shard, threads=2)
        check_complete(config, uids)
        assert server.requests.total() > 530
        assert max(server.served.values()) == 1
        assert not list((tmp_path / "cache").rglob(".*.part*"))


def test_what_is_not_there_is_a_row_and_the_rest_goes_on(tmp_path):
    uids = make_objaverse(tmp_path / "served", 6, body=glb)
    address = "/" + OBJAVERSE + "/glbs/000-000/{}.glb"
    with Server(tmp_path / "served") as server:
        config = frozen(tmp_path, server, retries=1)
        server.always[address.format(uids[0])] = Fault(status=404)
        server.always[address.format(uids[1])] = Fault(status=500)
        server.always[address.format(uids[2])] = Fault(body=b"<html>")
        server.faults[address.format(uids[3])] = [Fault.limit("1")]
        fetch(config, "00000", threads=2)
        rows = rows_of(config)
        assert [rows[uid]["status"] for uid in uids] == ["failed"] * 3 + ["ok"] * 3
        assert rows[uids[0]]["error"].startswith(f"ObjectError: {server.url}/{OBJAVERSE}/glbs/000-000/")
        assert rows[uids[0]]["error"].endswith("was not found (HTTP 404)")
        assert rows[uids[1]]["error"].endswith("could not be fetched in 2 tries: the server answered 500")
        assert "not a whole GLB" in rows[uids[2]]["error"]


def test_a_host_that_is_gone_ends_the_stage(tmp_path):
    make_objaverse(tmp_path / "served", 40, body=glb)
    with Server(tmp_path / "served") as server:
        config = frozen(tmp_path, server, retries=0, parallel=2)
    with pytest.raises(ClipgsError, match=r"could not be reached for [45] files in a row"):
        fetch(config, "00000", threads=2)
    assert not (config.output_path / "meshes").exists()


def test_a_full_disk_is_no_fault_of_the_objects(tmp_path, monkeypatch):
    make_objaverse(tmp_path / "served", 4, body=glb)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with Server(tmp_path / "served") as server:
        config = frozen(tmp_path, server)
        with monkeypatch.context() as patch:
            patch.setattr("clipgs.catalog.downloads.os.pwrite", full)
            with pytest.raises(ClipgsError, match="No space left on device; free some space"):
                fetch(config, "00000", threads=2)
        fetch(config, "00000", threads=2)
        assert {row["status"] for row in rows_of(config).values()} == {"ok"}


def test_killed_at_any_point_the_next_run_fetches_nothing_again_that_was_complete(tmp_path):
    uids = make_objaverse(tmp_path / "served", 150, body=glb)
    with Server(tmp_path / "served", failure_rate=0.1, seed=4) as server:
        config = frozen(tmp_path, server)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(tmp_path, server)))
        command = [sys.executable, "-m", "clipgs", "fetch", "00000", "--config", str(tmp_path / "config.yaml")]
        complete: dict[str, int] = {}  # path to its requests when it was complete
        for most in (1, 40, 100):
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while len(list((tmp_path / "cache").rglob("*.glb"))) < most and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            for file in (tmp_path / "cache").rglob("*.glb"):
                path = f"/{OBJAVERSE}/glbs/{file.parent.name}/{file.name}"
                complete.setdefault(path, server.requests[path])
        assert len(complete) >= 100
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        check_complete(config, uids)
        assert {path: server.requests[path] for path in complete} == complete
        assert not list((tmp_path / "cache").rglob(".*.part*"))
        again = server.requests.total()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        assert server.requests.total() == again
