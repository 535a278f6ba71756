SMALL_TEACHER = [
    out("teacher/open_clip_config.json"),
    out("teacher/open_clip_model.safetensors"),
]
TEACHER = SMALL_TEACHER if CONFIG.teacher.name == "train" else CONFIG.teacher.files
PICTURES = {"splats": "renders", "meshes": "views"}[CONFIG.teacher.images]


def features(name):
    """A file of the teacher's features."""
    return out(f"features/{CONFIG.teacher.slug}/{name}")


# Frozen once made, on the triplets of that day: more of them train no other teacher.
rule teacher:
    input:
        triplets=ancient(out("triplets/index.parquet")),
    output:
        SMALL_TEACHER,
        about=out("teacher/teacher.json"),
        card=out("teacher/README.md"),
    log:
        out("logs/teacher.log"),
    benchmark:
        out("benchmarks/teacher.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
    params:
        settings=stage("teacher"),
    shell:
        "clipgs teacher --settings {params.settings:q} --threads {threads} --log {log:q}"


rule embed_images:
    input:
        TEACHER,
        pictures=out(f"{PICTURES}/{{shard}}.tar"),
        table=out(f"{PICTURES}/{{shard}}.parquet"),
    output:
        features("images/{shard}.safetensors"),
    log:
        out("logs/embed_images/{shard}.log"),
    benchmark:
        out("benchmarks/embed_images/{shard}.tsv")
    conda:
        GPU_ENV
    threads: THREADS
    resources:
        mem_mb=8000,
    params:
        settings=stage("embed-images"),
    shell:
        "clipgs embed-images {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"


rule embed_texts:
    input:
        TEACHER,
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
    threads: THREADS
    resources:
        mem_mb=8000,
    params:
        settings=stage("embed-texts"),
    shell:
        "clipgs embed-texts {wildcards.shard} --settings {params.settings:q} "
        "--threads {threads} --log {log:q}"
