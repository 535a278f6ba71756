"""How many small errors in the code its tests find: a mutation score, module by module.

    pip install mutmut==3.8.1
    python benchmarks/mutation.py
    python benchmarks/mutation.py --only training/losses.py encoder/order.py
    python benchmarks/mutation.py --again

mutmut changes one thing at a time (a sign, a number, an argument, a text) and runs the module's own tests, in a copy
of the checkout. A change that no test finds has survived. Every mutant counts, those of the texts of errors too;
docstrings and comments are not changed, nor what stands outside of functions, nor decorated functions (properties). A
mutant whose tests hang counts as found. Tests that need data from outside the repository are skipped, so that the score
is the same for everyone. With `--only`, the other modules keep what was found before; with `--again`, only survivors
are tried, of modules whose code is still the same: for tests that were added since.

Writes benchmarks/results/mutation.json: scores, and every survivor. Its `reason` is written there by hand, and kept as
long as its change is. One that begins with "equal: " says why the mutant does what the code does, so that no test can
find it: it counts as not found in `score`, and is left out of `score_without_equivalent`. Any other reason says why no
test found it yet, and changes no score.
"""

import argparse
import ast
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import CHECKOUT, commit, record

BAR = 0.85  # of all mutants
MODULES = {
    "training/losses.py": ("training/test_contrast.py",),
    "training/augment.py": ("training/test_augment.py",),
    "evaluation/retrieval.py": ("evaluation/test_retrieval.py",),
    "encoder/order.py": ("encoder/test_order.py",),
    "meshes/cameras.py": ("meshes/test_cameras.py",),
    "meshes/materials.py": ("meshes/test_materials.py",),
    "catalog/shards.py": ("catalog/test_shards.py", "catalog/test_objaverse.py"),
    "catalog/stages.py": ("catalog/test_shards.py",),
    "triplets/captions.py": ("triplets/test_captions.py", "triplets/test_cap3d.py"),
    "splats/gaussians.py": ("splats/test_gaussians.py", "splats/test_ply.py"),
}
_FOUND = {1, 3}  # exit codes of pytest
_HANGS = {36, 24, -24, 152, 255, -9, -11}  # mutmut's of a mutant that takes too long or crashes
_log = logging.getLogger(__name__)


def prepare(folder: Path, module: str) -> None:
    """A copy of what the tests of one module read, and mutmut's settings."""
    for name in ("src", "tests", "docs", "configs", "benchmarks"):
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "config.yaml"):
        shutil.copy(CHECKOUT / name, folder)
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"src/clipgs/{module}"],
        "also_copy": ["docs", "configs", "config.yaml", "benchmarks"],
        "pytest_add_cli_args_test_selection": [f"tests/{test}" for test in MODULES[module]],
        "pytest_add_cli_args": ["-x", "-p", "no:cacheprovider"],
        "process_isolation": ["forkserver"],  # torch's threads do not outlive a fork
    }
    lines = [f"{key} =\n" + "".join(f"    {value}\n" for value in values) for key, values in settings.items()]
    lines = [line.replace(" =\n    forkserver", " = forkserver") for line in lines]
    (folder / "setup.cfg").write_text("[mutmut]\n" + "".join(lines))


def mutate(folder: Path, mutants: list[str], children: int) -> None:
    """Runs mutmut in a prepared folder, on all mutants or on those named, in so many processes at once."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    (folder / "mutants" / "src").mkdir(parents=True)  # Python remembers that a folder of its path was not there
    places = {"PYTHONPATH": str(folder / "mutants" / "src"), "CLIPGS_SHARED": str(folder / "nothing")}
    environment = {**os.environ, **threads, **places}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children), *mutants]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line[:1] not in "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"]  # its bar
        raise SystemExit("\n".join([*lines[-40:], done.stderr[-3000:]]))


def judge(folder: Path, module: str) -> dict[str, Any]:
    """What one module's tests found of the mutants that were tried, and the survivors."""
    meta = json.loads((folder / "mutants" / "src" / "clipgs" / f"{module}.meta").read_text())
    codes: dict[str, int | None] = meta["exit_code_by_key"]
    left = [name for name, code in codes.items() if code is not None and code not in _FOUND | _HANGS]
    hangs = sum(code in _HANGS for code in codes.values())
    survivors = [{"mutant": name, **change(folder, module, name)} for name in left]
    return {"mutants": len(codes), "hangs": hangs, "survivors": survivors}


