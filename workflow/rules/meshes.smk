rule fetch:
    input:
        objects=out("catalog/shards/{shard}.parquet"),
    output:
        table=out("meshes/{shard}.parquet"),
    log:
        out("logs/fetch/{shard}.log"),
    benchmark:
        out("benchmarks/fetch/{shard}.tsv")
    conda:
        ENV
    threads: RESOURCES.mesh_threads
    resources:
        mem_mb=2000,
    params:
        settings=RUN.of_shard("fetch"),
    shell:
        "clipgs fetch {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule sample:
    input:
        meshes=out("meshes/{shard}.parquet"),
    output:
        points=passing("points/{shard}.npz"),
        table=out("points/{shard}.parquet"),
    log:
        out("logs/sample/{shard}.log"),
    benchmark:
        out("benchmarks/sample/{shard}.tsv")
    conda:
        ENV
    threads: RESOURCES.mesh_threads
    resources:
        mem_mb=2000,
    params:
        settings=RUN.of_shard("sample"),
    shell:
        "clipgs sample {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule view:
    input:
        meshes=out("meshes/{shard}.parquet"),
    output:
        pictures=passing("views/{shard}.tar"),
        table=out("views/{shard}.parquet"),
    log:
        out("logs/view/{shard}.log"),
    benchmark:
        out("benchmarks/view/{shard}.tsv")
    conda:
        ENV
    threads: RESOURCES.mesh_threads
    resources:
        mem_mb=2000,
    params:
        settings=RUN.of_shard("view"),
    shell:
        "clipgs view {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"
