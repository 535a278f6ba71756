if RUN.plan.pending:

    # New objects go into new shards. A frozen shard has no rule: nothing makes it again.
    rule freeze:
        output:
            expand(out("catalog/shards/{shard}.parquet"), shard=RUN.plan.pending),
        log:
            out("logs/freeze.log"),
        localrule: True
        conda:
            ENV
        shell:
            "clipgs freeze {output:q} --log {log:q}"


rule label:
    input:
        out("catalog/shards/{shard}.parquet"),
    output:
        out("catalog/labels/{shard}.parquet"),
    log:
        out("logs/label/{shard}.log"),
    localrule: True
    conda:
        ENV
    params:
        settings=RUN.of_shard("label"),
    shell:
        "clipgs label {wildcards.shard} --settings {params.settings:q} --log {log:q}"


rule objects:
    input:
        expand(out("catalog/shards/{shard}.parquet"), shard=SHARDS),
    output:
        objects=out("catalog/objects.parquet"),
        curation=out("catalog/curation.json"),
    log:
        out("logs/objects.log"),
    localrule: True
    conda:
        ENV
    params:
        settings=RUN.of("objects"),
    shell:
        "clipgs objects --settings {params.settings:q} --log {log:q}"
