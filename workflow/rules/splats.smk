rule fit:
    input:
        meshes=out("meshes/{shard}.parquet"),
        points=out("points/{shard}.npz"),
        points_table=out("points/{shard}.parquet"),
        views=out("views/{shard}.tar"),
        views_table=out("views/{shard}.parquet"),
    output:
        splats=out("splats/{shard}.tar"),
        table=out("splats/{shard}.parquet"),
    log:
        out("logs/fit/{shard}.log"),
    benchmark:
        out("benchmarks/fit/{shard}.tsv")
    conda:
        GPU_ENV
    threads: FIT_THREADS
    resources:
        mem_mb=8000,
        gpu=ONE_GPU,
    params:
        settings=retried("fit"),
    shell:
        "clipgs fit {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule render:
    input:
        splats=out("splats/{shard}.tar"),
        table=out("splats/{shard}.parquet"),
    output:
        pictures=out("renders/{shard}.tar"),
        table=out("renders/{shard}.parquet"),
    log:
        out("logs/render/{shard}.log"),
    benchmark:
        out("benchmarks/render/{shard}.tsv")
    conda:
        GPU_ENV
    threads: RENDER_THREADS
    resources:
        mem_mb=2000,
        gpu=RENDER_GPU,
    params:
        settings=retried("render"),
    shell:
        "clipgs render {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"
