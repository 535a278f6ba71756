import contextlib
import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

# Small and quick, and with nothing left out: two objects in two shards through every stage.
SETTINGS = {
    "output": "results",
    "cache": "cache",
    "device": "cpu",
    "catalog": {
        "source": "folder",
        "shard_objects": 1,
        "folder": {"path": "meshes", "manifest": "meshes/manifest.csv"},
    },
    "points": {"count": 600},
    "views": {"pixels": 32, "count": 6, "held_out": 2},
    "fit": {"gaussians": 150, "steps": 20, "min_psnr": 5.0},
    "render": {"pixels": 32},
}


class Workspace:
    """A folder in which Snakemake runs: a configuration, meshes, and what was made of them."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder = folder
        self.checkout = checkout

    @property
    def output(self) -> Path:
        return self.folder / "results"

    def write_config(self, settings=SETTINGS) -> None:
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))

    def add_objects(self, count: int, **texts: str) -> None:
        """Writes meshes and a manifest that lists them; `texts` mends single captions."""
        from clipgs.catalog.sources import procedural

        (self.folder / "meshes").mkdir(exist_ok=True)
        rows = []
        for index in range(count):
            locator = procedural.locator(index, 0)
            about = procedural.describe(locator)
            file = f"{about.uid}.glb"
            if not (self.folder / "meshes" / file).exists():
                (self.folder / "meshes" / file).write_bytes(procedural.build(locator))
            text, split = texts.get(f"text{index}", about.text), ("train", "test")[index % 2]
            rows.append({"file": file, "category": about.category, "text": text, "split": split})
        with open(self.folder / "meshes" / "manifest.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def command(self, *arguments: str) -> list[str]:
        snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(self.checkout / "Snakefile")]
        return [*snakemake, "--directory", str(self.folder), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Runs Snakemake; does not judge how it ends."""
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=600)

    def make(self, *arguments: str, target: str = "triplets") -> subprocess.CompletedProcess:
        """Runs Snakemake to a good end."""
        done = self.run(target, *arguments)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    def planned(self, *arguments: str, target: str = "triplets") -> dict[str, int]:
        """Rule to the number of its jobs that a run would do."""
        import snakemake.cli

        text, place, environment = io.StringIO(), os.getcwd(), dict(os.environ)
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), pytest.raises(SystemExit) as end:
                snakemake.cli.main([*self.command("-n", target, *arguments)[3:]])
        finally:
            os.chdir(place)
            os.environ.clear()
            os.environ.update(environment)
        assert end.value.code in (0, None), text.getvalue()[-3000:]
        if "Nothing to be done" in text.getvalue():
            return {}
        jobs = dict(re.findall(r"^  (\w+) +([\d,]+)  \S", text.getvalue().split("would run")[1], re.MULTILINE))
        return {rule: int(count) for rule, count in jobs.items() if rule != target}

    def copy(self, folder: Path) -> "Workspace":
        """The same state elsewhere."""
        shutil.copytree(self.folder, folder)
        return Workspace(folder, self.checkout)


@pytest.fixture(scope="session")
def made(tmp_path_factory, checkout) -> Workspace:
    """A workspace whose triplets are made. Tests that change it take a copy."""
    workspace = Workspace(tmp_path_factory.mktemp("made"), checkout)
    workspace.write_config()
    workspace.add_objects(2)
    workspace.make()
    return workspace
