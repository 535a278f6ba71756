TABLES = expand(
    out(f"evaluation/{RUN}/{{table}}.json"),
    table=["gallery", "retrieval", "zeroshot", "fewshot"],
)
ALL_FEATURES = expand(
    features("{kind}/{shard}.safetensors"),
    kind=("images", "texts"),
    shard=PLAN.shards,
)


rule embed_shapes:
    input:
        model=run("model.safetensors"),
        index=out("triplets/index.parquet"),
        triplets=expand(out("triplets/{shard}.tar"), shard=PLAN.shards),
    output:
        embeddings=out(f"evaluation/{RUN}/embeddings.safetensors"),
    log:
        out("logs/embed_shapes.log"),
    benchmark:
        out("benchmarks/embed_shapes.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
        gpu=ONE_GPU,
    params:
        settings=stage("embed-shapes"),
    shell:
        "clipgs embed-shapes --settings {params.settings:q} --log {log:q}"


rule evaluate:
    input:
        embeddings=out(f"evaluation/{RUN}/embeddings.safetensors"),
        index=out("triplets/index.parquet"),
        features=ALL_FEATURES,
        teacher=TEACHER,
        pictures=asked_pictures(),
    output:
        TABLES,
    log:
        out("logs/evaluate.log"),
    benchmark:
        out("benchmarks/evaluate.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
        gpu=ONE_GPU,
    params:
        settings=stage("evaluate"),
    shell:
        "clipgs evaluate --settings {params.settings:q} --threads {threads} --log {log:q}"


# The configured run beside other people's models, where their files are named, and published numbers.
rule baselines:
    input:
        TABLES,
    output:
        table=out("evaluation/baselines.json"),
    log:
        out("logs/baselines.log"),
    benchmark:
        out("benchmarks/baselines.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=16000,
        gpu=ONE_GPU,
    params:
        settings=stage("baselines"),
    shell:
        "clipgs baselines --settings {params.settings:q} --log {log:q}"


# Rows and seeds, one a GPU; a killed table goes on where it was.
rule ablations:
    input:
        index=out("triplets/index.parquet"),
        triplets=expand(out("triplets/{shard}.tar"), shard=PLAN.shards),
        features=ALL_FEATURES,
        teacher=TEACHER,
    output:
        table=out("evaluation/ablations.json"),
    log:
        out("logs/ablations.log"),
    benchmark:
        out("benchmarks/ablations.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=16000,
        gpu=TRAIN_GPUS,
    params:
        settings=stage("ablations"),
    shell:
        "clipgs ablations --settings {params.settings:q} --log {log:q}"
