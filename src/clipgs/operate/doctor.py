"""What this machine has of what a run needs, and for each gap the command or setting that closes it.

What could crash or hang an interpreter (torch, a GPU driver, OpenGL) is tried in a process of its own, with a time
limit. The Makefile runs one of these processes too: `python -m clipgs.operate.doctor opengl`.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from clipgs.catalog.records import CONVERTED
from clipgs.config import Config
from clipgs.core.devices import find_nvcc
from clipgs.core.errors import UsageError, describe_error
from clipgs.core.processes import free_memory_bytes, usable_cores
from clipgs.operate.checks import of_settings
from clipgs.teacher import hub, names

GIB = 2**30
PROBE_SECONDS = 120  # the first import of torch from a cold network disk takes a minute
OPENGL_PACKAGES = "libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri"
TORCH_PAIR = "pip install --force-reinstall -c requirements.lock torch torchvision"

Status = Literal["ok", "note", "missing"]
Row = tuple[Status, str, str]  # status, what was found, remedy


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    status: Status  # note: a run works without it; missing: a run fails without it
    found: str
    remedy: str = ""


def doctor(output: Path = Path("results"), config: Config | None = None) -> list[Check]:
    """Looks at this machine, at the disk that a run would fill, and at what the configuration names.

    Never raises: a check that fails is itself a row.

    Args:
        output: need not exist yet.
    """
    driver, torch = _tried(_driver), _tried(_probe, "torch")
    settings = []
    if config:
        teacher = _checked("teacher", _teacher, config)
        settings = [teacher, _checked("settings", _settings, config, teacher.found)]
    return [
        Check("Python", "ok", f"{platform.python_version()} ({sys.executable})"),  # pip refuses one that is too old
        _checked("torch", _torch, torch),
        _checked("torchvision", _torchvision, torch),
        _checked("CUDA driver", _cuda_driver, driver),
        _checked("CUDA in torch", _cuda_in_torch, torch, driver),
        _checked("C compiler", _c_compiler, driver),
        _checked("CUDA compiler", _cuda_compiler, torch, driver),
        _checked("gsplat", _gsplat, torch, driver),
        _checked("OpenGL", _opengl, driver),
        _checked("converter", _converter),
        _checked("disk", _disk, output),
        _checked("cores", _cores),
        _checked("memory", _memory),
        *settings,
    ]


def format(checks: list[Check]) -> str:
    """The checks as text, one line each, with the remedy on a line of its own below."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<7}  {check.name:<{width}}  {check.found}")
        if check.remedy:
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.remedy}")
    return "\n".join(lines)


def _checked(name: str, check: Callable[..., Row], *facts: Any) -> Check:
    try:
        return Check(name, *check(*facts))
    except Exception as error:  # of any kind: the doctor reports on machines that nobody foresaw
        return Check(name, "note", f"could not be checked: {describe_error(error)}", "check by hand; a run may work")


def _tried(look: Callable[..., dict[str, Any]], *args: str) -> dict[str, Any]:
    try:
        return look(*args)
    except Exception as error:  # as above: becomes the text of a row
        return {"error": describe_error(error)}


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    nothing, limit = subprocess.DEVNULL, PROBE_SECONDS
    return subprocess.run(command, stdin=nothing, capture_output=True, errors="replace", timeout=limit)


