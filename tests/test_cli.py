import subprocess
import sys

import pytest


def clipgs(*arguments, folder=None):
    command = [sys.executable, "-m", "clipgs", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_every_command_shows_an_example():
    from clipgs.operate.operations import OPERATIONS
    from clipgs.stages import STAGES

    listing = clipgs("--help")
    assert listing.returncode == 0
    for each in (*STAGES.values(), *OPERATIONS):
        assert each.name in listing.stdout
    done = clipgs("fit", "--help")
    assert done.returncode == 0
    assert "example: clipgs fit 00000" in done.stdout


def test_every_stage_has_its_function():
    from clipgs.stages import STAGES

    for stage in STAGES.values():
        assert stage.function.__module__ == f"clipgs.{stage.package}.stages"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fit: {step: 3}", "did you mean fit.steps?"),
        ("caption: {captioner: catalogue}", "did you mean catalog?"),
        ("fit: [", "not YAML"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(tmp_path, text, words):
    (tmp_path / "config.yaml").write_text(text)
    done = clipgs("fit", "00000", folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line


def test_wrong_usage_is_exit_code_2():
    assert clipgs("fit").returncode == 2
    assert clipgs("fitt", "00000").returncode == 2
    assert clipgs("fit", "00000", "--threads", "0").returncode == 2


def test_a_missing_input_is_one_line_and_exit_code_1(tmp_path):
    done = clipgs("fit", "00000", folder=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "points/00000.npz is missing; make it again with: snakemake" in line


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text("output: /proc/nowhere\n")
    done = clipgs("freeze", "00000", folder=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_the_configuration_is_printed_whole(tmp_path):
    done = clipgs("config")
    (tmp_path / "config.yaml").write_text(done.stdout)
    assert clipgs("config", folder=tmp_path).stdout == done.stdout
    assert '"Config"' in clipgs("config", "--schema").stdout
