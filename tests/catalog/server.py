"""A web server on loopback that serves a folder, and misbehaves on demand; and a small Objaverse for it to serve."""

import hashlib
import random
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.catalog.objaverse_tree import write_objaverse

OBJAVERSE = "datasets/allenai/objaverse/resolve/main"  # below the server's or endpoint's root


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. Without a status, the file is served, and this happens on the way."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()  # of the answer, for instance Retry-After or Location
    cut_after: int | None = None  # bytes of the body, then the connection is closed
    body: bytes | None = None  # in the file's place, with its own length
    stall_seconds: float = 0.0  # without a byte, once the headers are sent
    bytes_per_second: float | None = None

    @classmethod
    def limit(cls, retry_after: str = "1") -> Self:
        return cls(status=429, headers=(("Retry-After", retry_after),))

    @classmethod
    def redirect(cls, location: str, *headers: tuple[str, str]) -> Self:
        return cls(status=302, headers=(("Location", location), *headers))


# Those of a bad day: `Server(failure_rate=0.1)` draws from them.
PASSING_FAULTS = (
    Fault(status=429),
    Fault(status=500),
    Fault(status=503),
    Fault(cut_after=0),
    Fault(cut_after=700),
)


class Server:
    """Serves `folder` while its `with` block lasts, and counts.

    Attributes:
        faults: path to the faults of its next requests, used up one by one.
        always: path to what every request meets.
        requests: path to the number of requests.
        served: path to the number of bodies that were sent to their end, from the first byte.
        seen: path to the headers of each request.
    """

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        failure_rate: float = 0.0,
        seed: int = 0,
        ranges: bool = True,
        etags: bool = True,
        heeds_if_range: bool = True,
    ) -> None:
        self.folder = folder
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.always: dict[str, Fault] = {}
        self.requests: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes of bodies
        self.seen: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.ranges, self.etags, self.heeds_if_range = ranges, etags, heeds_if_range
        self._failure_rate, self._random = failure_rate, random.Random(seed)
        self._lock = threading.Lock()
        self._httpd = _Httpd((host, port), _Handler)
        self._httpd.owner = self
        self.url = f"http://{host}:{self._httpd.server_port}"
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()
        for connection in self._httpd.connections:
            with suppress(OSError):  # most are closed already
                connection.shutdown(socket.SHUT_RDWR)

    def connections(self) -> int:
        """How many clients have opened."""
        return len(self._httpd.connections)

    def arrived(self, path: str, headers: dict[str, str]) -> Fault:
        """Counts a request and says what happens to it."""
        with self._lock:
            self.requests[path] += 1
            self.seen[path].append(headers)
            if self.faults[path]:
                return self.faults[path].pop(0)
            if path in self.always:
                return self.always[path]
            if self._random.random() < self._failure_rate:
                return self._random.choice(PASSING_FAULTS)
        return Fault()

    def left(self, path: str, bytes_sent: int, whole: bool) -> None:
        """Counts what was sent."""
        with self._lock:
            self.sent[path] += bytes_sent
            self.served[path] += whole


class _Httpd(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    owner: Server

    def __init__(self, *arguments: Any) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(*arguments)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Httpd

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        owner = self.server.owner
        path = unquote(urlsplit(self.path).path)  # a proxy is asked for the whole address
        fault = owner.arrived(path, {name.lower(): value for name, value in self.headers.items()})
        if fault.status is not None:
            self._answer(fault.status, dict(fault.headers), fault.body or b"no such luck\n")
            return
        data = fault.body
        if data is None:
            file = owner.folder / path.lstrip("/")
            if not file.is_file():
                self._answer(404, {}, b"not found\n")
                return
            data = file.read_bytes()
        headers = {**dict(fault.headers), "Accept-Ranges": "bytes"}
        if owner.etags:
            headers["ETag"] = f'"{hashlib.md5(data).hexdigest()}"'
        status, start = 200, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, headers.get("ETag")) or not owner.heeds_if_range
        if wanted and owner.ranges and same:
            status, start = 206, int(wanted[1])
            if start >= len(data):
                self._answer(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._serve(path, status, headers, data, start, fault)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _serve(self, path: str, status: int, headers: dict[str, str], data: bytes, start: int, fault: Fault) -> None:
        body = memoryview(data)[start:]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        time.sleep(fault.stall_seconds)
        block = len(body) or 1 if fault.bytes_per_second is None else max(1, int(fault.bytes_per_second / 20))
        end = len(body) if fault.cut_after is None else min(len(body), fault.cut_after)
        for offset in range(0, end, block):
            self.wfile.write(body[offset : min(offset + block, end)])
            if fault.bytes_per_second is not None:
                time.sleep(block / fault.bytes_per_second)
        cut = fault.cut_after is not None and end < len(body)
        self.server.owner.left(path, end, whole=not cut and start == 0)
        if cut:
            self.close_connection = True


# --- a small Objaverse -----------------------------------------------------------------------------------------------


def make_objaverse(
    folder: Path,
    objects: int,
    *,
    body: Callable[[int], bytes] | None = None,
    objects_a_folder: int = 100,
    lvis_every: int = 4,
) -> list[str]:
    """Writes Objaverse 1.0's tree below `folder`/`OBJAVERSE`; returns the uids, in the order of `body`'s index.

    The GLBs are the procedural source's, one an object, unless `body` gives other bytes. Every `lvis_every`th object
    is in LVIS, under the category of the procedural object of its index.
    """
    from clipgs.catalog.sources import procedural

    lvis, changes = defaultdict(list), {}
    for index in range(objects):
        about = procedural.describe(procedural.locator(index, 0))
        changes[f"object_{index}"] = {"name": f"{about.category} {index}", "description": about.text}
        if index % lvis_every == 0:
            lvis[about.category].append(index)

    def built(index: int) -> bytes:
        return procedural.build(procedural.locator(index, 0))

    root = folder / OBJAVERSE
    return write_objaverse(root, objects, per_file=objects_a_folder, lvis=lvis, body=body or built, **changes)
