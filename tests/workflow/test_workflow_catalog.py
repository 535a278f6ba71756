"""What the Snakemake workflow catalog asks for: https://snakemake.github.io/snakemake-workflow-catalog."""

import subprocess

import yaml


def test_the_files_of_standardised_usage_are_there(checkout):
    usage = yaml.safe_load((checkout / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) <= {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["report"] is True
    assert usage["software-stack-deployment"] == {"conda": True}
    assert (checkout / "config" / "README.md").read_text().startswith("# Configuration\n")
    rules = checkout / "workflow" / "rules"
    assert list(rules.glob("*.smk")) == [file for file in rules.iterdir() if file.suffix == ".smk"]


def test_every_caption_is_used_and_there(checkout):
    captions = {file.name for file in (checkout / "workflow" / "report").iterdir()}
    files = [checkout / "Snakefile", *(checkout / "workflow" / "rules").glob("*.smk")]
    text = "".join(file.read_text() for file in files)
    assert captions
    assert [name for name in captions if f"report/{name}" not in text] == []


def test_the_workflow_folder_has_the_same_workflow(made, checkout):
    command = made.command("-n", "--rerun-triggers", "mtime", "params", "input", "code", "--cores", "1")
    command[command.index(str(checkout / "Snakefile"))] = str(checkout / "workflow" / "Snakefile")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr
