import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from clipgs import cli
from clipgs import config as configuration
from clipgs.config import Teacher
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.operate import checks, converter, doctor
from clipgs.operate.doctor import Check
from tests.meshes.glb_builder import Glb

NAMES = [
    *("Python", "torch", "torchvision", "CUDA driver", "CUDA in torch", "C compiler"),
    *("CUDA compiler", "gsplat", "OpenGL", "converter", "disk", "cores", "memory"),
]
TORCH = {
    "version": "2.11.0",
    "cuda": "13.0",
    "cuda_error": "",
    "devices": [],
    "torchvision": "0.26.0",
    "torchvision_error": "",
    "extensions": "/nowhere",
}


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of which the test says what its programs answer; every other program is absent."""
    commands = tmp_path / "bin"
    commands.mkdir()
    monkeypatch.setenv("PATH", str(commands))
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: which(Path(name).name))

    def answer(smi: str = "", nvcc: str = "", opengl: str = "llvmpipe (LLVM 15)", **torch: object) -> dict[str, Check]:
        if smi:
            program(commands / "nvidia-smi", smi)
        if nvcc:
            program(commands / "nvcc", nvcc)
        cases = [
            f"torch) echo noise; echo '{json.dumps(TORCH | torch)}' ;;",
            f"opengl) echo '{json.dumps({'renderer': opengl})}' ;;",
            "*) echo 'OSError: libcuda.so.1' >&2; exit 1 ;;",
        ]
        python = program(tmp_path / "python", "\n".join(['case "$3" in', *cases, "esac"]))
        monkeypatch.setattr(sys, "executable", python)
        return {check.name: check for check in doctor.doctor(tmp_path)}

    return answer


def test_this_machine_is_looked_at_for_real(tmp_path):
    checks = {check.name: check for check in doctor.doctor(tmp_path / "not" / "yet")}

    assert list(checks) == NAMES
    import torch
    import torchvision

    assert checks["torch"].found == torch.__version__
    assert checks["torchvision"].found == torchvision.__version__
    assert checks["Python"].status == "ok"
    assert (checks["CUDA in torch"].status == "ok") == torch.cuda.is_available()
    assert checks["OpenGL"].status != "missing", checks["OpenGL"]
    assert "frame was drawn by" in checks["OpenGL"].found
    assert checks["disk"].found.endswith(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "status", "words"),
    [
        ({"teacher": {"name": "train"}}, "ok", "all names and files are there"),
        ({"encoder": {"initialisation": "uni3d", "weights": "gone.pt"}}, "missing", "gone.pt does not exist"),
        ({"teacher": {"name": "ViT-B-32", "pretrained": "gone.pt"}}, "ok", "all other names"),  # it is the row above
        ({"catalog": {"source": "folder"}}, "note", "could not be checked: UsageError"),
    ],
)
def test_what_the_configuration_names_is_looked_for(tmp_path, monkeypatch, settings, status, words):
    monkeypatch.setattr(doctor, "_probe", lambda name: {"error": "not asked"})
    base = {"output": str(tmp_path), "teacher": {"name": "train"}}
    *_, found = doctor.doctor(tmp_path, configuration.check(configuration.merge(base, settings)))
    assert (found.name, found.status) == ("settings", status)
    assert words in found.found


@pytest.mark.parametrize(
    ("teacher", "status", "words"),
    [
        ({"name": "train"}, "ok", "a small one is trained"),
        ({"name": "ViT-B-16-SigLIP", "pretrained": "webli"}, "note", "not here: the tokenizer (timm/ViT-B-16-SigLIP)"),
        ({"name": "ViT-B-16-SigLIP", "pretrained": "webli"}, "note", "not here: the weights of ViT-B-16-SigLIP webli"),
        ({"name": "roberta-ViT-B-32", "pretrained": "laion2b_s12b_b32k"}, "note", "the text tower (roberta-base)"),
        ({"name": "ViT-B-32", "pretrained": "w.pt"}, "ok", "weights in w.pt; pictures prepared as {mean: [0.48145466"),
        ({"name": "ViT-S-32", "pretrained": "w.pt"}, "missing", "state it in teacher.preprocess"),
        ({"name": "ViT-B-16-SigLIP", "pretrained": "w.pt", "tokenizer": "tokens"}, "ok", "the tokenizer in tokens"),
    ],
)
def test_what_a_teacher_needs_is_looked_for(tmp_path, monkeypatch, teacher, status, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "_probe", lambda name: {"error": "not asked"})
    (tmp_path / "w.pt").touch()
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokenizer.json").touch()
    *_, found, _ = doctor.doctor(tmp_path, configuration.check({"output": str(tmp_path), "teacher": teacher}))
    assert (found.name, found.status) == ("teacher", status)
    assert words in found.found


def test_weights_of_another_model_are_seen(tmp_path, monkeypatch):
    """By the header of the file: loading billions of numbers to find out would take minutes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_probe", lambda name: {"error": "not asked"})

    def told(**shapes):
        tensors = {name.replace("/", "."): np.zeros(shape, np.float16) for name, shape in shapes.items()}
        save_file(tensors, "w.safetensors")
        teacher = {"name": "ViT-B-32", "pretrained": "w.safetensors"}
        *_, found, _ = doctor.doctor(tmp_path, configuration.check({"output": str(tmp_path), "teacher": teacher}))
        return found

    right = {"visual/conv1/weight": (768, 3, 32, 32), "token_embedding/weight": (49408, 512)}
    assert told(**right).status == "ok"
    assert told(**{f"module/{name}": shape for name, shape in right.items()}).status == "ok"
    large = told(**right | {"visual/conv1/weight": (1024, 3, 14, 14)})
    assert large.status == "missing"
    assert "has visual.conv1.weight of 1024 x 3 x 14 x 14, and ViT-B-32 has 768 x 3 x 32 x 32" in large.found
    assert "has no token_embedding.weight" in told(**{"visual/conv1/weight": (768, 3, 32, 32)}).found
    Path("w.safetensors").write_text("version https://git-lfs")
    with pytest.raises(UsageError, match=r"teacher: w\.safetensors cannot be read"):  # before any job, too
        checks._available("teacher", Teacher(name="ViT-B-32", pretrained="w.safetensors"), None)


