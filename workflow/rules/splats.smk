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
    threads: RESOURCES.fit_threads
    resources:
        mem_mb=8000,
        gpu=RESOURCES.one_gpu,
    params:
        settings=RUN.of_shard("fit"),
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
    threads: RESOURCES.fit_threads
    resources:
        mem_mb=2000,
        gpu=RESOURCES.render_gpu,
    params:
        settings=RUN.of_shard("render"),
    shell:
        "clipgs render {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"