def change(folder: Path, module: str, name: str) -> dict[str, Any]:
    """Where a mutant stands, and its lines as a difference."""
    shown = subprocess.run(
        [sys.executable, "-m", "mutmut", "show", name], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    body = shown[shown.index("@@") :].splitlines()
    first = int(re.findall(r"\d+", body[0])[0]) if body else 1
    before = next(i for i, line in enumerate(body[1:]) if line.startswith(("-", "+")))
    path = name.rsplit(".", 1)[1].rsplit("__mutmut_", 1)[0][2:].split("ǁ")  # x_f, or xǁClassǁf
    lines = [line for line in body[1:] if line.startswith(("-", "+"))]
    return {
        "function": ".".join(path),
        "line": defined(module, path) + first - 1 + before,
        "change": "\n".join(lines),
    }


def defined(module: str, path: list[str]) -> int:
    """The line of a function's `def`."""
    nodes: list[Any] = [ast.parse((CHECKOUT / "src" / "clipgs" / module).read_text())]
    for name in path:
        nodes = [child for node in nodes for child in ast.walk(node) if getattr(child, "name", None) == name]
    return nodes[0].lineno


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--children", type=int, default=1, help="mutants at once")
    parser.add_argument("--again", action="store_true", help="only what survived before")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    file = CHECKOUT / "benchmarks" / "results" / "mutation.json"
    before = json.loads(file.read_text())["results"]["modules"] if file.exists() else {}
    modules = {module: before[module] for module in MODULES if module in before}
    for module in arguments.only:
        old = modules.get(module, {"survivors": []})
        reasons = {one["change"]: one["reason"] for one in old["survivors"] if "reason" in one}
        code = sha256((CHECKOUT / "src" / "clipgs" / module).read_bytes()).hexdigest()
        again = arguments.again and old.get("sha256") == code
        tried = [one["mutant"] for one in old["survivors"] if not equal(one)]
        if again and not tried:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            prepare(Path(temporary), module)
            mutate(Path(temporary), tried if again else [], arguments.children)
            found = judge(Path(temporary), module)
        if again:
            found["survivors"] += [one for one in old["survivors"] if equal(one)]
            found["hangs"] += old["hangs"]
        for one in found["survivors"]:
            if one["change"] in reasons:
                one["reason"] = reasons[one["change"]]
        found["survivors"].sort(key=lambda one: (one["line"], one["change"]))
        about = {"tests": MODULES[module], "commit": commit(), "sha256": code}
        modules[module] = {**scores([found]), **about, **found}
        total = scores(list(modules.values()))
        _log.info("%s: %.1f %%, in all %.1f %%", module, 100 * modules[module]["score"], 100 * total["score"])
        record("mutation", {"mutmut": version("mutmut"), "bar": BAR}, {**total, "modules": modules})
    total = scores(list(modules.values()))
    _log.info("in all %.1f %%, the bar is %.0f %%", 100 * total["score"], 100 * BAR)
    return 0 if total["score"] >= BAR else 1


def scores(modules: list[dict[str, Any]]) -> dict[str, float]:
    """The share of mutants that tests find: of all, and of those that are not the same program."""
    mutants = sum(one["mutants"] for one in modules)
    survivors = [survivor for one in modules for survivor in one["survivors"]]
    found = mutants - len(survivors)
    same = sum(map(equal, survivors))
    return {"score": round(found / mutants, 4), "score_without_equivalent": round(found / (mutants - same), 4)}


def equal(survivor: dict[str, Any]) -> bool:
    """Whether a survivor's reason says that it is the same program."""
    return survivor.get("reason", "").startswith("equal: ")


if __name__ == "__main__":
    sys.exit(main())
