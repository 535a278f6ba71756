from clipgs.training.runs import run_shards

# Those that the run began with: objects that came later do not set off a training that is under way or done.
RUN_SHARDS = run_shards(CONFIG, PLAN.shards)


def run(name):
    """A file of the configured run."""
    return out(f"runs/{CONFIG.training.run}/{name}")


rule train:
    input:
        triplets=ancient(expand(out("triplets/{shard}.tar"), shard=RUN_SHARDS)),
        tables=ancient(expand(out("triplets/{shard}.parquet"), shard=RUN_SHARDS)),
        images=ancient(expand(features("images/{shard}.safetensors"), shard=RUN_SHARDS)),
        texts=ancient(expand(features("texts/{shard}.safetensors"), shard=RUN_SHARDS)),
    output:
        model=run("model.safetensors"),
        config=run("config.yaml"),
        card=run("README.md"),
    log:
        out(f"logs/train/{CONFIG.training.run}.log"),
    benchmark:
        out(f"benchmarks/train/{CONFIG.training.run}.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=16000,
        gpu=TRAIN_GPUS,
    params:
        settings=stage("train"),
    shell:
        "clipgs train --settings {params.settings:q} --threads {threads} --log {log:q}"
