import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from clipgs.core.bundles import (
    TarWriter,
    read_metadata,
    read_table,
    read_tar,
    tar_objects,
    write_arrays,
    write_table,
    write_tensors,
)
from clipgs.core.errors import ClipgsError
from clipgs.core.files import atomic, check, older_sidecar, read_sidecar, sidecar, write_bytes
from clipgs.core.journal import Journal
from clipgs.core.seeds import seed_of


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder" / "a.bin"

    def write_half():
        with atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert list(path.parent.iterdir()) == []
    write_bytes(path, b"whole")
    check(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [".a.bin.check", "a.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_every_file_may_be_read_by_those_whom_the_umask_lets(tmp_path, umask):
    """safetensors writes a file of its own, which only its owner may read, and renames it over the given path."""
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(2)})
        write_tensors(tmp_path / "state.safetensors", {"x": np.zeros(2)}, checksum=False)
        write_arrays(tmp_path / "a.npz", [("x", np.zeros(2))])
        write_table(tmp_path / "a.parquet", [{"uid": "a"}], pa.schema([("uid", pa.string())]))
        write_bytes(tmp_path / "a.bin", b"whole")
        write_bytes(tmp_path / "a.bin", b"and again")
        with TarWriter(tmp_path / "a.tar") as tar:
            tar.add("a", b"a")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert len(modes) == 11
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from clipgs.core.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as t:\n"
        "    t.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    path = tmp_path / "a.bin"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert not path.exists()
    assert len(list(tmp_path.iterdir())) == 1
    write_bytes(path, b"whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.bin.check", "a.bin"]