def _probe(name: str) -> dict[str, Any]:
    """Runs one of PROBES in a process of its own: what it found, or `error` and why."""
    try:
        done = _run(sys.executable, "-m", "clipgs.operate.doctor", name)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {PROBE_SECONDS} s"}
    if done.returncode < 0:
        return {"error": f"the process was killed by signal {-done.returncode}"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def _torch(torch: dict[str, Any]) -> Row:
    if "error" in torch:
        return "missing", torch["error"], "make .venv (or: pip install -c requirements.lock -e .)"
    return "ok", torch["version"], ""


def _torchvision(torch: dict[str, Any]) -> Row:
    if "error" in torch:
        return "note", "torch does not import", ""
    if torch["torchvision_error"]:
        # Usually a CPU-only torch from one index and a CUDA-linked torchvision from another.
        return "missing", f"not built for this torch ({torch['torchvision_error']})", TORCH_PAIR
    return "ok", torch["torchvision"], ""


def _driver() -> dict[str, Any]:
    """NVIDIA's driver, by nvidia-smi or, in containers without that, by libcuda; `found` is empty without."""
    if smi := shutil.which("nvidia-smi"):
        done = _run(smi, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
        if done.returncode == 0 and done.stdout.strip():
            return {"found": "; ".join(map(str.strip, done.stdout.splitlines()))}
        reason = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": f"nvidia-smi: {reason[0]}"}
    library = _probe("libcuda")
    return {"found": "" if "error" in library else f"libcuda for CUDA {library['cuda']}"}


def _cuda_driver(driver: dict[str, Any]) -> Row:
    if "error" in driver:
        return "note", driver["error"], "reload or reinstall NVIDIA's driver; until then: device: cpu"
    if not driver["found"]:
        found = "none: splats are fitted on the CPU, about a minute an object and core"
        return "note", found, "for a GPU, install NVIDIA's driver (in a container: start it with --gpus all)"
    return "ok", driver["found"], ""


def _cuda_in_torch(torch: dict[str, Any], driver: dict[str, Any]) -> Row:
    if "error" in torch:
        return "note", "torch does not import", ""
    if torch["devices"]:
        return "ok", f"CUDA {torch['cuda']}: {', '.join(torch['devices'])}", ""
    if not driver.get("found"):
        return "note", "no GPU to see", ""
    if torch["cuda"] is None:
        return "missing", "a GPU is there, but this torch is a CPU-only build", TORCH_PAIR
    found = f"a GPU is there, but torch cannot use it: {torch['cuda_error'] or 'it gives no reason'}"
    return "missing", found, f"check CUDA_VISIBLE_DEVICES, or update the driver to one for CUDA {torch['cuda']}"


def _c_compiler(driver: dict[str, Any]) -> Row:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return "ok", path, ""
    use = "gsplat's extension is built with it" if driver.get("found") else "only a GPU run needs one"
    return "note", f"none: {use}", "sudo apt-get install -y build-essential"


def _cuda_compiler(torch: dict[str, Any], driver: dict[str, Any]) -> Row:
    wanted = torch.get("cuda")
    nvcc = find_nvcc()
    if nvcc is None:
        use = "gsplat's extension is built with it" if driver.get("found") else "only a GPU run needs it"
        toolkit = f"the CUDA {wanted} toolkit" if wanted else "the CUDA toolkit"
        return "note", f"no nvcc: {use}", f"install {toolkit} and set CUDA_HOME"
    done = _run(nvcc, "--version")
    version = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if done.returncode or not version:
        return "note", f"{nvcc} does not run", "set CUDA_HOME to a CUDA toolkit that works"
    found = f"{version[1]}.{version[2]} ({nvcc})"
    if wanted and version[1] != wanted.split(".")[0]:
        # torch's extension builder refuses another major version.
        return "note", f"{found}, but torch is for CUDA {wanted}", f"set CUDA_HOME to a CUDA {wanted} toolkit"
    return "ok", found, ""


def _gsplat(torch: dict[str, Any], driver: dict[str, Any]) -> Row:
    gpu = bool(driver.get("found"))
    lacking: Status = "missing" if gpu else "note"
    spec = importlib.util.find_spec("gsplat")  # not imported: the import starts the build
    if spec is None or spec.origin is None:
        use = "the GPU engine needs it" if gpu else "only a GPU run needs it"
        return lacking, f"not installed: {use}", "pip install -c requirements.lock -e '.[gpu]'" if gpu else ""
    folder = Path(spec.origin).parent
    if any(folder.glob("csrc*.so")) or (folder / "csrc.py").is_file():
        return "ok", "installed with its extension", ""
    if "error" in torch:
        return "note", "installed, but torch does not import", ""
    built = Path(torch["extensions"]) / "gsplat_cuda" / "gsplat_cuda.so"
    if built.is_file():
        return "ok", f"installed, its extension is built ({built})", ""
    if find_nvcc() is None:
        remedy = "install the CUDA toolkit and set CUDA_HOME" if gpu else ""
        return lacking, "installed, but its extension is not built and cannot be: no nvcc", remedy
    return "note", "installed, its extension will be built at first use (a minute or more)", ""


def _opengl(driver: dict[str, Any]) -> Row:
    frame = _probe("opengl")
    if "error" in frame:
        found = f"no frame can be drawn through EGL ({frame['error']})"
        return "missing", found, f"sudo apt-get install -y {OPENGL_PACKAGES}"
    found = f"a frame was drawn by {frame['renderer']}"
    on_cpu = re.search("llvmpipe|softpipe|swrast", frame["renderer"])
    if on_cpu and driver.get("found"):
        remedy = "install the driver's OpenGL part (in a container: NVIDIA_DRIVER_CAPABILITIES=all)"
        return "note", f"{found}, on the CPU, though a GPU is there", remedy
    return "ok", f"{found}, on the CPU" if on_cpu else found, ""


def _converter() -> Row:
    from clipgs.meshes import convert
    from clipgs.operate.converter import BLENDER, installed

    folder, kinds = convert.environment(), " ".join(CONVERTED)
    version = installed(folder)
    if version is None:
        return "note", f"not installed: only {kinds} files need it", convert.INSTALL
    if version != BLENDER:
        return "note", f"Blender {version}, this version of clipgs was tried with {BLENDER} ({folder})", convert.INSTALL
    return "ok", f"Blender {version} ({folder})", ""


def _disk(output: Path) -> Row:
    folder = output.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    found = f"{free:.0f} GiB free at {folder}"
    if not os.access(folder, os.W_OK):
        return "missing", f"{folder} cannot be written", "choose another folder: --config output=FOLDER"
    if free < 1:
        return "missing", found, "free some space, or choose another disk: --config output=FOLDER"
    if free < 10:
        return "note", found, "enough for a few thousand objects; for more: --config output=FOLDER"
    return "ok", found, ""


def _cores() -> Row:
    return "ok", f"{usable_cores()} of {os.cpu_count()} usable", ""


def _memory() -> Row:
    usable = free_memory_bytes() / GIB
    found = f"{usable:.1f} GiB usable of {psutil.virtual_memory().total / GIB:.0f}"
    if usable < 2:
        return "note", found, "close other programs, or run with --cores 1; a worker takes up to 1.5 GiB"
    return "ok", found, ""


def _settings(config: Config, told: str) -> Row:
    """What the configuration names, but for the error that was `told` of the teacher."""
    from clipgs.catalog.shards import plan

    found = of_settings(config, plan(config))
    if errors := [error for error in found.errors if error.removeprefix("config: ") != told]:
        return "missing", "; ".join(errors), "change these keys of the configuration"
    others = f"all {'other ' * bool(found.errors or found.notes)}names and files are there"
    notes = [note for note in found.notes if not (note.startswith("teacher: ") and "will be downloaded" in note)]
    return (
        ("note", "; ".join(notes), "") if notes else ("ok", others, "")
    )  # what of the teacher is missing is told above


def _teacher(config: Config) -> Row:
    """What of the configured teacher is on this machine, and what is not."""
    settings = config.teacher
    if settings.name == "train":
        return "ok", "a small one is trained on the triplets", ""
    try:
        found = names.find(settings, "teacher", names.installed)
    except UsageError as error:
        return "missing", str(error).removeprefix("config: "), "change these keys of the configuration"
    if problem := names.misfit(found, settings.name):
        return "missing", problem, "name the model of these weights in teacher.name, or other weights"
    here, missing = [], []
    if not isinstance(found.weights, hub.Download):
        here.append(f"weights in {found.weights}")
    elif found.weights.cached:
        here.append(f"weights of {found.weights.what} in the cache")
    else:
        missing.append(f"the weights of {found.weights.what}")
    if found.preprocess is not None:
        here.append(f"pictures prepared as {names.in_words(found.preprocess)}")
    for files in hub.text_files(found.architecture, found.folder):
        if files.folder:
            here.append(f"{files.what} in {files.folder}")
        else:
            missing.append(f"{files.what} ({files.repository})")
        if problem := hub.no_transformers("teacher", settings.name):
            return "missing", problem.removeprefix("config: "), ""
    text = "; ".join([*here, *(f"not here: {what}" for what in missing)])
    if not missing:
        return "ok", text, ""
    network = "no network here" if hub.offline() or hub.silence(hub.endpoint()) else "the first run downloads it"
    return "note", text, f"{network}; clipgs fetch-teacher NAME TAG --to FOLDER brings all of it into a folder"


def _probe_torch() -> dict[str, Any]:
    import warnings

    import torch
    from torch.utils import cpp_extension

    found: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda, "cuda_error": ""}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found["devices"] = [torch.cuda.get_device_name(index) for index in range(count)]
    if caught and not count:
        found["cuda_error"] = str(caught[0].message).splitlines()[0]
    try:
        import torchvision

        found |= {"torchvision": torchvision.__version__, "torchvision_error": ""}
    except Exception as error:  # "operator torchvision::nms does not exist" is a RuntimeError
        found["torchvision_error"] = describe_error(error)
    # Where torch builds extensions; its own function for this would make the folder.
    build = f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}_"
    build += f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    root = os.environ.get("TORCH_EXTENSIONS_DIR")
    found["extensions"] = root or str(Path(cpp_extension.get_default_build_root()) / build)
    return found


