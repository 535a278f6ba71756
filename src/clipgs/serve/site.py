"""What the page asks for: addresses, and what is answered. `server.py` puts it on the network.

All addresses are relative to the page's own:

    api/about               what the output holds: labels with their numbers, what can be searched
    api/search?…            a list of objects (GET: by words, text, another object or nothing; POST: by a picture)
    api/failures?…          failed objects
    api/object/UID          all that is known of an object
    splat/UID, ply/UID      its splat, for the viewer and to download
    render/UID[/VIEW]       its renders; without a number the one that shows it best
    mesh/UID[/VIEW]         its mesh
    failed/UID              a picture of a failed object
"""

import json
import re
import shlex
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgs import __version__
from clipgs.catalog.records import UID_PATTERN
from clipgs.config import Config
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.core.runner import Row
from clipgs.serve.archive import FACETS, SORTS, Archive, Filters, picture_type
from clipgs.serve.nearest import Vectors
from clipgs.serve.reader import Reader

MAX_COUNT = 200  # objects of one answer
_MAX_QUERY = 2000  # characters
_LISTS_KEPT = 8  # ranked lists of the last queries, for their next pages
_JSON = "application/json"
_ASSETS = {
    "": ("clipgs.serve", "page.html", "text/html; charset=utf-8"),
    "page.css": ("clipgs.serve", "page.css", "text/css; charset=utf-8"),
    "page.js": ("clipgs.serve", "page.js", "text/javascript; charset=utf-8"),
    "icon.svg": ("clipgs.serve", "icon.svg", "image/svg+xml"),
    "viewer.js": ("clipgs.report", "viewer.js", "text/javascript; charset=utf-8"),
}
_FILE = re.compile(
    rf"(?P<kind>api/object|splat|ply|render|mesh|failed)/(?P<uid>{UID_PATTERN.pattern})(?:/(?P<view>[0-9]{{1,3}}))?"
)

Query = Mapping[str, str]


class Answer(NamedTuple):
    """What is sent back."""

    body: bytes
    kind: str  # media type
    tag: str = ""  # changes with the body; the browser asks again with it
    name: str = ""  # of the file to save; empty for what is shown
    status: HTTPStatus = HTTPStatus.OK


class NotFound(Exception):
    """There is no such address, or no such object; the text says what is missing."""


