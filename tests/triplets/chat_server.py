"""A server on loopback that answers as OpenAI's chat completions do, and misbehaves on demand."""

import base64
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.catalog.server import Fault

# Those of a bad day: `ChatServer(failure_rate=0.1)` draws from them.
PASSING_FAULTS = (
    Fault(status=429),
    Fault(status=429, headers=(("Retry-After", "0"),)),
    Fault(status=500),
    Fault(status=503),
    Fault(cut_after=0),  # the connection is reset
    Fault(cut_after=20),
    Fault(body=b"<html>please log in</html>"),
    Fault(body=b'{"error": {"message": "overloaded"}}'),
)


def completion(text: Any, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """An answer of one choice."""
    said = {"role": "assistant", "content": text, **message}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": said, "finish_reason": finish}]}


class ChatServer:
    """Answers while its `with` block lasts, and counts.

    Attributes:
        reply: what is answered to the fields of a request.
        faults: what its next requests meet, used up one by one.
        always: what every other request meets.
        requests: the fields of each request; `headers` are its headers.
        answered: hash of a request's body to how often it got a whole answer.
        hold_at: once so many were answered, `held` is set and nobody is answered until `go_on`.
    """

    def __init__(self, *, failure_rate: float = 0.0) -> None:
        self.reply: Callable[[dict[str, Any]], dict[str, Any]] = lambda fields: completion("A red mug.")
        self.faults: list[Fault] = []
        self.always: Fault | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: Counter[str] = Counter()
        self.hold_at: int | None = None
        self.held, self._released = threading.Event(), threading.Event()
        self._failure_rate, self._random = failure_rate, random.Random(0)
        self._lock = threading.Lock()
        self._httpd = _Httpd(("127.0.0.1", 0), _Handler)
        self._httpd.owner = self
        self.port = self._httpd.server_port
        self.address = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._released.set()
        self._httpd.shutdown()
        self._thread.join()
        self._httpd.server_close()

    def go_on(self, hold_at: int | None) -> None:
        """Drops the requests that are held, whose client was killed, and answers those to come."""
        with self._lock:
            self._released.set()
            self._released, self.hold_at = threading.Event(), hold_at
            self.held.clear()

    def arrived(self, body: bytes, headers: dict[str, str]) -> tuple[Fault | None, bool]:
        """What happens to a request, and whether its client is to be left without an answer."""
        with self._lock:
            self.requests.append(json.loads(body))
            self.headers.append(headers)
            if self.hold_at is not None and self.answered.total() >= self.hold_at:
                self.held.set()
                released = self._released
            else:
                fault = self.faults.pop(0) if self.faults else self.always
                if fault is None and self._random.random() < self._failure_rate:
                    fault = self._random.choice(PASSING_FAULTS)
                if fault is None:
                    self.answered[hashlib.sha256(body).hexdigest()] += 1
                return fault, False
        released.wait()
        return None, True

    def pictures(self, number: int) -> list[bytes]:
        """The files of the pictures in a request."""
        _, *images = self.requests[number]["messages"][0]["content"]
        prefix = "data:image/png;base64,"
        urls = [image["image_url"]["url"] for image in images]
        assert all(url.startswith(prefix) for url in urls)
        return [base64.b64decode(url.removeprefix(prefix)) for url in urls]


class _Httpd(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    owner: ChatServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Httpd

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions", self.path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault, dropped = self.server.owner.arrived(body, headers)
        if dropped or (fault is not None and fault.cut_after == 0):
            self.close_connection = True
            return
        fault = fault or Fault()
        data = fault.body
        if data is None:
            data = (
                json.dumps(self.server.owner.reply(json.loads(body))).encode() if fault.status is None else b"no luck"
            )
        self.send_response(fault.status or 200)
        for name, value in {**dict(fault.headers), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()
        time.sleep(fault.stall_seconds)
        with suppress(OSError):
            self._send(data, fault)

    def _send(self, data: bytes, fault: Fault) -> None:
        if fault.bytes_per_second is not None:
            for index in range(len(data)):
                self.wfile.write(data[index : index + 1])
                time.sleep(1 / fault.bytes_per_second)
        elif fault.cut_after is not None:
            self.wfile.write(data[: fault.cut_after])
            self.close_connection = True
        else:
            self.wfile.write(data)
