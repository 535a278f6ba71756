"""Installs the converter of .fbx, .blend and .abc files: Blender's library, in a Python environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipgs.core.errors import ClipgsError, ObjectError, UsageError, advice
from clipgs.core.runner import Limits
from clipgs.meshes import convert
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material

# The version whose scenes were compared with the same model's GLB. Each version of it wants one version of Python.
BLENDER, PYTHON = "5.2.3", "3.13"

_CUBE = """
import sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.mesh.primitive_cube_add(size=2)
bpy.ops.export_scene.fbx(filepath=sys.argv[1])
"""


def installed(folder: Path) -> str | None:
    """The version of Blender's library in an environment; None without one."""
    found = sorted(folder.glob("lib/python3.*/site-packages/bpy-*.dist-info"))
    match = re.match(r"bpy-(.+)\.dist-info", found[-1].name) if found else None
    return match[1] if match and convert.python_of(folder).is_file() else None


def install(python: Path | None = None) -> str:
    """Makes the environment of the converter, and tries it on a small file. Returns a line that says what was made.

    It replaces an older one only when all is done.

    Args:
        python: one of version 3.13; by default it is looked for.

    Raises:
        ClipgsError: there is no such Python, or a step failed.
    """
    folder, begin = convert.environment(), time.monotonic()
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise UsageError(
            f"CLIPGS_CONVERTER is {folder}, which is no environment of Python: name one that does not exist"
        )
    base = _checked(python) if python else _found()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise ClipgsError(f"{folder.parent}: {error.strerror}; CLIPGS_CONVERTER names another folder") from error
    try:
        own = convert.python_of(made)
        _step("no environment could be made", base, "-m", "venv", made)
        _step("pip failed", own, "-m", "pip", "install", "--no-cache-dir", f"bpy=={BLENDER}")
        _try(own, made)
        made.chmod(0o755)  # others may use it
        if folder.exists():
            folder.rename(made / "old")  # goes with what is left of this folder
        size = sum(file.lstat().st_size for file in made.rglob("*") if "old" not in file.parts) / 1e6
        os.replace(made, folder)
        shutil.rmtree(folder / "old", ignore_errors=True)
    except OSError as error:
        raise ClipgsError(f"{folder}: {error.strerror}{advice(error, 'CLIPGS_CONVERTER')}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    seconds = time.monotonic() - begin
    return f"the converter is installed and reads a test file: {folder} ({size:.0f} MB, {seconds:.0f} s)"


def _candidates() -> Iterator[Path]:
    yield Path(sys.executable)
    for name in (f"python{PYTHON}", "python3", "python"):
        if found := shutil.which(name):
            yield Path(found)
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{PYTHON}*/bin/python{PYTHON}"))
    yield from sorted((home / ".local/share/uv/python").glob(f"cpython-{PYTHON}*/bin/python{PYTHON}"))


def _version(python: Path) -> str | None:
    try:
        ask = "import sys, venv, ensurepip; print('{}.{}'.format(*sys.version_info))"
        done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _found() -> Path:
    for python in _candidates():
        if _version(python) == PYTHON:
            return python
    how = f"apt-get install python{PYTHON}-venv, pyenv install {PYTHON}, or uv python install {PYTHON}"
    need = f"which Blender's library {BLENDER} needs"
    raise ClipgsError(f"no Python {PYTHON} with venv was found, {need}: install one ({how}), or name it with --python")


def _checked(python: Path) -> Path:
    version = _version(python)
    if version != PYTHON:
        found = f"is version {version}" if version else "does not run, or has no venv"
        raise UsageError(f"--python {python} {found}; Blender's library {BLENDER} needs Python {PYTHON}")
    return python


def _step(what: str, *command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, errors="replace")
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        errors = [line for line in lines if line.startswith("ERROR")]
        raise ClipgsError(f"the converter was not installed, {what}: {(errors or lines)[-1][:300]}")


def _try(python: Path, folder: Path) -> None:
    """Lets the converter's own library write a cube, and reads it."""
    cube = folder / "cube.fbx"
    _step("its library does not run", python, "-I", "-c", _CUBE, cube)
    try:
        parts = convert.converted(python, cube, Folder(cube, 1), Material(), 100, Limits(300, 1500))
    except ObjectError as error:
        raise ClipgsError(f"the converter was not installed, it does not read a test file: {error}") from error
    vertices = np.concatenate([part.vertices[part.faces].reshape(-1, 3) for part in parts])
    if len(vertices) != 36 or not np.allclose(np.abs(vertices), 1, atol=1e-5):
        raise ClipgsError("the converter was not installed, it reads a cube as something else")
    cube.unlink()