class Site:
    """The page over an output.

    Args:
        run: the folder of the run whose embeddings are searched; None to browse and filter only.

    Raises:
        ClipgsError: the output has no triplets.
    """

    def __init__(self, config: Config, run: Path | None) -> None:
        self.archive = Archive(config)
        self.vectors: Vectors | None = None
        self.reader: Reader | None = None
        self.no_search = "no run is trained yet: words, labels and filters can be searched"
        self._config, self._run = config, run
        if run is not None:
            try:
                self._use(Vectors(config.output_path / "evaluation" / run.name / "embeddings.safetensors", run), run)
            except ClipgsError as error:
                self.no_search = str(error)
        self._ranked = lru_cache(_LISTS_KEPT)(self._rank)
        self._assets = {
            address: Answer((files(package) / "assets" / name).read_bytes(), kind)
            for address, (package, name, kind) in _ASSETS.items()
        }

    def _use(self, vectors: Vectors, run: Path) -> None:
        """Keeps, of the index and of the embeddings, which place is which row: either may have more objects."""
        place = self.archive.place
        self._row_of = np.full(len(self.archive), -1, np.int64)  # place in the index to row of the embeddings
        for row, uid in enumerate(vectors.uids):
            if uid in place:
                self._row_of[place[uid]] = row
        vectors.uids.clear()  # 240,000 texts that the index has too
        self._place_of = np.full(len(vectors), -1, np.int64)
        known = self._row_of >= 0
        self._place_of[self._row_of[known]] = np.flatnonzero(known)
        self.no_search = ""
        self.vectors, self.reader = vectors, Reader(run, vectors.dim)

    def get(self, address: str, query: Query) -> Answer:
        """The answer to a GET of an address, relative to the page's own and as it was sent, still encoded.

        Raises:
            NotFound: there is no such address or object.
            UsageError: the query is wrong.
            ClipgsError: it cannot be answered now.
        """
        if address in self._assets:
            return self._assets[address]
        if address in (pages := self._pages()):
            return _json(pages[address](query))
        if not (found := _FILE.fullmatch(address)):
            raise NotFound("there is no such address")
        kind, uid = found["kind"], found["uid"]
        if not self.archive.knows(uid):
            raise NotFound("there is no such object")
        return self._file(kind, uid, None if found["view"] is None else int(found["view"]))

    def post(self, address: str, query: Query, body: bytes) -> Answer:
        """The answer to a POST: a search by the picture in the body. Raises as `get`."""
        if address != "api/search":
            raise NotFound("there is no such address")
        return _json(self._search(query, body))

    def _pages(self) -> dict[str, Callable[[Query], Any]]:
        return {"api/about": self._about, "api/search": self._search, "api/failures": self._failures}

    # --- lists --------------------------------------------------------------------------------------------------------

    def _about(self, query: Query) -> Row:
        archive = self.archive
        lacking = int((self._row_of < 0).sum()) if self.vectors else 0
        output = self._config.output_path
        own = ["--output", shlex.quote(str(output.absolute()))] if (output / "run.yaml").is_file() else []
        return {
            "title": self._config.pack.title,
            "version": __version__,
            "objects": len(archive),
            "facets": {name: archive.facets[name] for name in FACETS},
            "psnr": archive.psnr,
            "judged": archive.judged,
            "run": self._run.name if self._run else None,
            "near": self.vectors is not None,
            "reader": self.reader.state if self.reader else "none",
            "no_search": self.no_search,
            "lacking": lacking,
            "changed": archive.changed,
            "pixels": self._config.views.pixels,
            "distance": self._config.views.distance,
            "exclude": " ".join(["clipgs exclude", *own]),
        }

    def _search(self, query: Query, picture: bytes | None = None) -> Row:
        start = time.perf_counter()
        labels = {name: query.get(name, "") for name in FACETS}
        filters = Filters(**labels, psnr_min=_number(query, "psnr_min"), psnr_max=_number(query, "psnr_max"))
        text, like = query.get("q", "").strip(), query.get("like", "")
        words = text if query.get("by") == "words" else ""
        sort = query.get("sort", "")
        if len(text) > _MAX_QUERY:
            raise UsageError(f"the text is longer than {_MAX_QUERY:,} characters")
        if sort and sort not in SORTS:
            raise UsageError("there is no such order")
        vector = None
        if picture is not None or like or (text and not words):
            if self.vectors is None or self.reader is None:
                raise ClipgsError(self.no_search)
            if picture is not None:
                vector = self.reader.picture(picture)
            elif like:
                vector = self.vectors.row(self._embedded(like))
            else:
                vector = self.reader.text(text)
        places, scores = self._ranked(None if vector is None else vector.tobytes(), words, filters, sort)
        begin = _whole(query, "offset", 0, len(places))
        end = min(len(places), begin + _whole(query, "count", 48, MAX_COUNT))
        rows = self.archive.shown(places[begin:end])
        if scores is not None:
            rows = [{**row, "score": round(float(scores[begin + i]), 4)} for i, row in enumerate(rows)]
        return {
            "total": len(places),
            "offset": begin,
            "objects": rows,
            "changed": self.archive.changed,
            "seconds": round(time.perf_counter() - start, 4),
        }

    def _embedded(self, uid: str) -> int:
        place = self.archive.place.get(uid)
        if place is None:
            raise NotFound("there is no such object")
        if self._row_of[place] < 0:
            raise UsageError("this object has no embedding yet")
        return int(self._row_of[place])

    def _rank(
        self, vector: bytes | None, words: str, filters: Filters, sort: str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Places [m] of the objects to list, in their order; with a vector also their cosines [m]."""
        chosen = self.archive.chosen(filters, words)
        scores = None
        if vector is not None:
            assert self.vectors is not None
            rows = np.sort(self._row_of[chosen][self._row_of[chosen] >= 0])
            ordered, scores = self.vectors.ordered(np.frombuffer(vector, np.float32), rows)
            chosen = self._place_of[ordered]
        if sort and vector is None:
            chosen = self.archive.sorted(chosen, sort)
        return chosen.astype(np.int32), scores

    def _failures(self, query: Query) -> Row:
        rows, stages = self.archive.failures(query.get("stage", ""), query.get("q", "")[:_MAX_QUERY])
        begin = _whole(query, "offset", 0, len(rows))
        shown = rows[begin : begin + _whole(query, "count", 48, MAX_COUNT)]
        return {
            "total": len(rows),
            "offset": begin,
            "stages": stages,
            "objects": [{**row, "picture": self.archive.picture_of_failed(row["uid"]) is not None} for row in shown],
        }

    # --- one object ---------------------------------------------------------------------------------------------------

    def _file(self, kind: str, uid: str, view: int | None) -> Answer:
        archive = self.archive
        packed = uid in archive.place
        if (kind == "failed") == packed or (view is not None and kind not in ("render", "mesh")):
            raise NotFound("there is no such address")
        if kind == "api/object":
            return _json(self._object(uid))
        if kind == "failed":
            return _picture(archive.picture_of_failed(uid))
        tag = archive.digest(uid)[:16]
        if kind == "render":
            return _picture(archive.render(uid, view), tag)
        if kind == "mesh":
            return _picture(archive.mesh(uid) if view is None else self._mesh_view(uid, view))
        data = archive.splat(uid) if kind == "splat" else archive.member(uid, "ply")
        if not data:
            raise NotFound("the splat is not there")
        return Answer(data, "application/octet-stream", tag, f"{uid}.ply" if kind == "ply" else "")

    def _object(self, uid: str) -> Row:
        names = self.archive.members(uid)
        views = self.archive.mesh_views(uid)
        return {
            **self.archive.row(uid),
            "renders": sum(name.endswith(".webp") for name in names),
            "best": self.archive.best(uid),
            "mesh_picture": self.archive.mesh(uid) is not None,
            "mesh_views": len(views.entries) if views else 0,
            "near": self.vectors is not None and bool(self._row_of[self.archive.place[uid]] >= 0),
        }

    def _mesh_view(self, uid: str, view: int) -> bytes | None:
        views = self.archive.mesh_views(uid)
        if views is None or view >= len(views.entries):
            return None
        return views.one(view)


def _json(value: Any) -> Answer:
    return Answer(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str).encode(), _JSON)


def _picture(data: bytes | None, tag: str = "") -> Answer:
    kind = picture_type(data) if data else None
    if data is None or kind is None:
        raise NotFound("there is no such picture")
    return Answer(data, kind, tag)


def _number(query: Query, name: str) -> float | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{name} is a number, not {text[:40]!r}") from None
    return value if np.isfinite(value) else None


def _whole(query: Query, name: str, default: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return min(default, most)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise UsageError(f"{name} is a whole number from 0, not {text[:40]!r}")
    return min(int(text), most)
