# Frozen once made, on the triplets of that day: more of them train no other teacher.
rule teacher:
    input:
        triplets=ancient(out("triplets/index.parquet")),
    output:
        teacher=SMALL_TEACHER,
        about=out("teacher/teacher.json"),
        card=out("teacher/README.md"),
    log:
        out("logs/teacher.log"),
    benchmark:
        out("benchmarks/teacher.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
        gpu=ONE_GPU,
    params:
        settings=stage("teacher"),
    shell:
        "clipgs teacher --settings {params.settings:q} --threads {threads} --log {log:q}"


rule embed_images:
    input:
        teacher=TEACHER,
        pictures=pictures(),
    output:
        features("images/{shard}.safetensors"),
    log:
        out("logs/embed_images/{shard}.log"),
    benchmark:
        out("benchmarks/embed_images/{shard}.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
        gpu=ONE_GPU,
    params:
        settings=stage("embed-images"),
    shell:
        "clipgs embed-images {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule embed_texts:
    input:
        teacher=TEACHER,
        images=features("images/{shard}.safetensors"),
        captions=out("triplets/{shard}.parquet"),
    output:
        features("texts/{shard}.safetensors"),
    log:
        out("logs/embed_texts/{shard}.log"),
    benchmark:
        out("benchmarks/embed_texts/{shard}.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
        gpu=ONE_GPU,
    params:
        settings=stage("embed-texts"),
    shell:
        "clipgs embed-texts {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


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
        out(f"logs/train/{RUN}.log"),
    benchmark:
        out(f"benchmarks/train/{RUN}.tsv")
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
