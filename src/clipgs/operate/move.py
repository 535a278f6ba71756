"""Moving an output, with what Snakemake remembers of it.

Snakemake keeps in `.snakemake`, beside where it runs, what each file was made of, under the file's path. Without that a
file that lies elsewhere counts as up to date for ever, whatever setting is changed.
"""

import base64
import json
import shutil
from pathlib import Path
from typing import Any

from clipgs.config import Config
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.operate.lock import OutputLock, lock_path

_METADATA = Path(".snakemake") / "metadata"
_LONGEST_NAME = 254  # of a record: longer ones go into folders


def move(config: Config, to: str, metadata: Path = _METADATA) -> int:
    """Moves the output to another place, on any file system; returns the number of files whose history went along.

    Args:
        to: what `output` will be from now on. It must not exist yet.
        metadata: Snakemake's, of the folder that it runs in.

    Raises:
        UsageError: there is nothing to move, or something where it should go.
        ClipgsError: a run works on the output, or Snakemake's record of it is not here.
    """
    if not config.output_path.is_dir():
        raise UsageError(f"{config.output} is not a folder")
    if Path(to).exists() or Path(to).resolve().is_relative_to(config.output_path.resolve()):
        raise UsageError(f"{to} is there already, or inside {config.output}; name a new place")
    with OutputLock(config.output_path):
        records = sorted(path for path in metadata.rglob("*") if path.is_file())
        old, new = config.output.rstrip("/"), to.rstrip("/")
        copied = [record for record in records if _copy(record, metadata, old, new)]
        if not copied:
            raise ClipgsError(
                f"Snakemake's record of {config.output} is not in {metadata.absolute()}; "
                "move it from the folder in which Snakemake runs"
            )
        Path(to).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(config.output_path, to)
        for record in copied:  # only now: a kill before this loses nothing
            record.unlink()
    lock_path(Path(to)).unlink(missing_ok=True)
    return len(copied)


def _copy(record: Path, metadata: Path, old: str, new: str) -> bool:
    """Writes the record of one file under the file's new place; False if it is that of a file that does not move."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return new + value[len(old) :] if isinstance(value, str) and value.startswith(f"{old}/") else value

    *folders, last = record.relative_to(metadata).parts
    name = "".join([*(part.removeprefix("@") for part in folders), last])
    try:
        file = base64.urlsafe_b64decode(name).decode()
        facts = json.loads(record.read_text())
    except ValueError:
        return False
    if not file.startswith(f"{old}/") or not isinstance(facts, dict):
        return False
    encoded = base64.urlsafe_b64encode(moved(file).encode()).decode()
    parts = [encoded[i : i + _LONGEST_NAME] for i in range(0, len(encoded), _LONGEST_NAME)]
    place = metadata.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(facts | {key: moved(facts[key]) for key in ("input", "log") if key in facts}))
    return True