def test_a_machine_without_a_gpu_lacks_nothing(machine):
    checks = machine()

    assert {name for name, check in checks.items() if check.status == "missing"} == set()
    assert checks["CUDA driver"].status == "note"
    assert "no nvcc" in checks["CUDA compiler"].found
    assert "build-essential" in checks["C compiler"].remedy


def test_a_gpu_that_torch_cannot_use_is_a_gap(machine):
    checks = machine(smi="echo 'NVIDIA H200, 143771 MiB, 580.1'", cuda_error="The NVIDIA driver is too old")

    assert checks["CUDA driver"] == Check("CUDA driver", "ok", "NVIDIA H200, 143771 MiB, 580.1")
    assert checks["CUDA in torch"].status == "missing"
    assert "driver is too old" in checks["CUDA in torch"].found
    assert "13.0" in checks["CUDA in torch"].remedy
    assert checks["OpenGL"].status == "note"  # drawn on the CPU though there is a GPU


def test_a_cpu_only_torch_beside_a_gpu_is_a_gap(machine):
    checks = machine(smi="echo 'NVIDIA H200, 143771 MiB, 580.1'", cuda=None)

    assert checks["CUDA in torch"].status == "missing"
    assert "torch torchvision" in checks["CUDA in torch"].remedy


def test_a_torch_and_torchvision_that_are_no_pair_are_a_gap(machine):
    checks = machine(torchvision_error="RuntimeError: operator torchvision::nms does not exist")

    assert checks["torchvision"].status == "missing"
    assert "nms" in checks["torchvision"].found
    assert "torch torchvision" in checks["torchvision"].remedy


def test_a_toolkit_of_another_major_version_is_noted(machine):
    checks = machine(nvcc="echo 'Cuda compilation tools, release 12.4, V12.4.131'")

    assert checks["CUDA compiler"].status == "note"
    assert "12.4" in checks["CUDA compiler"].found
    assert "13.0" in checks["CUDA compiler"].remedy


def test_a_toolkit_of_the_same_major_version_is_well(machine):
    assert machine(nvcc="echo 'Cuda compilation tools, release 13.2, V1'")["CUDA compiler"].status == "ok"


def test_a_driver_that_fails_is_a_row(machine):
    checks = machine(smi="echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")

    assert checks["CUDA driver"].status == "note"
    assert "version mismatch" in checks["CUDA driver"].found


