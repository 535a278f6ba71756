# What all rules share: the checked configuration, the plan of shards, and the words of a command.
import logging
import os
import sys
from pathlib import Path

from clipgs import config as settings
from clipgs.catalog.shards import plan
from clipgs.cores import usable_cores
from clipgs.storage import ClipgsError
from clipgs.triplets.captions import listed_digest, located

# Reading the annotations of a large source for the first time takes a while, and says so.
LOG, SPEAKER = logging.getLogger("clipgs"), logging.StreamHandler()
LOG.setLevel(logging.INFO)
if workflow.is_main_process:
    LOG.addHandler(SPEAKER)

try:
    CONFIG = settings.check(config)
    PLAN = plan(CONFIG)
    digest = listed_digest(located(CONFIG))
except ClipgsError as error:
    # A WorkflowError would name a line of the Snakefile, which is not where the fault is.
    sys.stderr.write(f"clipgs: {error}\n")
    raise SystemExit(2)
finally:
    LOG.removeHandler(SPEAKER)

if workflow.is_main_process:
    for note in PLAN.notes:
        sys.stderr.write(f"clipgs: note: {note}\n")

# Asked for more cores than there are, Snakemake would start jobs that only wait for each other and fill the memory.
if workflow.local_exec and workflow._cores is not None:
    workflow.register_resource("_cores", min(workflow._cores, usable_cores()))

# What changes no result (places, device, limits) reaches a command here, where no rule depends on it; and the commands
# are those of the Python that runs Snakemake, activated or not.
os.environ |= {
    "CLIPGS_RUNTIME": settings.runtime_settings(CONFIG),
    "PATH": os.pathsep.join(
        [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
    ),
}
CAPTIONS = {"captions": digest} if digest else {}
THREADS = CONFIG.workers.threads or workflow._cores or 1
ENV = str(Path(workflow.basedir, "envs", "clipgs.yaml"))
GPU_ENV = str(Path(workflow.basedir, "envs", "clipgs-gpu.yaml"))  # with gsplat


wildcard_constraints:
    shard=r"\d+",


def out(name):
    """A file of the output."""
    return os.path.join(CONFIG.output, name)


def passing(name):
    """A file of the output that goes when nothing needs it any more, if the configuration says so."""
    return temp(out(name)) if name.split("/")[0] in CONFIG.temporary else out(name)


SMALL_TEACHER = [
    out("teacher/open_clip_config.json"),
    out("teacher/open_clip_model.safetensors"),
]
TEACHER = SMALL_TEACHER if CONFIG.teacher.name == "train" else CONFIG.teacher.files
PICTURES = {"splats": "renders", "meshes": "views"}[CONFIG.teacher.images]


def pictures():
    """The files of a shard's pictures, as the teacher sees them."""
    return [out(f"{PICTURES}/{{shard}}.tar"), out(f"{PICTURES}/{{shard}}.parquet")]


def features(name):
    """A file of the teacher's features."""
    return out(f"features/{CONFIG.teacher.slug}/{name}")


def stage(name, **more):
    """What the result of a stage depends on, as one string."""
    return settings.stage_settings(CONFIG, name, **more)
