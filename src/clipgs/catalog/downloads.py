"""Downloads: whole, checked, resumed, and no faster than the server allows. `parts` writes the files."""

import logging
import os
import re
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, LocationValueError
from urllib3.util import Url, parse_url

from clipgs import __version__
from clipgs.catalog.parts import Part, Version
from clipgs.config import Downloads
from clipgs.core.errors import ClipgsError, ObjectError, UsageError, advice
from clipgs.core.files import damage, read_sidecar, sha256_of
from clipgs.core.web import (
    FIRST_PAUSE_SECONDS,
    LONGEST_OBEYED_SECONDS,
    Pace,
    Pools,
    TransientError,
    connection_error,
    is_loopback,
    pause_seconds,
    retry_after,
    token,
)

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 18
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})  # another try may succeed
_REFUSALS = {401: "is not public", 403: "is not public", 404: "was not found", 410: "has been removed"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_FIRST_PAUSE_SECONDS = FIRST_PAUSE_SECONDS
_PROGRESS_BYTES = 1 << 20  # a try that gets this much resets the count of retries
_SMALL_BODY_BYTES = 1 << 16  # of an answer that is not the file; it is read to keep the connection


class _Request(NamedTuple):
    """The arguments of `get`."""

    url: str
    sha256: str | None
    max_bytes: int | None
    token: bool


class Downloader:
    """Downloads files with the settings of the section `catalog.downloads`. Threads may share one.

    `place` is what names the folder of the files, for errors of the disk.

    Raises:
        UsageError: the endpoint is not a valid address.
    """

    def __init__(self, settings: Downloads, place: str = "cache") -> None:
        self._settings = settings
        self._place = place
        self._endpoint = _checked_endpoint(settings.endpoint)
        self._pace = Pace(settings.per_second)
        self._lock = threading.Lock()
        self._verified: set[tuple[Path, str | None]] = set()
        self._unreachable: Counter[str] = Counter()
        self._pools = Pools(settings.parallel)

    def resolve(self, base: str, relative: str) -> str:
        """The address of a source's file: `endpoint` replaces the scheme and host of the base.

        With the endpoint https://mirror.org/hf, files of https://huggingface.co/datasets/X are at
        https://mirror.org/hf/datasets/X.

        Raises:
            ObjectError: `relative` is outside the base.
        """
        if relative.startswith("/") or "\\" in relative or "\0" in relative or ".." in relative.split("/"):
            raise ObjectError(f"{relative!r} is not the name of a file under {_shown(base)}")
        if self._endpoint is not None:
            base = self._endpoint + urlsplit(base).path
        return f"{base.rstrip('/')}/{quote(relative)}"

    def get(
        self, url: str, path: Path, *, sha256: str | None = None, max_bytes: int | None = None, token: bool = False
    ) -> Path:
        """Downloads `url` to `path`, whole and checked, and returns `path`.

        An existing file is checked at the first call for it (against `sha256`, else its sidecar). If it is damaged, it
        is downloaded again.

        Args:
            url: http, https or file.
            sha256: 64 hex digits, where known.
            max_bytes: a larger file is refused, before the download if the server sends its size.
            token: the token in `settings.token_variable` may be sent, only to the endpoint's (else the URL's) host.

        Raises:
            ObjectError: the file is not available, is too large, or has the wrong bytes.
            ClipgsError: other files would fail too: the disk is full, or the host cannot be reached.
        """
        request = _Request(url, sha256.lower() if sha256 else None, max_bytes, token)
        try:
            if self._is_right(path, request):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with Part.claimed(path) as part:
                if self._is_right(path, request):  # another process downloaded it meanwhile
                    part.restart()
                else:
                    digest = self._fetch(request, part)
                    part.publish(digest, with_sidecar=request.sha256 is None)
                    self._remember(path, request)
        except OSError as error:
            raise ClipgsError(f"{path}: {error.strerror or error}{advice(error, self._place)}") from None
        return path

    # --- existing files ---

    def _remember(self, path: Path, request: _Request) -> None:
        with self._lock:
            self._verified.add((path, request.sha256))

    def _is_right(self, path: Path, request: _Request) -> bool:
        if not path.exists():
            return False
        with self._lock:
            if (path, request.sha256) in self._verified:
                return True
        if request.sha256 is not None:
            right = sha256_of(path) == request.sha256
        elif read_sidecar(path) is not None:
            right = damage(path) is None
        else:
            return False  # nothing shows that it is whole
        if right:
            self._remember(path, request)
        else:
            log.warning("%s is damaged and is downloaded again", path)
        return right

    # --- tries ---

    def _fetch(self, request: _Request, part: Part) -> str:
        """Fills the part; returns its SHA-256."""
        failures, wrong, furthest = 0, False, part.size
        while True:
            try:
                fill = self._copy if _scheme(request.url) == "file" else self._receive
                announced = fill(request, part)
                digest, expected = part.digest(), request.sha256 or announced
                if expected is None or digest == expected:
                    return digest
                if wrong:
                    begins = f"its SHA-256 begins {digest[:12]}, not {expected[:12]}"
                    raise ObjectError(f"{_shown(request.url)} has other bytes than it should: {begins}")
                part.restart()  # a proxy may have damaged it, or the rest was of another version: one more try
                wrong = True
            except TransientError as error:
                failures = 1 if part.size - furthest >= _PROGRESS_BYTES else failures + 1
                furthest = max(furthest, part.size)
                if failures > self._settings.retries:
                    if error.unreachable:
                        self._count_unreachable(request.url, error)
                    shown = _shown(request.url)
                    raise ObjectError(f"{shown} could not be fetched in {failures} tries: {error}") from None
                self._pause(request.url, failures, error)
            except ObjectError:
                part.restart()
                raise

    def _pause(self, url: str, failures: int, error: TransientError) -> None:
        seconds = pause_seconds(failures, _FIRST_PAUSE_SECONDS)
        if error.wait_seconds is not None:
            if error.wait_seconds > LONGEST_OBEYED_SECONDS:
                raise ClipgsError(
                    f"{urlsplit(url).hostname} asks to wait {error.wait_seconds / 60:.0f} minutes; run the same "
                    "command again after that, with a lower catalog.downloads.per_second"
                )
            self._pace.hold(error.wait_seconds)
            seconds = error.wait_seconds + min(seconds, 1.0)
        log.log(logging.INFO if seconds > 5 else logging.DEBUG, "%s: %s; again in %.1f s", _shown(url), error, seconds)
        time.sleep(seconds)

    def _count_unreachable(self, url: str, error: TransientError) -> None:
        """Ends the run if a host could not be reached for several objects in a row."""
        host = urlsplit(url).netloc
        with self._lock:
            self._unreachable[host] += 1
            count = self._unreachable[host]
        if count >= 2 * self._settings.parallel:
            raise ClipgsError(
                f"{urlsplit(url).hostname} could not be reached for {count} files in a row: {error}; check the "
                "network, the proxy variables and catalog.downloads.endpoint, then run the same command again"
            ) from None

    def _copy(self, request: _Request, part: Part) -> str | None:
        """Fills the part from a local file. Returns None, as no hash is announced."""
        if self._endpoint is not None and _scheme(self._endpoint) == "file" and not _local(self._endpoint).is_dir():
            raise ClipgsError(f"catalog.downloads.endpoint: {_local(self._endpoint)} is not a folder; is it mounted?")
        if part.size:
            part.restart()
        source = _local(request.url)
        try:
            if not source.is_file():  # a pipe or device might never end
                raise ObjectError(f"{_shown(request.url)} {'is not a file' if source.exists() else 'was not found'}")
            file = open(source, "rb")  # noqa: SIM115 (errors of reading are the object's, of writing the disk's)
        except OSError as error:
            raise ObjectError(f"{_shown(request.url)} cannot be read ({error.strerror})") from None
        with file:
            _check_size(request, os.fstat(file.fileno()).st_size)
            while True:
                try:
                    block = file.read(_BLOCK_BYTES)
                except OSError as error:
                    raise TransientError(f"reading failed ({error.strerror})") from None
                if not block:
                    return None
                part.write(block)

    def _receive(self, request: _Request, part: Part) -> str | None:
        """One try over HTTP. Returns the hash that the server announced, if any."""
        version = part.version(request.url)
        if part.size and version is None:
            part.restart()
        if version is not None and part.size == version.bytes:
            return version.sha256  # complete: an earlier run was killed just before the renaming
        headers = {"User-Agent": f"clipgs/{__version__}", "Accept-Encoding": "identity"}
        if version is not None and part.size:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": version.validator}
        try:
            response, announced = self._open(request, headers)
            with closing(response):
                with self._lock:
                    self._unreachable.pop(urlsplit(request.url).netloc, None)
                total = self._judge(request, part, response)
                validator = _validator(response)
                if response.status == 200 and validator is not None:
                    part.begin(request.url, Version(validator, total, announced))
                elif version is not None and validator not in (None, version.validator):
                    part.restart()  # the server ignores If-Range
                    raise TransientError("the file changed since its first part was downloaded")
                for block in response.stream(_BLOCK_BYTES, decode_content=False):
                    _check_size(request, part.size + len(block))
                    part.write(block)
        except LocationValueError:
            raise ObjectError(f"{_shown(request.url)} is not an address") from None
        except HTTPError as error:
            raise connection_error(error, self._settings.timeout_seconds) from None
        if total is not None and part.size != total:
            raise TransientError(f"only {part.size} of {total} bytes were received")
        return announced

    def _open(self, request: _Request, headers: dict[str, str]) -> tuple[urllib3.BaseHTTPResponse, str | None]:
        """The answer after all redirects, closed unless it has bytes of the file, and the hash in a redirect."""
        url, announced = request.url, None
        trusted = _origin(self._endpoint or request.url)
        secret = token(self._settings.token_variable) if request.token else None
        for _ in range(_MOST_REDIRECTS + 1):
            own = _origin(url) == trusted
            sent = dict(headers)
            if secret and own and (_scheme(url) == "https" or is_loopback(url)):
                sent["Authorization"] = f"Bearer {secret}"
            self._pace.wait()
            seconds = self._settings.timeout_seconds  # of connecting, and of each read
            response = self._pools.of(url).urlopen(
                "GET", url, headers=sent, redirect=False, retries=False, preload_content=False, timeout=seconds
            )
            if response.status not in (200, 206):
                with suppress(HTTPError):  # the next request can use the connection if the body is read
                    response.read(_SMALL_BODY_BYTES, decode_content=False)
                response.close()
            if response.status not in _REDIRECTS:
                return response, announced
            if own:
                # Hugging Face sends the SHA-256 of a large file with the redirect to its store.
                linked = re.fullmatch(r'"?([0-9a-f]{64})"?', response.headers.get("X-Linked-ETag", ""))
                announced = linked[1] if linked else announced
            url = _next_url(request.url, url, response.headers.get("Location"))
        raise ObjectError(f"{_shown(request.url)} redirects more than {_MOST_REDIRECTS} times")

    def _judge(self, request: _Request, part: Part, response: urllib3.BaseHTTPResponse) -> int | None:
        """The size of the whole file, if the answer has it. Raises unless the answer has bytes of the file."""
        status, headers = response.status, response.headers
        if status in _TRANSIENT_STATUSES:
            wait = retry_after(headers.get("Retry-After"))
            if wait is None and status == 429:
                self._pace.hold(_FIRST_PAUSE_SECONDS)
            raise TransientError(f"the server answered {status}", wait)
        if status == 416 and part.size:
            part.restart()
            raise TransientError("the server cannot resume where the last try ended")
        if status not in (200, 206):
            reason = f"{_shown(request.url)} {_REFUSALS.get(status, 'was refused')} (HTTP {status})"
            if status in (401, 403):
                reason += f"; if it needs a token, set {self._settings.token_variable} (sent over https only)"
            raise ObjectError(reason)
        if headers.get("Content-Encoding", "identity") != "identity" and not urlsplit(request.url).path.endswith(".gz"):
            raise ObjectError(f"{_shown(request.url)} was sent compressed, although plain bytes were requested")
        if status == 206:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if place is None or int(place[1]) != part.size:
                part.restart()
                raise TransientError("the server sent another range than the missing one")
            total: int | None = int(place[2])
        else:
            if part.size:
                part.restart()  # the file changed, or the server does not support ranges
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        if total is not None:
            _check_size(request, total)
        return total


def _check_size(request: _Request, size: int) -> None:
    if request.max_bytes is not None and size > request.max_bytes:
        limit = f"at most {request.max_bytes / 1e6:.1f} MB are allowed"
        raise ObjectError(f"{_shown(request.url)} has at least {size / 1e6:.1f} MB, and {limit}")


def _validator(response: urllib3.BaseHTTPResponse) -> str | None:
    """The identifier of this version of the file: a strong ETag, else a date."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _next_url(first: str, url: str, location: str | None) -> str:
    try:
        following = urljoin(url, location or "")
        valid = location and _scheme(following) != "file"
    except (ValueError, ObjectError):
        valid = False
    if not valid:
        raise ObjectError(f"{_shown(first)} redirects to something that is not a web address")
    if _scheme(url) == "https" and _scheme(following) == "http":
        raise ObjectError(f"{_shown(first)} redirects from https to plain http")
    return following


def _checked_endpoint(endpoint: str | None) -> str | None:
    if endpoint is None:
        return None
    key = "config: catalog.downloads.endpoint"
    try:
        scheme = _scheme(endpoint)
    except ObjectError as error:
        raise UsageError(f"{key}: {error}") from None
    parts = urlsplit(endpoint)
    if "@" in parts.netloc or parts.query:
        raise UsageError(f"{key} must hold no login or query; set a token in the environment instead")
    if scheme == "file" and (parts.netloc not in ("", "localhost") or not parts.path.startswith("/")):
        raise UsageError(f"{key}: {_shown(endpoint)} is not a folder of this machine (file:///path)")
    return endpoint.rstrip("/")


def _scheme(url: str) -> str:
    """http, https or file.

    Raises:
        ObjectError: the URL has another scheme or is invalid.
    """
    try:
        parts = parse_url(url)
    except LocationParseError:
        parts = Url()
    if parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.host):
        return parts.scheme
    raise ObjectError(f"{_shown(url)} is not an address of http, https or file")


def _local(url: str) -> Path:
    return Path(urllib.request.url2pathname(urlsplit(url).path))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _shown(url: str) -> str:
    """The URL without login and query, which may be secret."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])
