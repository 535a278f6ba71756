"""The teacher at the lowest and at the newest versions of its libraries, which lie over the installed ones."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

VERSIONS = Path(__file__).parent / "versions"
TESTS = ("tests/teacher", "tests/triplets/test_coca.py")
# What uv says where no index of packages can be reached.
NO_NETWORK = (
    "error sending request",
    "failed to fetch",
    "could not connect",
    "network connectivity is disabled",
    "dns",
)


def pins(name: str) -> dict[str, Version]:
    lines = (VERSIONS / f"{name}.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in found}


@pytest.fixture(scope="module")
def allowed(checkout) -> dict[str, Requirement]:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["hf"]
    return {canonicalize_name(need.name): need for need in map(Requirement, lines)}


def test_the_lowest_versions_are_pyprojects_bounds(allowed):
    lowest = pins("lowest")
    bounds = {
        name: next(Version(bound.version) for bound in allowed[name].specifier if bound.operator == ">=")
        for name in lowest.keys() & allowed.keys()
    }
    assert {"timm", "transformers", "open-clip-torch", "safetensors", "numpy", "pillow"} <= bounds.keys()
    assert bounds == {name: lowest[name] for name in bounds}


def test_the_newest_versions_are_allowed_and_no_lower_than_the_lowest(allowed):
    newest, lowest = pins("newest"), pins("lowest")
    assert lowest.keys() <= newest.keys()
    for name, version in newest.items():
        assert version >= lowest.get(name, version)
        if name in allowed:
            assert version in allowed[name].specifier, f"{name} {version} is not in {allowed[name]}"


@pytest.fixture(params=["lowest", "newest"])
def overlay(request, tmp_path) -> tuple[Path, dict[str, Version]]:
    """A folder with other versions of the libraries, for the front of PYTHONPATH."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv, which `make` installs")
    site = tmp_path / "site"
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(site)]
    done = subprocess.run([*install, "-r", VERSIONS / f"{request.param}.txt"], capture_output=True, text=True)
    if done.returncode and any(words in done.stderr.lower() for words in NO_NETWORK):
        pytest.skip(f"needs an index of packages, and none was reached: {done.stderr.strip()[:200]}")
    assert done.returncode == 0, done.stderr
    return site, pins(request.param)


@pytest.mark.slow
def test_the_teachers_tests_pass_with_these_versions(checkout, overlay):
    site, versions = overlay
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}

    ask = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    seen = subprocess.run([sys.executable, "-c", ask, *versions], env=environment, capture_output=True, text=True)
    assert seen.stdout.split() == [str(version) for version in versions.values()], seen.stderr

    # Other versions may warn of each other: the lowest timm of the installed torch, for one.
    pytest_of_these = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    tests = [*pytest_of_these, "-m", "not slow and not gpu", *TESTS]
    done = subprocess.run(tests, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
