TABLES = expand(
    RUN.of_evaluation("{table}.json"),
    table=["gallery", "retrieval", "zeroshot", "fewshot"],
)


rule embed_shapes:
    input:
        model=RUN.of_run("model.safetensors"),
        index=out("triplets/index.parquet"),
        triplets=expand(out("triplets/{shard}.tar"), shard=SHARDS),
    output:
        embeddings=RUN.of_evaluation("embeddings.safetensors"),
    log:
        out("logs/embed_shapes.log"),
    benchmark:
        out("benchmarks/embed_shapes.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of("embed-shapes"),
    shell:
        "clipgs embed-shapes --settings {params.settings:q} --log {log:q}"


rule evaluate:
    input:
        embeddings=RUN.of_evaluation("embeddings.safetensors"),
        index=out("triplets/index.parquet"),
        features=RUN.all_features(SHARDS),
        teacher=RUN.teacher,
        pictures=RUN.asked_pictures,
        lists=RUN.lists,
    output:
        TABLES,
    log:
        out("logs/evaluate.log"),
    benchmark:
        out("benchmarks/evaluate.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of("evaluate"),
    shell:
        "clipgs evaluate --settings {params.settings:q} --threads {threads} --log {log:q}"


# The configured run beside other people's models, where their files are named, and published numbers.
rule baselines:
    input:
        TABLES,
        RUN.lists,
        RUN.baselines,
    output:
        table=out("evaluation/baselines.json"),
    log:
        out("logs/baselines.log"),
    benchmark:
        out("benchmarks/baselines.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.threads
    resources:
        mem_mb=16000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of("baselines"),
    shell:
        "clipgs baselines --settings {params.settings:q} --log {log:q}"


# What the rows of an ablation start from where there is no checkpoint of Uni3D: a point encoder of our own.
rule ablation_points:
    input:
        # Temporary points are sampled again: were they an input, all that is made of them would follow.
        points=out(
            "meshes/{shard}.parquet"
            if "points" in CONFIG.temporary
            else "points/{shard}.npz"
        ),
        triplets=out("triplets/{shard}.parquet"),
    output:
        triplets=out("ablations/points/triplets/{shard}.tar"),
        table=out("ablations/points/triplets/{shard}.parquet"),
    log:
        out("logs/ablation_points/{shard}.log"),
    benchmark:
        out("benchmarks/ablation_points/{shard}.tsv")
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=4000,
    params:
        settings=RUN.of_shard("ablation-points"),
    shell:
        "clipgs ablation-points {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule ablation_start:
    input:
        triplets=lambda wildcards: expand(
            out("ablations/points/triplets/{shard}.tar"),
            shard=RUN.shards_of_row(wildcards),
        ),
        features=lambda wildcards: RUN.all_features(RUN.shards_of_row(wildcards)),
    output:
        model=out("ablations/points/runs/points-s{seed}/model.safetensors"),
        config=out("ablations/points/runs/points-s{seed}/config.yaml"),
    log:
        out("logs/ablation_start/{seed}.log"),
    benchmark:
        out("benchmarks/ablation_start/{seed}.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.gpu_threads
    resources:
        mem_mb=16000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of_row("ablation-start"),
    shell:
        "clipgs ablation-start {wildcards.seed} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule ablation_train:
    input:
        start=RUN.start_of,
        triplets=lambda wildcards: expand(
            out("triplets/{shard}.tar"), shard=RUN.shards_of_row(wildcards)
        ),
        features=lambda wildcards: RUN.all_features(RUN.shards_of_row(wildcards)),
    output:
        model=out("runs/ablation-{row}-s{seed}/model.safetensors"),
        config=out("runs/ablation-{row}-s{seed}/config.yaml"),
    log:
        out("logs/ablation_train/{row}-s{seed}.log"),
    benchmark:
        out("benchmarks/ablation_train/{row}-s{seed}.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.gpu_threads
    resources:
        mem_mb=16000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of_row("ablation-train"),
    shell:
        "clipgs ablation-train {wildcards.row} {wildcards.seed} "
        "--settings {params.settings:q} --threads {threads} --log {log:q}"


rule ablation_evaluate:
    input:
        model=RUN.trained_row,
        index=out("triplets/index.parquet"),
        triplets=expand(out("triplets/{shard}.tar"), shard=SHARDS),
        features=RUN.all_features(SHARDS),
        teacher=RUN.teacher,
        lists=RUN.lists,
    output:
        tables=expand(
            out("evaluation/ablation-{{row}}-s{{seed}}/{table}.json"),
            table=["gallery", "retrieval", "zeroshot", "fewshot"],
        ),
        embeddings=out("evaluation/ablation-{row}-s{seed}/embeddings.safetensors"),
    log:
        out("logs/ablation_evaluate/{row}-s{seed}.log"),
    benchmark:
        out("benchmarks/ablation_evaluate/{row}-s{seed}.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.gpu_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of_row("ablation-evaluate"),
    shell:
        "clipgs ablation-evaluate {wildcards.row} {wildcards.seed} "
        "--settings {params.settings:q} --threads {threads} --log {log:q}"


# Runs that differ in one thing, over several seeds: one table.
rule ablations:
    input:
        rows=expand(
            out("evaluation/{row}/{table}"),
            row=RUN.ablation_rows,
            table=["embeddings.safetensors", "retrieval.json", "zeroshot.json"],
        ),
        index=out("triplets/index.parquet"),
        features=RUN.all_features(SHARDS),
    output:
        table=RUN.ablations,
    log:
        out("logs/ablations.log"),
    benchmark:
        out("benchmarks/ablations.tsv")
    conda:
        GPU_ENV
    threads: 1
    resources:
        mem_mb=16000,
    params:
        settings=RUN.of("ablations"),
    shell:
        "clipgs ablations --settings {params.settings:q} --log {log:q}"
