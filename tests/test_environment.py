"""pyproject.toml says what is needed, requirements.lock which versions, envs/*.yaml repeat them for conda."""

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ENVIRONMENTS = {"clipgs.yaml": [], "clipgs-gpu.yaml": ["gpu"]}  # file: extras


@pytest.fixture(scope="module")
def lock(checkout) -> dict[str, Requirement]:
    lines = (checkout / "requirements.lock").read_text().splitlines()
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


@pytest.fixture(scope="module")
def project(checkout) -> dict:
    return tomllib.loads((checkout / "pyproject.toml").read_text())["project"]


def requirements(project: dict, *extras: str) -> list[Requirement]:
    optional = project["optional-dependencies"]
    return [Requirement(line) for line in sum((optional[extra] for extra in extras), project["dependencies"])]


def version(pin: Requirement) -> str:
    (specifier,) = pin.specifier
    assert specifier.operator == "==", pin
    return specifier.version


def test_the_lock_holds_one_exact_version_a_package_and_no_address(checkout, lock):
    text = (checkout / "requirements.lock").read_text()

    assert re.search(r"https?:|file:|--|@", text) is None
    assert len(lock) == len(text.splitlines())
    for pin in lock.values():
        assert "*" not in version(pin)


def test_the_lock_has_every_requirement_in_its_range(project, lock):
    for requirement in requirements(project, *project["optional-dependencies"]):
        pin = lock[canonicalize_name(requirement.name)]
        assert version(pin) in requirement.specifier, f"{pin} does not meet {requirement}: make lock"


def test_torch_and_torchvision_are_a_pair(lock):
    # torchvision names its torch exactly, for instance `torch==2.11.0`.
    needs = map(Requirement, metadata.requires("torchvision") or [])
    torch = next(need for need in needs if need.name == "torch")

    assert metadata.version("torchvision").split("+")[0] == version(lock["torchvision"])
    assert version(lock["torch"]) in torch.specifier


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_conda_environment_repeats_pyproject_at_the_locks_versions(checkout, project, lock, name):
    environment = yaml.safe_load((checkout / "envs" / name).read_text())
    *conda, pip = environment["dependencies"]
    pins = {canonicalize_name(pin.name): pin for pin in map(Requirement, pip["pip"])}

    expected = {canonicalize_name(need.name) for need in requirements(project, *ENVIRONMENTS[name])}
    assert set(pins) == expected
    assert {pin: version(pins[pin]) for pin in pins} == {pin: version(lock[pin]) for pin in pins}
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    python = next(need.removeprefix("python=") for need in conda if need.startswith("python="))
    assert tuple(map(int, python.split("."))) >= (3, 11)
    # The package itself is installed from the checkout, once the environment is made.
    assert "--editable" in (checkout / "envs" / f"{Path(name).stem}.post-deploy.sh").read_text()


def test_every_rule_runs_in_one_of_the_environments(checkout):
    files = [checkout / "Snakefile", *sorted((checkout / "workflow" / "rules").glob("*.smk"))]
    text = {file: file.read_text() for file in files}
    # A rule names its environment by a path, or by a constant: ENV = str(Path(..., "clipgs.yaml")).
    constant = re.compile(r"^([A-Z_]+) = .*[\"'/]([\w-]+\.yaml)[\"']", flags=re.MULTILINE)
    constants = dict(constant.findall("\n".join(text.values())))
    working = 0
    for file in files:
        for rule in re.split(r"^\s*(?=(?:rule|checkpoint) \w+:)", text[file], flags=re.MULTILINE)[1:]:
            if not re.search(r"^\s+(shell|script):", rule, flags=re.MULTILINE):
                continue  # a target rule only gathers files
            working += 1
            conda = re.search(r"^\s+conda:\s+(.+)$", rule, flags=re.MULTILINE)
            where = f"{file.name}: {rule.splitlines()[0]}"
            assert conda, f"{where} has no conda:"
            named = [constants[word] for word in re.findall(r"[A-Z_]+", conda[1]) if word in constants]
            assert named, where
            assert set(named) <= set(ENVIRONMENTS), where
    assert working


def test_what_make_installed_is_the_lock(checkout, lock):
    if Path(sys.prefix).resolve() != (checkout / ".venv").resolve():
        pytest.skip("this is not the environment that make made")
    installed = {canonicalize_name(found.name): found.version for found in metadata.distributions()}
    # pip, uv and clipgs are no dependencies of clipgs.
    others = {
        name: (found, str(lock[name].specifier))
        for name, found in installed.items()
        if name in lock and found.split("+")[0] not in lock[name].specifier
    }
    assert others == {}
    assert set(installed) - set(lock) <= {"pip", "uv", "clipgs"}


def test_every_file_of_the_package_that_is_not_python_is_installed(checkout):
    options = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = checkout / "src" / "clipgs"
    data = {file for pattern in options["package-data"]["clipgs"] for file in package.glob(pattern)}
    others = {
        file for file in package.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc", ".nbc", ".nbi")
    }
    assert others - data == set()
    assert package / "py.typed" in data


def test_the_short_commands_need_nothing_but_make_and_python(checkout):
    makefile = (checkout / "Makefile").read_text()

    assert re.search(r"https?://|index-url=|conda |docker", makefile) is None
    assert re.search(r"^UV := uv==[\d.]+$", makefile, flags=re.MULTILINE)
    packages = re.search(r"^OPENGL := (.+)$", makefile, flags=re.MULTILINE)
    from clipgs.operate.doctor import OPENGL_PACKAGES

    assert packages
    assert packages[1] == OPENGL_PACKAGES
