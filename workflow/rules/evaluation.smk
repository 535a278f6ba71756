TABLES = expand(
    RUN.of_evaluation("{table}.json"),
    table=["gallery", "retrieval", "zeroshot", "fewshot"],
)
ALL_FEATURES = expand(
    features("{kind}/{shard}.safetensors"),
    kind=("images", "texts"),
    shard=SHARDS,
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
        features=ALL_FEATURES,
        teacher=RUN.teacher,
        pictures=RUN.asked_pictures,
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


# Rows and seeds, one a GPU; a killed table goes on where it was.
rule ablations:
    input:
        index=out("triplets/index.parquet"),
        triplets=expand(out("triplets/{shard}.tar"), shard=SHARDS),
        features=ALL_FEATURES,
        teacher=RUN.teacher,
    output:
        table=out("evaluation/ablations.json"),
    log:
        out("logs/ablations.log"),
    benchmark:
        out("benchmarks/ablations.tsv")
    conda:
        GPU_ENV
    threads: RESOURCES.threads
    resources:
        mem_mb=16000,
        gpu=RESOURCES.train_gpus,
    params:
        settings=RUN.of("ablations"),
    shell:
        "clipgs ablations --settings {params.settings:q} --log {log:q}"
