"""Runs on a real SLURM of one node, with all that goes wrong on a cluster, end with an undisturbed run's bytes.

The node is started here (start-slurm.sh): two partitions, two pretended GPUs. It takes root, and packages of Debian or
Ubuntu, which are installed where they are missing.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from clipgs import config as configuration
from clipgs.core.bundles import read_table
from clipgs.operate.submit import job_prefix
from clipgs.training import runs
from tests.training import small_dataset
from tests.workflow.conftest import SETTINGS, Workspace

HERE = Path(__file__).resolve().parent
SECONDS = 480 * float(os.environ.get("CLIPGS_PATIENCE", "1"))  # more where others use the machine
CLIPGS = [sys.executable, "-m", "clipgs"]
TWO_SHARDS = configuration.merge(SETTINGS, {"catalog": {"shard_objects": 4}})
TRIPLETS = ("00000.tar", "00001.tar", "00000.parquet", "00001.parquet", "index.parquet", "README.md")
FIT_STEPS = 2000  # of an object that takes seconds, so that a job can be killed between two
TRAINING = {"training": {"epochs": 12}, "encoder": {"batch_norm": "sync"}}  # three steps an epoch


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Starts the cluster; gives a function that starts again what was killed."""
    if os.geteuid() != 0:
        pytest.skip("a SLURM of its own needs root")
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None and shutil.which("apt-get") is None:
        pytest.skip("SLURM is not installed, and there is no apt-get to install it with")
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra `slurm` is not installed")
    folder = tmp_path_factory.mktemp("slurm")

    def start():
        subprocess.run([HERE / "start-slurm.sh", folder], check=True, capture_output=True, timeout=300)

    start.folder = folder
    try:
        start()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"SLURM does not start here: {error.stderr.decode()[-500:]}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        patch.setenv("PATH", f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
        yield start
    subprocess.run([HERE / "stop-slurm.sh", folder], check=True, timeout=60)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, checkout):
    """A workspace of two shards, made without the cluster."""
    workspace = Workspace(tmp_path_factory.mktemp("local") / "workspace", checkout)
    workspace.folder.mkdir()
    workspace.write_config(TWO_SHARDS)
    workspace.add_objects(8)
    workspace.make()
    return workspace


def profile(checkout, folder):
    """The published profile on this cluster: its account, little memory and time, quick polling."""
    settings = yaml.safe_load((checkout / "profiles" / "slurm" / "config.yaml").read_text())
    settings["default-resources"] |= {"slurm_account": "test", "mem_mb": "1500 * attempt", "runtime": 10}
    for resources in settings["set-resources"].values():
        resources |= {"mem_mb": "1500 * attempt", "runtime": 10}
    # A fit takes more than this at first, and is killed for it.
    settings["set-resources"]["fit"]["mem_mb"] = "450 if attempt == 1 else 4000"
    settings["set-threads"] = dict.fromkeys(settings["set-threads"], 1)
    settings |= {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 5, "retries": 3}
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def squeue(*arguments):
    return subprocess.run(["squeue", "-h", *arguments], capture_output=True, text=True, check=True).stdout


def queued(state):
    """Stage to the id of one of its jobs that is in this state."""
    return {stage: number for number, stage in re.findall(r"(\d+) rule_([a-z]+)", squeue("-t", state, "-o", "%A %k"))}


