WRITES, JUDGES = CONFIG.caption.writer is not None, CONFIG.caption.uses_teacher
LOADS = CONFIG.caption.uses_coca or JUDGES


rule caption:
    input:
        labels=out("catalog/labels/{shard}.parquet"),
        meshes=out("meshes/{shard}.parquet"),
        pictures=RUN.pictures if WRITES else [],
        coca=RUN.coca,
        teacher=RUN.teacher if JUDGES else [],
        features=features("images/{shard}.safetensors") if JUDGES else [],
    output:
        table=out("captions/{shard}.parquet"),
    log:
        out("logs/caption/{shard}.log"),
    benchmark:
        out("benchmarks/caption/{shard}.tsv")
    conda:
        GPU_ENV if WRITES or JUDGES else ENV
    threads: 1
    resources:
        mem_mb=8000 if LOADS else 2000 if WRITES else 1000,
    params:
        settings=RUN.of("caption"),
    shell:
        "clipgs caption {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule pack:
    input:
        labels=out("catalog/labels/{shard}.parquet"),
        meshes=out("meshes/{shard}.parquet"),
        points=out("points/{shard}.parquet"),
        views=out("views/{shard}.parquet"),
        splats=out("splats/{shard}.tar"),
        splats_table=out("splats/{shard}.parquet"),
        renders=out("renders/{shard}.tar"),
        renders_table=out("renders/{shard}.parquet"),
        captions=out("captions/{shard}.parquet"),
    output:
        triplets=out("triplets/{shard}.tar"),
        table=out("triplets/{shard}.parquet"),
    log:
        out("logs/pack/{shard}.log"),
    benchmark:
        out("benchmarks/pack/{shard}.tsv")
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=1000,
    params:
        settings=RUN.of_shard("pack"),
    shell:
        "clipgs pack {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule index:
    input:
        curation=out("catalog/curation.json"),
        tables=expand(out("triplets/{shard}.parquet"), shard=SHARDS),
        triplets=expand(out("triplets/{shard}.tar"), shard=SHARDS),
        views=expand(out("views/{shard}.parquet"), shard=SHARDS),
    output:
        index=out("triplets/index.parquet"),
        card=report(
            out("triplets/README.md"),
            caption="../report/card.rst",
            category="Dataset",
        ),
        sheet=report(
            out("triplets/contact_sheet.png"),
            caption="../report/contact_sheet.rst",
            category="Dataset",
        ),
        credits=report(
            out("triplets/CREDITS.csv"),
            caption="../report/credits.rst",
            category="Dataset",
        ),
        quality=report(
            out("triplets/quality.png"),
            caption="../report/quality.rst",
            category="Dataset",
        ),
    log:
        out("logs/index.log"),
    benchmark:
        out("benchmarks/index.tsv")
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
    params:
        settings=RUN.of("index"),
    shell:
        "clipgs index --settings {params.settings:q} --log {log:q}"
