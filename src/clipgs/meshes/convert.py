"""Reads .fbx, .blend and .abc by way of a GLB that Blender's library writes, in a process and environment of its own.

`clipgs doctor --install-converter` makes the environment. Blender's library is GPL-3 and 1 GB large, wants one version
of Python, and may end its process on a damaged file. Nothing of it is imported here.
"""

import logging
import os
import signal
import subprocess
import tempfile
from pathlib import Path

from clipgs.core.errors import ObjectError
from clipgs.core.runner import Limits
from clipgs.meshes import gltf
from clipgs.meshes.folder import Folder
from clipgs.meshes.materials import Material, Part

INSTALL = "clipgs doctor --install-converter"
PROGRAM = Path(__file__).with_name("convert_to_glb.py")  # of the other environment

log = logging.getLogger(__name__)

_SHARE_OF_TIME = 0.9  # the rest is for what follows in the same worker


def environment() -> Path:
    """The folder of the converter's environment, which need not be there yet."""
    given = os.environ.get("CLIPGS_CONVERTER")
    return Path(given or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/clipgs/converter").expanduser()


def python_of(folder: Path) -> Path:
    """The Python of an environment."""
    return folder / "bin" / "python"


def read(path: Path, folder: Folder, neutral: Material, max_faces: int, limits: Limits) -> list[Part]:
    """Parts of the file's scene, in metres with Y up (float64), as `gltf.read` has them.

    Raises:
        ObjectError: the converter is not installed, fails or exceeds a limit; or as `gltf.read`.
    """
    python = python_of(environment())
    if not python.is_file():
        raise ObjectError(f"{path.suffix.lower()} files need the converter: {INSTALL}")
    return converted(python, path, folder, neutral, max_faces, limits)


def converted(
    python: Path, path: Path, folder: Folder, neutral: Material, max_faces: int, limits: Limits
) -> list[Part]:
    """As `read`, by the converter of this Python."""
    with tempfile.TemporaryDirectory(prefix="clipgs-convert-") as own:
        glb = Path(own, "object.glb")
        _run(python, path, glb, folder, limits)
        file = glb.open("rb")
    # It has no name any more: a worker that ends for its memory leaves nothing on the disk.
    with file:
        return gltf.read(Path(f"/dev/fd/{file.fileno()}"), folder, neutral, max_faces)


def _run(python: Path, path: Path, glb: Path, folder: Folder, limits: Limits) -> None:
    seconds = limits.timeout_seconds * _SHARE_OF_TIME
    words = (str(os.getpid()), str(limits.memory_mb), str(folder.root), str(path.absolute()), str(glb))
    own = str(glb.parent)
    # Neither a display nor proxies, nor Blender's settings or add-ons of the user.
    env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": own, "TMPDIR": own, "BLENDER_USER_RESOURCES": own}
    env |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    output = glb.with_name("log")
    with output.open("wb") as file:
        try:
            code = subprocess.run(
                [python, "-I", "-B", PROGRAM, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=env,
                cwd=own,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            share = f", {_SHARE_OF_TIME:.0%} of {limits.keys}timeout_seconds" if limits.keys else ""
            raise ObjectError(f"its conversion took longer than {seconds:g} s{share}") from None
        except OSError as error:
            raise ObjectError(f"the converter does not start ({error.strerror}): {INSTALL}") from error
    lines = output.read_bytes()[-10_000:].decode(errors="replace").splitlines()
    log.debug("the converter's last words: %s", lines[-20:])
    sentence = next((line for line in reversed(lines) if line.startswith("clipgs: ")), None)
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")[:200]
    if code == 1 and sentence:
        raise ObjectError(sentence.removeprefix("clipgs: "))
    if code < 0:
        name = signal.Signals(-code).name
        most = f"{limits.memory_mb} MB{limits.named('memory_mb')}"
        raise ObjectError(f"the converter was ended by {name}: the file is damaged, or needs more than {most}")
    if code:
        raise ObjectError(f"the converter failed: {last}")
    if not glb.is_file() or not glb.stat().st_size:
        raise ObjectError(f"the converter wrote no file: {last}")
