"""Writes the manifest of a data set, from the files that it is shipped with: python configs/manifest.py KIND FOLDER CSV

KIND is shapenet, google_scanned_objects, abo, thingi10k or ycb. The presets of the same names read the manifest.
Metadata that is not in the folder leaves its columns empty; only a list of the meshes themselves is needed.
"""

import csv
import gzip
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

Row = dict[str, str]
COLUMNS = ("file", "category", "text", "license", "credit", "group", "split")


def main(kind: str, folder: str, manifest: str) -> None:
    rows = list(KINDS[kind](Path(folder)))
    if not rows:
        sys.exit(f"{folder} holds no mesh of {kind}")
    with open(manifest, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    sys.stdout.write(f"{manifest}: {len(rows)} meshes\n")


def shapenet(folder: Path) -> Iterator[Row]:
    """SYNSET/MODEL/models/model_normalized.obj, taxonomy.json and, if it is there, the published split in all.csv."""
    names = {}
    if (folder / "taxonomy.json").is_file():
        taxonomy = json.loads((folder / "taxonomy.json").read_text(encoding="utf-8"))
        names = {synset["synsetId"]: synset["name"].split(",")[0] for synset in taxonomy}
    listed = {row["modelid"]: row for row in _table(folder / "all.csv")}
    for mesh in sorted(folder.glob("*/*/models/model_normalized.obj")):
        synset, model = mesh.parts[-4:-2]
        entry = listed.get(model, {})
        yield {
            "file": _relative(mesh, folder),
            "category": names.get(synset, ""),
            "text": names.get(entry.get("subsynsetid", "").zfill(8), ""),
            "license": "ShapeNet terms of use",
            "split": {"val": "validation"}.get(entry.get("split", ""), entry.get("split", "")),
        }


def google_scanned_objects(folder: Path) -> Iterator[Row]:
    """NAME/meshes/model.obj, with the name and the category in NAME/metadata.pbtxt."""
    for mesh in sorted(folder.glob("*/meshes/model.obj")):
        metadata = mesh.parents[1] / "metadata.pbtxt"
        text = metadata.read_text(encoding="utf-8") if metadata.is_file() else ""
        yield {
            "file": _relative(mesh, folder),
            "category": _first(r'categories\s*{[^}]*?first:\s*"([^"]*)"', text),
            "text": (_first(r'^name:\s*"([^"]*)"', text) or mesh.parts[-3]).replace("_", " "),
            "license": "CC-BY-4.0",
            "credit": "Google LLC",
        }


def abo(folder: Path) -> Iterator[Row]:
    """original/X/ID.glb, with names and types of products in listings/metadata/listings_*.json.gz."""
    products = {}
    for file in sorted(folder.glob("**/listings_*.json.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                product = json.loads(line)
                products[product.get("3dmodel_id") or product["item_id"]] = product
    for mesh in sorted(folder.glob("**/original/*/*.glb")):
        product = products.get(mesh.stem, {})
        names = product.get("item_name", [])
        english = [name for name in names if name.get("language_tag", "").startswith("en")]
        kind = next((entry["value"] for entry in product.get("product_type", [])), "")
        yield {
            "file": _relative(mesh, folder),
            "category": kind.replace("_", " ").lower(),
            "text": next((name["value"] for name in english or names), ""),
            "license": "CC-BY-NC-4.0",
            "credit": "Amazon.com",
        }


def thingi10k(folder: Path) -> Iterator[Row]:
    """raw_meshes/ID.stl, with things, licences and names in metadata/*.csv. Files of one thing are one group."""
    things: dict[str, Row] = {}  # by the thing's number
    files: dict[str, Row] = {}  # by the file's
    for table in sorted(folder.glob("metadata/*.csv")):
        for row in _table(table):
            number, thing = row.get("id") or row.get("file id") or "", row.get("thing id", "")
            rows, key = (files, number) if number else (things, thing)
            rows.setdefault(key, {}).update({name: value for name, value in row.items() if value})
    for mesh in sorted(folder.glob("raw_meshes/*")):
        if mesh.suffix.lower() in (".stl", ".obj", ".ply", ".off"):
            entry = files.get(mesh.stem, {})
            entry = {**things.get(entry.get("thing id", ""), {}), **entry}
            yield {
                "file": _relative(mesh, folder),
                "category": entry.get("sub-category") or entry.get("category", ""),
                "text": entry.get("name", ""),
                "license": entry.get("license", ""),
                "credit": entry.get("author", ""),
                "group": entry.get("thing id", ""),
            }


def ycb(folder: Path) -> Iterator[Row]:
    """NUMBER_NAME/google_16k/textured.obj; of an object without it another textured.obj."""
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        meshes = sorted(place.glob("*/textured.obj"), key=lambda mesh: mesh.parent.name != "google_16k")
        for mesh in meshes[:1]:
            name = re.sub(r"^\d+(?:-[a-z])?_", "", place.name).replace("_", " ")
            yield {"file": _relative(mesh, folder), "category": name, "text": name, "license": "CC-BY-4.0"}


KINDS = {function.__name__: function for function in (shapenet, google_scanned_objects, abo, thingi10k, ycb)}


def _table(path: Path) -> Iterable[Row]:
    """The rows of a CSV, by lower-case names of its columns; none if there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    header = [name.strip().lower() for name in rows[0]] if rows else []
    return [dict(zip(header, map(str.strip, row), strict=False)) for row in rows[1:]]


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else ""


def _relative(mesh: Path, folder: Path) -> str:
    return mesh.relative_to(folder).as_posix()


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in KINDS:
        sys.exit(__doc__)
    main(*sys.argv[1:])
