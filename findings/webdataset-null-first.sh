#!/usr/bin/env bash
# datasets 5.0.1 and a WebDataset tar whose first samples have a null in their JSON. 2026-11-27.
#
# Expected: the loader looks at several samples before it fixes the types of the columns, so a JSON key that is null in
# some samples and a text in others is a column of nullable texts, as in JSON Lines and as `webdataset` itself gives it.
# True: the types come from the first five samples. A key that is null in all of them gets the type "null", and the
# first later sample with a text ends the loading of the whole set. The same six samples in another order load.
# It matters for sets of 3D objects: licence, author and score are often unknown for a shard's first objects only.
# A remedy: `dataset_info.features` in the card (README.md), or `features=` of load_dataset, names every column.
#
# Prints what was seen; ends with 0 while that is so, and with 1 when it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.0.1 webdataset==1.0.2
cat > "$folder/seen.py" <<'PY'
import io
import json
import os
import sys
import tarfile

os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
import webdataset

folder = sys.argv[1]


def tar(name, licences):
    with tarfile.open(f"{folder}/{name}.tar", "w") as out:
        for index, licence in enumerate(licences):
            data = json.dumps({"license": licence}).encode()
            member = tarfile.TarInfo(f"{index:03d}.json")
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return f"{folder}/{name}.tar"


def load(file):
    try:
        rows = datasets.load_dataset("webdataset", data_files=file, split="train", cache_dir=f"{folder}/cache")
        return [row["json"]["license"] for row in rows]
    except datasets.exceptions.DatasetGenerationError as error:
        return f"{type(error.__cause__).__name__}: {error.__cause__}".splitlines()[0][:120]


late = tar("late", [None] * 5 + ["by"])
early = tar("early", ["by"] + [None] * 5)
plain = [json.loads(row["json"])["license"] for row in webdataset.WebDataset(late, shardshuffle=False)]
seen = {"webdataset, null first": plain, "datasets, null first": load(late), "datasets, text first": load(early)}
for name, value in seen.items():
    print(f"{name}: {value}")
as_described = (
    seen["webdataset, null first"] == [None] * 5 + ["by"]
    and isinstance(seen["datasets, null first"], str)
    and seen["datasets, text first"] == ["by"] + [None] * 5
)
sys.exit(not as_described)
PY
"$folder/venv/bin/python" "$folder/seen.py" "$folder"