class Run:
    """`clipgs submit`, watched."""

    def __init__(self, workspace, folder):
        self.command = [sys.executable, "-m", "clipgs", "submit", "--profile", str(folder)]
        self.command += ["--snakefile", str(workspace.checkout / "Snakefile")]
        self.workspace, self.log = workspace, workspace.folder / "submit.log"
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, cwd=self.workspace.folder, stdout=log, stderr=log)

    def until(self, condition, deadline):
        while not (found := condition()):
            assert time.monotonic() < deadline, f"too late:\n{self.text()[-4000:]}"
            assert self.process.poll() is None, f"ended too early:\n{self.text()[-4000:]}"
            time.sleep(0.3)
        return found

    def text(self):
        """What the runs showed, and Snakemake's own text."""
        logs = (self.workspace.folder / ".snakemake" / "log").glob("*.snakemake.log")
        return "".join(file.read_text(errors="replace") for file in (self.log, *sorted(logs)))


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_every_disturbance_in_one_run_and_the_bytes_of_an_undisturbed_one(slurm, undisturbed, tmp_path, checkout):
    disturbed = Workspace(tmp_path / "cluster", checkout)
    disturbed.folder.mkdir()
    disturbed.write_config(TWO_SHARDS)
    disturbed.add_objects(8)

    deadline = time.monotonic() + SECONDS
    run = Run(disturbed, profile(checkout, tmp_path / "profile"))

    # A second run over the output is refused, and names the first.
    run.until(lambda: queued("running"), deadline)
    second = subprocess.run(run.command, cwd=disturbed.folder, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert f"in use by another run (root on {os.uname().nodename}, process {run.process.pid}" in second.stderr

    # The configuration is edited while jobs wait: they do what they were submitted for.
    (disturbed.folder / "config.yaml").write_text(yaml.safe_dump(TWO_SHARDS | {"views": {"pixels": 24}, "seed": 7}))

    # The node's daemon dies with jobs under it, and comes back.
    run.until(lambda: "sample" in queued("running"), deadline)
    daemon = int((slurm.folder / "run" / "slurmd.pid").read_text())
    os.kill(daemon, signal.SIGKILL)
    time.sleep(2)
    slurm()

    # An administrator cancels a job.
    subprocess.run(["scancel", run.until(lambda: queued("running").get("view"), deadline)], check=True)

    # The run itself is killed while a job that has come to its second attempt is at work; then started again.
    run.until(lambda: "fit" in queued("running") and run.text().count("is tried again") >= 2, deadline)
    run.process.kill()
    run.process.wait()
    left = queued("running")
    assert left, "no job outlived the run that was killed"
    disturbed.write_config(TWO_SHARDS)
    run.start()
    run.process.wait(deadline - time.monotonic())
    text = run.text()
    assert run.process.returncode == 0, text[-4000:]
    assert re.search(r"cancelling \d+ jobs that an earlier run left in the queue", text)
    assert "removing the lock of a run that was killed" in text
    assert not squeue()

    for name in TRIPLETS:
        ours, theirs = (workspace.output / "triplets" / name for workspace in (disturbed, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert disturbed.planned() == {}
    assert not [file for file in disturbed.output.rglob("*") if file.name.endswith((".part", ".damaged"))]
    assert not [file for file in (disturbed.output / "work").rglob("*") if file.is_file()]
    logs = "".join(file.read_text(errors="replace") for file in disturbed.folder.glob(".snakemake/slurm_logs/**/*.log"))
    assert "exceeded memory limit" in logs
    own = "".join(file.read_text(errors="replace") for file in disturbed.folder.glob(".snakemake/log/*.log"))
    assert f"SLURM run ID: {job_prefix(disturbed.output)}_" in own


@pytest.mark.slow
@pytest.mark.timeout(2 * SECONDS)
def test_an_array_of_fits_is_killed_in_part_and_an_object_leaves(slurm, undisturbed, tmp_path, checkout):
    """The rerun fits what was not fitted, packs without the object, and has the bytes of an undisturbed run.

    What the splats replace is there: Snakemake removed the killed member's files, and does not miss them by itself.
    """
    disturbed, alone = (undisturbed.copy(tmp_path / name) for name in ("cluster", "local"))
    shutil.rmtree(disturbed.folder / ".snakemake" / "log")
    for workspace in (disturbed, alone):  # of the same views
        workspace.write_config(configuration.merge(TWO_SHARDS, {"fit": {"steps": FIT_STEPS}}))

    deadline = time.monotonic() + SECONDS
    arrays = profile(checkout, tmp_path / "profile")
    changed = yaml.safe_load((arrays / "config.yaml").read_text())
    changed["set-resources"]["fit"]["mem_mb"] = 4000
    changed |= {"slurm-array-jobs": "fit", "retries": 0}
    (arrays / "config.yaml").write_text(yaml.safe_dump(changed))
    run = Run(disturbed, arrays)

    # A member of the array is killed once it has fitted some of its four objects. An object of the other one leaves.
    run.until(lambda: "Submitted array job" in run.text(), deadline)
    members = re.search(r"with Snakemake IDs ([\d,]+) and SLURM job ID (\d+)", run.text())
    ids, array = members[1].split(","), members[2]
    shards = dict(re.findall(r"    jobid: (\d+)\n(?:    (?!jobid).*\n)*    wildcards: shard=(\d+)", run.text()))
    other, victim = (shards[each] for each in ids)
    leaving, *_ = (row["uid"] for row in read_table(disturbed.output / "catalog" / "shards" / f"{other}.parquet"))
    run.until(lambda: any((disturbed.output / "work" / "fit" / victim).glob("*.tar")), deadline)
    subprocess.run(["scancel", f"{array}_2"], check=True)
    exclude = [*CLIPGS, "exclude", leaving, "--reason", "a takedown"]
    subprocess.run(exclude, cwd=disturbed.folder, check=True)
    run.process.wait(deadline - time.monotonic())
    assert run.process.returncode == 1, run.text()[-4000:]  # and says so
    assert not squeue()
    assert not (disturbed.output / "splats" / f"{victim}.tar").exists()

    # Not as an array: the plugin takes a member that ends before the first one for failed (profiles/slurm-arrays).
    del changed["slurm-array-jobs"]
    (arrays / "config.yaml").write_text(yaml.safe_dump(changed))
    run.start()
    run.process.wait(deadline - time.monotonic())
    assert run.process.returncode == 0, run.text()[-4000:]
    log = (disturbed.output / "logs" / "fit" / f"{victim}.log").read_text()
    assert re.search(r"[123] of 4 objects are done already", log), log

    subprocess.run(exclude, cwd=alone.folder, check=True)
    alone.make()
    for name in TRIPLETS:
        ours, theirs = (workspace.output / "triplets" / name for workspace in (disturbed, alone))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert leaving.encode() not in (disturbed.output / "triplets" / f"{other}.tar").read_bytes()
    assert disturbed.planned() == {}
    assert not [file for file in (disturbed.output / "work").rglob("*") if file.is_file()]


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_a_training_of_two_processes_is_killed_and_goes_on(slurm, tmp_path, checkout, monkeypatch):
    """`train.sbatch` on the node's two pretended GPUs; the processes compute on the CPU."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    disturbed, undisturbed = (small_dataset.settings(tmp_path / name, **TRAINING) for name in ("cluster", "local"))
    small_dataset.make(disturbed)
    shutil.copytree(disturbed.output_path, undisturbed.output_path)
    deadline = time.monotonic() + SECONDS
    log, state = tmp_path / "train.log", runs.run_path(disturbed) / "state"
    job = ["sbatch", "--parsable", "--account=test", "--nodes=1", "--gpus-per-node=2", "--cpus-per-task=2"]
    job += ["--mem=4000", f"--output={log}", str(checkout / "profiles" / "slurm" / "train.sbatch")]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(disturbed.model_dump(mode="json")))

    def submit():
        return subprocess.check_output([*job, str(tmp_path / "run.yaml")], text=True).strip().split(";")[0]

    def wait_until(condition):
        while not (found := condition()):
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-4000:]
            time.sleep(0.1)
        return found

    number = submit()
    wait_until(lambda: any(state.glob("step-*")))
    assert "gpu:2" in squeue("-j", number, "-o", "%b")
    subprocess.run(["scancel", number], check=True)
    wait_until(lambda: not squeue("-j", number))
    kept = max(int(file.stem.removeprefix("step-")) for file in state.glob("step-*"))
    steps = TRAINING["training"]["epochs"] * 3
    assert 0 < kept < steps
    assert not (state.parent / "model.safetensors").exists()

    submit()
    wait_until(lambda: not squeue())
    text = log.read_text(errors="replace")
    assert (state.parent / "model.safetensors").exists(), text[-4000:]
    assert re.search(rf"after step {kept} of {steps}", text), text[-4000:]

    file = tmp_path / "local.yaml"
    file.write_text(yaml.safe_dump(undisturbed.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, *CLIPGS[1:], "train", "--config", str(file)], check=True, timeout=SECONDS)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (state.parent / name).read_bytes() == (runs.run_path(undisturbed) / name).read_bytes(), name


def test_submit_needs_a_profile_that_is_filled_in(tmp_path, checkout):
    workspace = Workspace(tmp_path, checkout)
    workspace.write_config()
    command = [sys.executable, "-m", "clipgs", "submit", "--snakefile", str(checkout / "Snakefile")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "set slurm_account" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_profiles_hold_what_snakemake_knows(checkout):
    """squeue tells the jobs; and no rule has retries of its own: the Snakemake in a job would obey them."""
    for name in ("slurm", "slurm-arrays"):
        text = (checkout / "profiles" / name / "config.yaml").read_text()
        assert yaml.safe_load(text)["slurm-status-command"] == "squeue"
    rules = "".join(file.read_text() for file in (checkout / "workflow" / "rules").glob("*.smk"))
    assert "retries:" not in rules
