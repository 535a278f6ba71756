"""The page on the network: who may ask, what is refused, and what every answer tells the browser to forbid."""

import errno
import ipaddress
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Collection
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl

from clipgs.config import Config
from clipgs.core.errors import ClipgsError, UsageError
from clipgs.serve.site import Answer, NotFound, Site

log = logging.getLogger(__name__)

PORT = 8700
MAX_PICTURE_MB = 20
_SECONDS = 60  # a connection without a request is closed
_HEADERS = {
    # The page's own files and nothing else: no inline script or style, no frame, no other host.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Server(ThreadingHTTPServer):
    """Answers for a site.

    Args:
        host: the address to listen on. Elsewhere than on loopback a random token begins every path.
        port: 0 takes a free one.

    Raises:
        UsageError: the address cannot be listened on.
    """

    daemon_threads = True
    request_queue_size = 64  # a browser asks for many pictures at once

    def __init__(self, site: Site, host: str = "127.0.0.1", port: int = PORT) -> None:
        self.site = site
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(place[0]), port), _Handler)
        except (socket.gaierror, UnicodeError):
            raise UsageError(f"--host {host}: no machine of this name is known here") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(f"--host {host}: this machine has no such address") from None
            raise UsageError(
                f"{host}:{port} cannot be listened on ({error.strerror or error}); choose --port"
            ) from None
        self.local = ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback
        self.prefix = "/" if self.local else f"/{secrets.token_urlsafe(24)}/"
        self._names = {"localhost"} if self.local else {host.lower(), "localhost", *_own_names()}

    def server_bind(self) -> None:
        """As TCPServer: HTTPServer looks up the host's full name here, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def address(self) -> str:
        """The page's address."""
        host = str(self.server_address[0])
        if host in ("0.0.0.0", "::"):
            host = socket.gethostname()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}{self.prefix}"

    def expects(self, host: str) -> bool:
        """Whether a header `Host` names this server, so that no other site's name leads here (DNS rebinding).

        Any port counts, for tunnels. A number is no name; on loopback it must be a number of loopback.
        """
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", host)
        if not found:
            return False
        name = found[1].strip("[]").lower().removesuffix(".")
        try:
            number = ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return number.is_loopback or not self.local

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves before its answer is no error; others are logged in one line."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            log.error("serve: %s: %s", type(error).__name__, error)


def _own_names() -> Collection[str]:
    name = socket.gethostname().lower()
    return {name, name.partition(".")[0], socket.getfqdn().lower()}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS

    def do_GET(self) -> None:
        self._answer(lambda address, query: self.server.site.get(address, query))

    def do_POST(self) -> None:
        self._answer(lambda address, query: self.server.site.post(address, query, self._body()))

    def _answer(self, ask: Any) -> None:
        # What is refused before its body is read leaves the body in the connection.
        unread = self.command == "POST"
        try:
            address, query = self._wanted()
            answer = ask(address, query)
            unread = False
        except NotFound as error:
            answer = _refusal(HTTPStatus.NOT_FOUND, str(error))
        except _Refused as error:
            answer = _refusal(error.status, str(error))
        except UsageError as error:
            answer = _refusal(HTTPStatus.BAD_REQUEST, str(error))
        except ClipgsError as error:
            answer = _refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception as error:  # a damaged file is one answer, not the server's end
            log.exception("serve: %s", type(error).__name__)
            answer = _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}; the server's log says more")
        self.close_connection |= unread
        self._send(answer)

    def _wanted(self) -> tuple[str, dict[str, str]]:
        """The address after the prefix, and the query."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.expects(hosts[0]):
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server does not answer under that name")
        origin = self.headers.get("Origin")
        if self.command == "POST" and origin not in (None, f"http://{hosts[0]}", f"https://{hosts[0]}"):
            raise _Refused(HTTPStatus.FORBIDDEN, "another site's page may not ask")
        path, _, text = self.path.partition("?")
        prefix = self.server.prefix
        if not secrets.compare_digest(path[: len(prefix)].encode(), prefix.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "the address lacks the token that `clipgs serve` printed")
        try:
            query = dict(parse_qsl(text, max_num_fields=32, errors="strict"))
        except ValueError:
            raise UsageError("the query is not UTF-8, or too long") from None
        return path[len(prefix) :], query

    def _body(self) -> bytes:
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get("Transfer-Encoding") or len(lengths) != 1 or not re.fullmatch("[0-9]{1,12}", lengths[0]):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "a picture comes with its Content-Length")
        if int(lengths[0]) > MAX_PICTURE_MB * 1_000_000:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the picture has more than {MAX_PICTURE_MB} MB")
        return self.rfile.read(int(lengths[0]))

    def _send(self, answer: Answer) -> None:
        tag = f'"{answer.tag}"' if answer.tag else ""
        known = bool(tag) and self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if known else answer.status)
        if tag:
            self.send_header("ETag", tag)
        self.send_header("Cache-Control", "private, no-cache" if tag else "no-store")
        if not known:
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
        if answer.name:
            self.send_header("Content-Disposition", f'attachment; filename="{answer.name}"')
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if not known:
            self.wfile.write(answer.body)

    def end_headers(self) -> None:
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        return "clipgs"

    def log_message(self, format: str, *values: Any) -> None:
        log.debug("serve: " + format, *values)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def _refusal(status: HTTPStatus, reason: str) -> Answer:
    return Answer(reason.encode(), "text/plain; charset=utf-8", status=status)


def serve(config: Config, run: Path | None, host: str, port: int) -> None:
    """Answers until Ctrl-C."""
    # Before torch is imported. Threads that wait for each other in a loop make a query ten times as slow where other
    # programs use the cores too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    server = Server(Site(config, run), host, port)
    log.info("serve: %s", server.address)
    log.info("serve: Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