@pytest.mark.parametrize("name", [sidecar, older_sidecar])
def test_a_kill_between_the_two_renames_is_seen(tmp_path, monkeypatch, name):
    """The older sidecar goes before the newer file stands, so that it is never taken for that one's."""
    path, replace = tmp_path / "a.bin", os.replace
    write_bytes(path, b"older")
    replace(sidecar(path), name(path))

    def killed(source, target):
        if str(target).endswith(".check"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_bytes(path, b"newer")
    assert path.read_bytes() == b"newer"
    assert read_sidecar(path) is None
    with pytest.raises(ClipgsError, match="may be unfinished"):
        check(path)


@pytest.mark.parametrize("damage", ["cut", "flip", "no sidecar", "bad sidecar"])
def test_a_damaged_file_is_set_aside(tmp_path, damage):
    path = tmp_path / "a.bin"
    write_bytes(path, b"0123456789")
    if damage == "cut":
        path.write_bytes(b"01234")
    elif damage == "flip":
        path.write_bytes(b"0123456780")
    elif damage == "no sidecar":
        sidecar(path).unlink()
    else:
        sidecar(path).write_text("{")
    with pytest.raises(ClipgsError, match="make it again with: snakemake"):
        check(path)
    assert not path.exists()
    assert (tmp_path / "a.bin.damaged").exists()
    with pytest.raises(ClipgsError, match="is missing"):
        check(path)


def test_a_sidecar_of_the_older_name_is_read_until_the_file_is_written_again(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"0123456789")
    text = read_sidecar(path)
    os.rename(sidecar(path), older_sidecar(path))
    check(path)
    assert read_sidecar(path) == text
    write_bytes(path, b"another")
    check(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.bin.check", "a.bin"]
    os.rename(sidecar(path), older_sidecar(path))
    path.write_bytes(b"anothes")
    with pytest.raises(ClipgsError, match="does not have the bytes that were written"):
        check(path)
    # The sidecar stays, so that the file is missed.
    assert sorted(file.name for file in tmp_path.iterdir()) == [".a.bin.check", "a.bin.check", "a.bin.damaged"]


def test_equal_content_gives_equal_bytes(tmp_path):
    schema = pa.schema([("uid", pa.string()), ("psnr", pa.float64())])
    for run in ("one", "two"):
        write_table(tmp_path / run / "t.parquet", [{"uid": "a", "psnr": 1.5}, {"uid": "b"}], schema)
        write_arrays(tmp_path / run / "t.npz", [("a/xyz", np.arange(6.0).reshape(2, 3))])
        with TarWriter(tmp_path / run / "t.tar") as tar:
            tar.add("a.txt", b"text")
        time.sleep(0.01)
    for name in ("t.parquet", "t.npz", "t.tar"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert read_table(tmp_path / "one" / "t.parquet") == [{"uid": "a", "psnr": 1.5}, {"uid": "b", "psnr": None}]
    assert list(read_tar(tmp_path / "one" / "t.tar")) == [("a.txt", b"text")]
    with np.load(tmp_path / "one" / "t.npz", allow_pickle=False) as arrays:
        assert arrays["a/xyz"].shape == (2, 3)


def test_a_column_outside_the_schema_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="psnr"):
        write_table(tmp_path / "t.parquet", [{"psnr": 1.0}], pa.schema([("uid", pa.string())]))


def test_an_objects_members_are_read_by_place(tmp_path):
    with TarWriter(tmp_path / "t.tar") as tar:
        for name in ("a/0.png", "a/1.png", "b-1.ply"):
            tar.add(name, name.encode() * 300)
    objects = tar_objects(tmp_path / "t.tar")
    assert list(objects) == ["a", "b-1"]
    assert objects["a"].read() == {"0.png": b"a/0.png" * 300, "1.png": b"a/1.png" * 300}
    assert objects["a"].digest() != objects["b-1"].digest()


def test_a_journal_gives_back_only_what_matches(tmp_path):
    journal = Journal(tmp_path / "work", "settings")
    key = journal.key("inputs")
    journal.put("a", key, {"psnr": 30.0}, [("ply", b"bytes")])
    assert ("a", key) in journal
    assert journal.get("a", key) == ({"psnr": 30.0}, [("ply", b"bytes")])
    assert journal.get("a", journal.key("other inputs")) is None
    assert Journal(tmp_path / "work", "other settings").key("inputs") != key
    journal.clear()
    assert ("a", key) not in journal


def test_a_journal_entry_that_a_power_cut_emptied_is_made_again(tmp_path):
    journal = Journal(tmp_path, "settings")
    journal.put("a", "key", {}, [])
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(b"")
    assert journal.get("a", "key") is None
    assert ("a", "key") not in journal


def test_seeds_depend_on_every_part():
    seeds = {seed_of(0, "fit", "a"), seed_of(1, "fit", "a"), seed_of(0, "view", "a"), seed_of(0, "fit", "b")}
    assert len(seeds) == 4
    assert seed_of(0, "fit", "a") == seed_of(0, "fit", "a") < 2**64


WRITE_TENSORS = """if True:
    import sys
    from pathlib import Path
    import numpy as np
    from clipgs.core.bundles import write_tensors
    metadata = {name: [name] for name in ("uids", "teacher", "pretrained", "dim", "images", "caf\u00e9")}
    write_tensors(Path(sys.argv[1]), {"b": np.eye(3, dtype=np.float16), "a": np.arange(4)}, metadata)
"""


def test_tensors_of_two_processes_are_the_same_bytes(tmp_path):
    """The order of its metadata is where the package's writer leaves it to chance, by the process."""
    for name in ("one", "two"):
        subprocess.run([sys.executable, "-c", WRITE_TENSORS, str(tmp_path / name)], check=True)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert list(read_metadata(tmp_path / "one")) == sorted(read_metadata(tmp_path / "one"))


def test_tensors_are_read_as_they_were_written(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "a": generator.normal(size=(3, 5)).astype(np.float16),
        "scalar": np.array(7, np.int64),
        "turned": generator.normal(size=(4, 6)).astype(np.float32).T,
        "none": np.empty((0, 4), np.uint8),
    }
    metadata = {"uids": ["x"], "teacher": "tiny", "name": "caf\u00e9"}
    write_tensors(tmp_path / "a", arrays, metadata)
    check(tmp_path / "a")
    assert read_metadata(tmp_path / "a") == metadata
    found = load_file(tmp_path / "a")
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
    write_tensors(tmp_path / "b", arrays, checksum=False)
    assert read_metadata(tmp_path / "b") == {}
    assert {file.name for file in tmp_path.iterdir()} == {"a", ".a.check", "b"}
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    with pytest.raises(ClipgsError, match="cannot be read"):
        read_metadata(tmp_path / "a")


def test_metadata_of_older_files_is_read(tmp_path):
    save_file({"shapes": np.zeros((1, 2))}, tmp_path / "a", {"uids": '["x"]', "teacher": "tiny", "dim": "2"})
    assert list(read_metadata(tmp_path / "a").items()) == [("dim", "2"), ("teacher", "tiny"), ("uids", ["x"])]
