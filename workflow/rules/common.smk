# What all rules share: the checked configuration, the plan of shards, and the words of a command.
import json
import logging
import os
import sys
from pathlib import Path

from clipgs import config as settings
from clipgs.catalog.excluded import excluded_digests
from clipgs.catalog.shards import plan
from clipgs.core.processes import usable_cores
from clipgs.core.devices import visible_gpus
from clipgs.core.errors import ClipgsError
from clipgs.training.runs import run_shards
from clipgs.triplets.captions import listed_digest, located
from clipgs.operate.lock import OutputLock, describe, holder
from clipgs.operate.retry import retries

# Reading the annotations of a large source for the first time takes a while, and says so.
LOG, SPEAKER = logging.getLogger("clipgs"), logging.StreamHandler()
LOG.setLevel(logging.INFO)
if workflow.is_main_process:
    LOG.addHandler(SPEAKER)

# Every job reads the workflow anew. It gets the configuration of its run through the environment, so that editing a
# file while jobs wait in a queue changes nothing of what they were queued for.
FROZEN = None if workflow.is_main_process else os.environ.get("CLIPGS_CONFIG")

try:
    CONFIG = settings.check(json.loads(FROZEN) if FROZEN else config)
    PLAN = plan(CONFIG)
    digest = listed_digest(located(CONFIG))
    EXCLUDED, RETRIES = excluded_digests(CONFIG), retries(CONFIG)
except ClipgsError as error:
    # A WorkflowError would name a line of the Snakefile, which is not where the fault is.
    sys.stderr.write(f"clipgs: {error}\n")
    raise SystemExit(2)
finally:
    LOG.removeHandler(SPEAKER)

if workflow.is_main_process:
    for note in PLAN.notes:
        sys.stderr.write(f"clipgs: note: {note}\n")
    if busy := holder(CONFIG.output_path):
        sys.stderr.write(
            f"clipgs: note: a run works on {CONFIG.output}: {describe(busy)}\n"
        )

# Asked for more cores than there are, Snakemake would start jobs that only wait for each other and fill the memory.
if workflow.local_exec and workflow._cores is not None:
    workflow.register_resource("_cores", min(workflow._cores, usable_cores()))

# What changes no result (places, device, limits) reaches a command here, where no rule depends on it; and the commands
# are those of the Python that runs Snakemake, activated or not.
os.environ |= {
    "CLIPGS_CONFIG": CONFIG.model_dump_json(),
    "CLIPGS_RUNTIME": settings.runtime_settings(CONFIG),
    "PATH": os.pathsep.join(
        [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
    ),
}
CAPTIONS = {"captions": digest} if digest else {}
THREADS = CONFIG.workers.threads or workflow._cores or 1

# Here each fit takes one of the GPUs that there are, drawing shares it, training takes all; --resources gpu=N leaves the
# others alone. On a cluster a job asks for one where the configuration says cuda, and the scheduler chooses.
GPUS = 0
if workflow.local_exec and CONFIG.device != "cpu":
    shown = visible_gpus()
    if "gpu" in workflow.global_resources:
        shown = shown[: workflow.global_resources["gpu"].value]
        os.environ |= {"CUDA_VISIBLE_DEVICES": ",".join(shown)}
    GPUS = len(shown)
if workflow.local_exec and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", GPUS)
ON_CLUSTER = int(CONFIG.device == "cuda" and not workflow.local_exec)
ONE_GPU, RENDER_GPU, TRAIN_GPUS = (
    int(GPUS > 0) or ON_CLUSTER,
    ON_CLUSTER,
    GPUS or ON_CLUSTER,
)
# With several shards a GPU fits one while the last is drawn and the meshes of the next are read. The shares of the cores
# keep these abreast of each other at 256 pixels.
FIT_THREADS = RENDER_THREADS = CPU_THREADS = THREADS
if GPUS and len(PLAN.shards) > 1:
    FIT_THREADS = max(1, THREADS // (5 * GPUS))
    RENDER_THREADS = max(1, THREADS // (5 * GPUS))
    CPU_THREADS = max(1, THREADS - GPUS * (FIT_THREADS + RENDER_THREADS))
ENV = str(Path(workflow.basedir, "envs", "clipgs.yaml"))
GPU_ENV = str(Path(workflow.basedir, "envs", "clipgs-gpu.yaml"))  # with gsplat


wildcard_constraints:
    shard=r"\d+",


HELD = []


def hold_output():
    """Refuses to run beside another run over the same output, from whatever folder or host."""
    try:
        HELD.append(OutputLock(CONFIG.output_path))
    except ClipgsError as error:
        sys.stderr.write(f"clipgs: {error}\n")
        raise SystemExit(1)


def release_output():
    while HELD:
        HELD.pop().release()


def out(name):
    """A file of the output."""
    return os.path.join(CONFIG.output, name)


def passing(name):
    """A file of the output that goes when nothing needs it any more, if the configuration says so."""
    return temp(out(name)) if name.split("/")[0] in CONFIG.temporary else out(name)


RUN = CONFIG.training.run
# Those that the run began with: objects that came later do not set off a training that is under way or done.
RUN_SHARDS = run_shards(CONFIG, PLAN.shards)
SMALL_TEACHER = [
    out("teacher/open_clip_config.json"),
    out("teacher/open_clip_model.safetensors"),
]
TEACHER = SMALL_TEACHER if CONFIG.teacher.name == "train" else CONFIG.teacher.files
PICTURES = settings.PICTURES[CONFIG.teacher.images]


def pictures():
    """The files of a shard's pictures, as the teacher sees them."""
    return [out(f"{PICTURES}/{{shard}}.tar"), out(f"{PICTURES}/{{shard}}.parquet")]


def asked_pictures():
    """The pictures that an evaluation asks with and the teacher has not seen, of every shard, where they are kept."""
    folders = {settings.PICTURES[what] for what in CONFIG.evaluation.pictures}
    return [
        out(f"{folder}/{shard}.tar")
        for folder in sorted(folders - {PICTURES, *CONFIG.temporary})
        for shard in PLAN.shards
    ]


def features(name):
    """A file of the teacher's features."""
    return out(f"features/{CONFIG.teacher.slug}/{name}")


def run(name):
    """A file of the configured run."""
    return out(f"runs/{RUN}/{name}")


def stage(name, **more):
    """What the result of a stage depends on, as one string."""
    return settings.stage_settings(CONFIG, name, **more)


def retried(name):
    """As `stage`, of a stage whose failed objects may be tried again, shard by shard."""

    def of_shard(wildcards):
        count = RETRIES.get(name, {}).get(wildcards.shard)
        return stage(name, **({"retry": str(count)} if count else {}))

    return of_shard


def excluded(shard):
    """What besides its settings decides on a packed shard: the objects that had to leave it, where there are any."""
    return {"excluded": EXCLUDED[shard]} if shard in EXCLUDED else {}
