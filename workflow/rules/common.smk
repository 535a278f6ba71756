# What all rules share. The logic is clipgs.workflow, which has tests of its own.
import os

from clipgs import workflow as clipgs_workflow

RUN, RESOURCES = clipgs_workflow.start(workflow, config)
CONFIG, SHARDS = RUN.config, RUN.shards
out, features = RUN.out, RUN.features
# From the rules' own files, which another workflow may import.
ENV = "../../envs/clipgs.yaml"
GPU_ENV = "../../envs/clipgs-gpu.yaml"  # with gsplat


wildcard_constraints:
    shard=r"\d+",


def passing(name):
    """A file of the output that goes when nothing needs it any more, if the configuration says so."""
    return temp(out(name)) if name.split("/")[0] in CONFIG.temporary else out(name)
