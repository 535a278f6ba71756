# On the triplets of the shards that it began with: new shards train no other teacher, changed ones do.
rule teacher:
    input:
        triplets=expand(out("triplets/{shard}.tar"), shard=RUN.teacher_shards),
        tables=expand(out("triplets/{shard}.parquet"), shard=RUN.teacher_shards),
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
        teacher=RUN.picture_teacher,
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


# On the shards that the run began with: new shards train no other model, changed ones do.
rule train:
    input:
        triplets=expand(out("triplets/{shard}.tar"), shard=RUN.run_shards),
        tables=expand(out("triplets/{shard}.parquet"), shard=RUN.run_shards),
        features=RUN.all_features(RUN.run_shards),
        weights=RUN.first_weights,
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
        settings=RUN.of_train,
    shell:
        "clipgs train --settings {params.settings:q} --threads {threads} --log {log:q}"
