import pytest

from clipgs import config as configuration
from clipgs.core.files import older_sidecar, owner, sidecar, write_bytes
from clipgs.operate.verify import verify


@pytest.fixture
def config(tmp_path):
    for name in ("catalog/shards/00000.parquet", "points/00000.npz", "views/00000.tar", "triplets/README.md"):
        write_bytes(tmp_path / name, name.encode())
    (tmp_path / "catalog" / "excluded.csv").write_text("uid,shard,reason\n")
    write_bytes(tmp_path / "runs" / "base" / "model.safetensors", b"weights")
    (tmp_path / "runs" / "base" / "metrics.jsonl").write_text("a curve that still grows")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "index.log").write_text("a log")
    return configuration.check({"output": str(tmp_path), "temporary": ["points"]})


def test_a_whole_output_is_whole(config):
    assert verify(config, 2) == (5, [])


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("views/00000.tar", lambda file: file.write_bytes(file.read_bytes()[:-1]), "has 14 bytes instead of 15"),
        ("triplets/README.md", lambda file: file.write_bytes(b"triplets/README.me"), "not have the bytes"),
        ("views/00000.tar", lambda file: file.unlink(), "is missing"),
        ("runs/base/model.safetensors", lambda file: file.write_bytes(b"Weights"), "not have the bytes"),
        ("views/00000.tar", lambda file: sidecar(file).unlink(), "no readable .00000.tar.check"),
    ],
)
def test_each_damage_is_named_and_only_set_aside_when_asked(config, name, damage, words):
    file = config.output_path / name
    damage(file)
    was = file.exists()
    count, (line,) = verify(config, 2)
    assert count == 5
    assert line.startswith(f"{file} ")
    assert words in line
    assert file.exists() == was
    _, (line,) = verify(config, 2, set_aside=True)
    assert words in line
    assert line.count(str(file)) == 1 + ("make it again" in line)
    assert not file.exists()
    assert file.with_name(file.name + ".damaged").exists() == was
    count, (line,) = verify(config, 2)  # it is not forgotten
    assert count == 5
    assert f"{file} is missing; make it again with: " in line


def test_sidecars_of_the_older_name_count_too(config):
    for file in list(filter(None, map(owner, config.output_path.rglob("*")))):
        sidecar(file).rename(older_sidecar(file))
    assert verify(config, 2) == (5, [])
    for name in ("views/00000.tar", "runs/base/model.safetensors"):
        (config.output_path / name).unlink()
    count, lines = verify(config, 2)
    assert count == 5
    assert len(lines) == 2


def test_what_the_configuration_drops_is_not_missing(config):
    (config.output_path / "points" / "00000.npz").unlink()
    assert verify(config, 1) == (5, [])
    table = config.output_path / "points" / "00000.parquet"
    write_bytes(table, b"a table, which is not dropped")
    table.unlink()
    _, (line,) = verify(config, 1)
    assert f"{table} is missing" in line
