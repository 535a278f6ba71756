# One page: of the triplets, and with `report.run` of the configured run and its evaluation, trained if need be.
rule report:
    input:
        TABLES + [out("evaluation/baselines.json")] if CONFIG.report.run else [],
        RUN.asked_ablations,
        index=out("triplets/index.parquet"),
        tables=expand(out("triplets/{shard}.parquet"), shard=SHARDS),
        triplets=expand(out("triplets/{shard}.tar"), shard=SHARDS),
        views=expand(out("views/{shard}.parquet"), shard=SHARDS),
    output:
        page=report(
            out("report/index.html"),
            caption="../report/page.rst",
            category="Report",
        ),
    log:
        out("logs/report.log"),
    benchmark:
        out("benchmarks/report.tsv")
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=4000,
    params:
        settings=RUN.of("report"),
    shell:
        "clipgs report --settings {params.settings:q} --log {log:q}"
