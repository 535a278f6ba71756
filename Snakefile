# From meshes to triplets: `snakemake --cores all triplets`. Settings: config.yaml, overlays in configs/.
from snakemake.utils import min_version

min_version("9.23")


# A job has the configuration that its run was started with, whatever became of the file since.
if workflow.is_main_process:

    configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/catalog.smk"
include: "workflow/rules/meshes.smk"
include: "workflow/rules/splats.smk"
include: "workflow/rules/triplets.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/report.smk"


# Packed triplets of every object, their index and dataset card.
rule triplets:
    default_target: True
    input:
        out("catalog/objects.parquet"),
        # A packed file that was lost is made again: Snakemake misses only what a target names.
        expand(out("triplets/{shard}.tar"), shard=SHARDS),
        out("triplets/index.parquet"),
        out("triplets/README.md"),
    localrule: True


# What the teacher sees in the pictures and reads in the captions of every triplet.
rule features:
    input:
        RUN.all_features(SHARDS),
    localrule: True