def _probe_libcuda() -> dict[str, Any]:
    import ctypes

    library = ctypes.CDLL("libcuda.so.1")
    version = ctypes.c_int()
    if code := library.cuInit(0) or library.cuDriverGetVersion(ctypes.byref(version)):
        raise RuntimeError(f"libcuda answers with error {code}")
    return {"cuda": f"{version.value // 1000}.{version.value % 1000 // 10}"}


def _probe_opengl() -> dict[str, Any]:
    """Draws one red triangle through EGL, and checks its middle."""
    import numpy as np

    from clipgs.meshes import views
    from clipgs.meshes.headless import context
    from clipgs.meshes.load import Mesh
    from clipgs.meshes.materials import Material, Part

    corners = np.array([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], np.float32) / 4
    red = Part(corners, np.array([[0, 1, 2]], np.int32), material=Material((1, 0, 0, 1), unlit=True))
    camera, lens = np.diag([1.0, -1.0, -1.0, 1.0]), np.array([[32.0, 0, 8], [0, 32, 8], [0, 0, 1]])
    camera[2, 3] = 2
    color = views.render(Mesh((red,), np.zeros(3), 1.0), camera[None], lens[None], 16)[0, 8, 8].tolist()
    renderer = context().info["GL_RENDERER"]
    if color != [255, 0, 0, 255]:
        raise RuntimeError(f"{renderer} draws a red triangle in the colour {color}")
    return {"renderer": renderer}


PROBES = {"torch": _probe_torch, "libcuda": _probe_libcuda, "opengl": _probe_opengl}

if __name__ == "__main__":
    try:
        found = PROBES[sys.argv[1]]()
    except Exception as error:
        sys.exit(describe_error(error))
    sys.stdout.write(f"\n{json.dumps(found)}\n")
