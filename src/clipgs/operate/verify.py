"""Whether every file of an output has the bytes that were written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clipgs.config import Config
from clipgs.core.errors import ClipgsError, snakemake
from clipgs.core.files import check, damage, owner
from clipgs.core.runner import Progress
from clipgs.stages import STAGES, may_lack

# Folders in which every file has a sidecar: the catalog, and those of stages over shards.
_CHECKED = ("catalog", *dict.fromkeys(stage.folder for stage in STAGES.values() if stage.per == ("shard",)))
# In the others, curves and states that still grow have none.
_PARTLY = tuple(dict.fromkeys(stage.folder for stage in STAGES.values() if stage.per != ("shard",)))
_WITHOUT = ("excluded.csv", "retries.json")  # users may edit them


def verify(config: Config, threads: int, *, set_aside: bool = False) -> tuple[int, list[str]]:
    """Compares every file with its sidecar: the number of files, and a line for each that is not whole.

    Args:
        set_aside: move damaged files away, so that the next run makes them again.
    """
    files = sorted(set(_files(config)))
    progress = Progress("verify", len(files), "file")

    def judge(file: Path) -> str | None:
        if not file.exists():
            again = f"make it again with: {snakemake(file)}"
            return None if may_lack(config, file) else f"{damage(file)}; {again}"
        if not set_aside:
            return damage(file)
        try:
            check(file)
        except ClipgsError as error:
            return str(error).removeprefix(f"{file} ")
        return None

    found = []
    with ThreadPoolExecutor(threads) as pool:
        for file, reason in zip(files, pool.map(judge, files), strict=True):
            progress.step(ok=reason is None)
            if reason is not None:
                found.append(f"{file} {reason}")
    progress.close()
    return len(files), found


def _files(config: Config) -> Iterator[Path]:
    for name in _CHECKED:
        for path in (config.output_path / name).rglob("*"):
            if file := owner(path):
                yield file
            elif not (path.name.startswith(".") or path.suffix == ".damaged" or path.name in _WITHOUT or path.is_dir()):
                yield path
    for name in _PARTLY:
        yield from filter(None, map(owner, (config.output_path / name).rglob("*")))
