# Frozen once made, on the triplets of that day: more of them train no other teacher.
rule teacher:
    input:
        triplets=ancient(out("triplets/index.parquet")),
    output:
        teacher=RUN.small_teacher,
        about=out("teacher/teacher.json"),
        card=out("teacher/README.md"),
    log:
        out("logs/teacher.log"),
    benchmark:
        out("benchmarks/teacher.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of("teacher"),
    shell:
        "clipgs teacher --settings {params.settings:q} --threads {threads} --log {log:q}"


rule embed_images:
    input:
        teacher=RUN.teacher,
        pictures=RUN.pictures,
    output:
        features("images/{shard}.safetensors"),
    log:
        out("logs/embed_images/{shard}.log"),
    benchmark:
        out("benchmarks/embed_images/{shard}.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.gpu_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of("embed-images"),
    shell:
        "clipgs embed-images {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule embed_texts:
    input:
        teacher=RUN.teacher,
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
    threads: RESOURCES.gpu_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of("embed-texts"),
    shell:
        "clipgs embed-texts {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule train:
    input:
        triplets=RUN.of_training(
            expand(out("triplets/{shard}.tar"), shard=RUN.run_shards)
        ),
        tables=RUN.of_training(
            expand(out("triplets/{shard}.parquet"), shard=RUN.run_shards)
        ),
        features=RUN.of_training(RUN.all_features(RUN.run_shards)),
    output:
        model=RUN.of_run("model.safetensors"),
        config=RUN.of_run("config.yaml"),
        card=RUN.of_run("README.md"),
    log:
        out(f"logs/train/{CONFIG.training.run}.log"),
    benchmark:
        out(f"benchmarks/train/{CONFIG.training.run}.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.threads
    resources:
        mem_mb=16000,
        gpu=RESOURCES.train_gpus,
    params:
        settings=RUN.of("train"),
    shell:
        "clipgs train --settings {params.settings:q} --threads {threads} --log {log:q}"