def test_a_driver_that_hangs_is_a_row(machine, monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    checks = machine(smi="exec /bin/sleep 60")

    assert checks["CUDA driver"].status == "note"
    assert "timed out" in checks["CUDA driver"].found


@pytest.mark.parametrize(
    ("python", "found"),
    [
        ("kill -SEGV $$", "signal 11"),
        ("exec /bin/sleep 60", "no answer within"),
        ("echo 'ImportError: libGL.so.1' >&2; exit 1", "libGL.so.1"),
        ("exit 3", "exit code 3"),
        ("true", "IndexError"),
    ],
)
def test_whatever_a_probe_does_the_doctor_goes_on(tmp_path, monkeypatch, python, found):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", python))
    checks = {check.name: check for check in doctor.doctor(tmp_path)}

    assert list(checks) == NAMES
    assert checks["torch"].status == "missing"
    assert found in checks["torch"].found
    assert checks["OpenGL"].status in ("missing", "note")
    assert found in checks["OpenGL"].found


def test_the_report_has_a_line_a_check_and_one_a_remedy():
    text = doctor.format([Check("disk", "ok", "72 GiB free"), Check("OpenGL", "missing", "none", "apt-get it")])

    assert text.splitlines() == [
        "ok       disk    72 GiB free",
        "missing  OpenGL  none",
        "                 -> apt-get it",
    ]


# --- the converter ---


@pytest.fixture
def python313(tmp_path, monkeypatch):
    """A Python 3.13 whose environments install a library and convert as the test says; else each works."""
    monkeypatch.setenv("CLIPGS_CONVERTER", str(tmp_path / "converter"))
    glb = Glb()
    glb.node(glb.mesh())
    cube = glb.save(tmp_path / "cube.glb")

    def make(pip: str = "true", convert: str = f'cp {cube} "$8"', version: str = converter.PYTHON) -> Path:
        library = f'"$(dirname "$0")/../lib/python3.13/site-packages/bpy-{converter.BLENDER}.dist-info"'
        of_environment = [
            'case "$2" in',
            f"pip) {pip} || exit 1; mkdir -p {library} ;;",
            '-c) echo > "$4" ;;',  # the library writes a file
            f"*) {convert} ;;",
            "esac",
        ]
        own = program(tmp_path / "of_environment", "\n".join(of_environment))
        cases = [
            'case "$2" in',
            f"-c) echo {version} ;;",
            f'venv) mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp {own} "$3/bin/python" ;;',
            "esac",
        ]
        return Path(program(tmp_path / "python3.13", "\n".join(cases)))

    return make


def row() -> Check:
    return Check("converter", *doctor._converter())


def test_the_converter_is_installed_tried_and_replaced(tmp_path, python313):
    assert (row().status, row().remedy) == ("note", "clipgs doctor --install-converter")
    folder = tmp_path / "converter"
    for _ in range(2):
        assert str(folder) in converter.install(python313())
        assert row() == Check("converter", "ok", f"Blender {converter.BLENDER} ({folder})")
        assert sorted(path.name for path in folder.iterdir()) == ["bin", "lib", "pyvenv.cfg"]
        assert not list(tmp_path.glob(".converter*"))
        assert folder.stat().st_mode & 0o777 == 0o755
    (library,) = folder.rglob("*.dist-info")
    library.rename(library.with_name("bpy-4.2.0.dist-info"))
    assert row().status == "note"
    assert row().found.startswith("Blender 4.2.0")


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (
            {"pip": "(echo 'ERROR: No matching distribution' >&2; echo more >&2; false)"},
            "pip failed: ERROR: No matching",
        ),
        ({"convert": "kill -SEGV $$"}, "does not read a test file: the converter was ended by SIGSEGV"),
    ],
)
def test_an_installation_that_fails_leaves_the_older_converter(tmp_path, python313, fails, reason):
    converter.install(python313())
    with pytest.raises(ClipgsError, match=reason):
        converter.install(python313(**fails))
    assert row().status == "ok"
    assert not list(tmp_path.glob(".converter*"))


def test_an_installation_without_the_right_python(tmp_path, python313, monkeypatch):
    with pytest.raises(UsageError, match=r"is version 3\.12"):
        converter.install(python313(version="3.12"))
    with pytest.raises(UsageError, match="does not run"):
        converter.install(tmp_path / "nothing")
    monkeypatch.setattr(converter, "_candidates", lambda: [python313(version="3.12"), tmp_path / "nothing"])
    with pytest.raises(ClipgsError, match=r"no Python 3\.13 with venv was found.*--python"):
        converter.install()
    monkeypatch.setattr(converter, "_candidates", lambda: [tmp_path / "nothing", python313()])
    converter.install()


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path, python313):
    (tmp_path / "converter").mkdir()
    (tmp_path / "converter" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="no environment"):
        converter.install(python313())
    assert (tmp_path / "converter" / "thesis.tex").exists()


def test_the_command_takes_a_python_only_to_install(caplog):
    assert cli.main(["doctor", "--python", "python3.13"]) == 2
    assert "--install-converter" in caplog.text
