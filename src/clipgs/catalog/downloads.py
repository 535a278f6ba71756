"""Files from the network: whole, checked, resumed, and no faster than the server wants (`parts`: how they land)."""

import ipaddress
import logging
import os
import random
import re
import threading
import time
import urllib.request
from collections import Counter
from contextlib import closing, suppress
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationParseError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ProxySchemeUnknown,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import Url, parse_url

from clipgs import __version__
from clipgs.catalog.parts import Part, Version
from clipgs.config import Downloads
from clipgs.core.errors import ClipgsError, ObjectError, UsageError, advice
from clipgs.core.files import damage, sha256_of, sidecar

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 18
_TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that another try may not meet
_FOLLOWED_BY_BYTES = frozenset({200, 206})
_REFUSALS = {401: "is not open to us", 403: "is not open to us", 404: "was not found", 410: "has been removed"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
# Tries are not left to urllib3's Retry: it cannot go on with a body that was cut, counts a redirect as a try, does not
# wait before the second try, takes a Retry-After of a day for six hours, and makes one thread wait where the server
# means all of them.
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 60.0
_LONGEST_OBEYED_SECONDS = 3600.0  # a server that asks for a longer pause ends the run instead
_PROGRESS_BYTES = 1 << 20  # a try that brought this much begins the count of retries again
_SMALL_BODY_BYTES = 1 << 16  # of an answer that is not the file: read, to keep the connection


class _Request(NamedTuple):
    """What `get` was asked for."""

    url: str
    sha256: str | None
    size: int | None
    max_bytes: int | None
    token: bool


class _TransientError(Exception):
    """A failure that another try may not meet. `wait_seconds`: as long as the server asked for."""

    def __init__(self, reason: str, wait_seconds: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        self.unreachable = unreachable


class _WrongBytesError(Exception):
    """All bytes came, and they are not those of the file."""


class Downloader:
    """Fetches files as the section `catalog.downloads` says. Threads may share one.

    Raises:
        UsageError: the endpoint is not an address that files can be had from.
    """

    def __init__(self, settings: Downloads) -> None:
        self._settings = settings
        self._endpoint = _checked_endpoint(settings.endpoint)
        self._pace = _Pace(settings.per_second)
        self._lock = threading.Lock()
        self._verified: set[tuple[Path, str | None]] = set()
        self._unreachable: Counter[str] = Counter()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def resolve(self, base: str, relative: str) -> str:
        """The address of a source's file: `endpoint` stands in the place of the base's scheme and host.

        With the endpoint https://mirror.org/hf, a file of https://huggingface.co/datasets/X is looked for under
        https://mirror.org/hf/datasets/X.

        Raises:
            ObjectError: `relative` leads out of the base.
        """
        if relative.startswith("/") or "\\" in relative or "\0" in relative or ".." in relative.split("/"):
            raise ObjectError(f"{relative!r} is not the name of a file under {_shown(base)}")
        if self._endpoint is not None:
            base = self._endpoint + urlsplit(base).path
        return f"{base.rstrip('/')}/{quote(relative)}"

    def get(
        self,
        url: str,
        path: Path,
        *,
        sha256: str | None = None,
        size: int | None = None,
        max_bytes: int | None = None,
        token: bool = False,
    ) -> Path:
        """Makes `path` hold the bytes of `url`, whole and checked, and returns it.

        A file that is there is hashed when this Downloader first meets it (against `sha256`, else its sidecar) and
        returned; a damaged one is fetched again.

        Args:
            url: http, https or file.
            sha256: 64 hex digits, where known.
            size: in bytes, where known.
            max_bytes: a larger file is refused, before it is fetched where the server tells its size.
            token: may send the token of `settings.token_variable`, to the endpoint's (else the URL's) own host alone.

        Raises:
            ObjectError: the file cannot be had, is too large, or does not have the bytes it should.
            ClipgsError: no other file would fare better: the disk is full, the host cannot be reached.
        """
        path = Path(path)
        request = _Request(url, sha256.lower() if sha256 else None, size, max_bytes, token)
        try:
            if self._is_right(path, request):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with Part.claimed(path) as part:
                if self._is_right(path, request):  # it came while another process held the part
                    part.restart()
                else:
                    digest = self._fetch(request, part)
                    part.publish(digest, with_sidecar=request.sha256 is None)
                    self._remember(path, request)
        except OSError as error:
            raise ClipgsError(f"{path}: {error.strerror or error}{advice(error, 'cache')}") from None
        return path

    # --- what is there already ---

    def _remember(self, path: Path, request: _Request) -> None:
        with self._lock:
            self._verified.add((path, request.sha256))

    def _is_right(self, path: Path, request: _Request) -> bool:
        if not path.exists():
            return False
        with self._lock:
            if (path, request.sha256) in self._verified:
                return True
        noted = sidecar(path).exists()
        if request.sha256 is None and request.size is None and not noted:
            return False  # nothing tells whether it is whole
        right = request.size in (None, path.stat().st_size)
        if request.sha256 is not None:
            right = right and sha256_of(path) == request.sha256
        elif noted:
            right = right and damage(path) is None
        if right:
            self._remember(path, request)
        else:
            log.warning("%s is damaged and is fetched again", path)
        return right

    # --- tries ---

    def _fetch(self, request: _Request, part: Part) -> str:
        """Fills the part; returns its SHA-256."""
        failures, wrong, furthest = 0, False, part.size
        while True:
            try:
                fill = self._copy if _scheme(request.url) == "file" else self._receive
                return _verify(request, part, fill(request, part))
            except _WrongBytesError as error:
                part.restart()  # a proxy may have mixed it up, or the rest came from another version: once more
                if wrong:
                    raise ObjectError(f"{_shown(request.url)} {error}") from None
                wrong = True
            except _TransientError as error:
                failures = 1 if part.size - furthest >= _PROGRESS_BYTES else failures + 1
                furthest = max(furthest, part.size)
                if failures > self._settings.retries:
                    self._count_unreachable(request.url, error)
                    shown = _shown(request.url)
                    raise ObjectError(f"{shown} could not be fetched in {failures} tries: {error}") from None
                self._pause(request.url, failures, error)
            except ObjectError:
                part.restart()
                raise

    def _pause(self, url: str, failures: int, error: _TransientError) -> None:
        # Full jitter: those that failed together do not come again together.
        seconds = random.uniform(0, min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (failures - 1)))
        if error.wait_seconds is not None:
            if error.wait_seconds > _LONGEST_OBEYED_SECONDS:
                raise ClipgsError(
                    f"{urlsplit(url).hostname} asks to wait {error.wait_seconds / 60:.0f} minutes; run the same "
                    "command again after that, with a lower catalog.downloads.per_second"
                )
            self._pace.hold(error.wait_seconds)
            seconds = error.wait_seconds + min(seconds, 1.0)
        log.log(logging.INFO if seconds > 5 else logging.DEBUG, "%s: %s; again in %.1f s", _shown(url), error, seconds)
        time.sleep(seconds)

    def _count_unreachable(self, url: str, error: _TransientError) -> None:
        """Ends the run when one object after the other met a host that is not there."""
        if not error.unreachable:
            return
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
        """Fills the part from a folder, which announces no hash."""
        if self._endpoint is not None and _scheme(self._endpoint) == "file" and not _local(self._endpoint).is_dir():
            raise ClipgsError(f"catalog.downloads.endpoint: {_local(self._endpoint)} is not a folder; is it mounted?")
        if part.size:
            part.restart()
        source = _local(request.url)
        try:
            if not source.is_file():  # a pipe or device might never end
                raise ObjectError(f"{_shown(request.url)} {'is no file' if source.exists() else 'was not found'}")
            file = open(source, "rb")  # noqa: SIM115 (its errors are the object's, the part's are the disk's)
        except OSError as error:
            raise ObjectError(f"{_shown(request.url)} cannot be read ({error.strerror})") from None
        with file:
            _check_size(request, os.fstat(file.fileno()).st_size)
            while True:
                try:
                    block = file.read(_BLOCK_BYTES)
                except OSError as error:
                    raise _TransientError(f"reading failed ({error.strerror})") from None
                if not block:
                    return None
                part.write(block)

    def _receive(self, request: _Request, part: Part) -> str | None:
        """One try over HTTP. Returns the hash that the server announced, where it did."""
        version = part.version(request.url)
        if part.size and version is None:
            part.restart()
        if version is not None and part.size == version.bytes:
            return version.sha256  # all there: it was killed just before the renaming
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
                    part.restart()  # the server does not heed If-Range
                    raise _TransientError("the file changed since its first part came")
                for block in response.stream(_BLOCK_BYTES, decode_content=False):
                    if request.max_bytes is not None and part.size + len(block) > request.max_bytes:
                        raise _too_large(request, None)
                    part.write(block)
        except LocationValueError:
            raise ObjectError(f"{_shown(request.url)} is not an address") from None
        except HTTPError as error:
            raise _connection_error(error, self._settings.timeout_seconds) from None
        if total is not None and part.size != total:
            raise _TransientError(f"{part.size} of {total} bytes came")
        return announced

    def _open(self, request: _Request, headers: dict[str, str]) -> tuple[urllib3.BaseHTTPResponse, str | None]:
        """The answer at the end of the redirects, closed unless bytes of the file follow, and the hash on the way."""
        url, announced = request.url, None
        trusted = _origin(self._endpoint or request.url)
        secret = self._token() if request.token else None
        for _ in range(_MOST_REDIRECTS + 1):
            own = _origin(url) == trusted
            sent = dict(headers)
            if secret and own and (_scheme(url) == "https" or _is_loopback(url)):
                sent["Authorization"] = f"Bearer {secret}"
            self._pace.wait()
            response = self._pool(url).urlopen(
                "GET",
                url,
                headers=sent,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=self._settings.timeout_seconds, read=self._settings.timeout_seconds),
            )
            if response.status not in _FOLLOWED_BY_BYTES:
                with suppress(HTTPError):  # a body that is read to its end leaves the connection to the next request
                    response.read(_SMALL_BODY_BYTES, decode_content=False)
                response.close()
            if response.status not in _REDIRECTS:
                return response, announced
            if own:
                # Hugging Face names the SHA-256 of a large file where it redirects to its store.
                linked = re.fullmatch(r'"?([0-9a-f]{64})"?', response.headers.get("X-Linked-ETag", ""))
                announced = linked[1] if linked else announced
            url = _next_url(request.url, url, response.headers.get("Location"))
        raise ObjectError(f"{_shown(request.url)} redirects more than {_MOST_REDIRECTS} times")

    def _token(self) -> str | None:
        secret = os.environ.get(self._settings.token_variable, "").strip()
        if not re.fullmatch(r"[!-~]*", secret):  # the error of the HTTP library would show it
            raise UsageError(f"the environment variable {self._settings.token_variable} holds more than a token")
        return secret or None

    def _judge(self, request: _Request, part: Part, response: urllib3.BaseHTTPResponse) -> int | None:
        """The size of the whole file, where the answer tells it. Raises unless the file's bytes follow."""
        status, headers = response.status, response.headers
        if status in _TRANSIENT_STATUSES:
            wait = _retry_after(headers.get("Retry-After"))
            if wait is None and status == 429:
                self._pace.hold(_FIRST_PAUSE_SECONDS)
            raise _TransientError(f"the server answered {status}", wait)
        if status == 416 and part.size:
            part.restart()
            raise _TransientError("the server cannot go on where the last try ended")
        if status not in _FOLLOWED_BY_BYTES:
            reason = f"{_shown(request.url)} {_REFUSALS.get(status, 'was refused')} (HTTP {status})"
            if status in (401, 403):
                reason += f"; if it needs a token, set {self._settings.token_variable} (sent over https only)"
            raise ObjectError(reason)
        if headers.get("Content-Encoding", "identity") != "identity" and not urlsplit(request.url).path.endswith(".gz"):
            raise ObjectError(f"{_shown(request.url)} came compressed, although its plain bytes were asked for")
        if status == 206:
            place = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            if place is None or int(place[1]) != part.size:
                part.restart()
                raise _TransientError("the server sent another piece than the missing one")
            total: int | None = int(place[2])
        else:
            if part.size:
                part.restart()  # the file changed, or the server knows no ranges
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        if total is not None:
            _check_size(request, total)
        return total

    def _pool(self, url: str) -> urllib3.PoolManager:
        """Connections to the URL's host: direct, or through the proxy that the environment names for it."""
        proxy = None
        if not _is_loopback(url) and not urllib.request.proxy_bypass(urlsplit(url).hostname or ""):
            proxy = urllib.request.getproxies().get(_scheme(url))
        with self._lock:
            if (proxy or "") not in self._pools:
                self._pools[proxy or ""] = _make_pool(proxy, self._settings.parallel)
            return self._pools[proxy or ""]


class _Pace:
    """A token bucket of one token: requests keep their distance, all threads together."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next = self._held_until = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Returns when the next request may go."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._interval
        while (seconds := max(turn, self._held_until) - time.monotonic()) > 0:
            time.sleep(seconds)

    def hold(self, seconds: float) -> None:
        """No request goes before so long: a server that limits us means all threads."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)


def _verify(request: _Request, part: Part, announced: str | None) -> str:
    if request.size is not None and part.size != request.size:
        raise _WrongBytesError(f"has {part.size} bytes instead of {request.size}")
    digest, expected = part.digest(), request.sha256 or announced
    if expected not in (None, digest):
        raise _WrongBytesError(f"has other bytes than it should: its SHA-256 begins {digest[:12]}, not {expected[:12]}")
    return digest


def _check_size(request: _Request, total: int) -> None:
    """Refuses a file by its size, before it is fetched."""
    if request.max_bytes is not None and total > request.max_bytes:
        raise _too_large(request, total)
    if request.size is not None and total != request.size:
        raise _WrongBytesError(f"has {total} bytes instead of {request.size}")


def _too_large(request: _Request, total: int | None) -> ObjectError:
    size = f"{total / 1e6:.1f} MB" if total is not None else "more"
    limit = f"{(request.max_bytes or 0) / 1e6:.1f} MB"
    return ObjectError(f"{_shown(request.url)} has {size}, and at most {limit} are allowed")


def _connection_error(error: HTTPError, timeout_seconds: float) -> _TransientError:
    # Ours rather than urllib3's words: those may hold the query of a signed address.
    for kind, reason in (  # the more special class first: to urllib3 a missing host is a kind of missing connection
        (ReadTimeoutError, f"no byte came for {timeout_seconds:g} s"),
        (NameResolutionError, "its host was not found"),
        (NewConnectionError, "its host takes no connection"),
        (ConnectTimeoutError, f"no connection within {timeout_seconds:g} s"),
        (ProxyError, "the proxy takes no connection"),
        (SSLError, "no secure connection (is its certificate known here?)"),
    ):
        if isinstance(error, kind):
            return _TransientError(reason, unreachable=kind is not ReadTimeoutError)
    return _TransientError("the connection was cut")


def _validator(response: urllib3.BaseHTTPResponse) -> str | None:
    """What names this version of the file: a strong ETag, else a date."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None where there is none to be understood."""
    if value and value.strip().isdecimal():
        return float(value)
    with suppress(ValueError, OverflowError):
        if date := parsedate_tz(value or ""):
            return max(0.0, mktime_tz(date) - time.time())
    return None


def _next_url(first: str, url: str, location: str | None) -> str:
    try:
        following = urljoin(url, location or "")
        valid = location and _scheme(following) != "file"
    except (ValueError, ObjectError):
        valid = False
    if not valid:
        raise ObjectError(f"{_shown(first)} redirects to what is no web address")
    if _scheme(url) == "https" and _scheme(following) == "http":
        raise ObjectError(f"{_shown(first)} redirects from https to plain http")
    return following


def _make_pool(proxy: str | None, parallel: int) -> urllib3.PoolManager:
    if proxy is None:
        return urllib3.PoolManager(maxsize=parallel)
    place = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    login = urllib3.make_headers(proxy_basic_auth=unquote(place.auth)) if place.auth else None
    try:
        return urllib3.ProxyManager(place._replace(auth=None).url, proxy_headers=login, maxsize=parallel)
    except ProxySchemeUnknown:
        reason = f"the proxy that the environment names is one for {place.scheme}, not for http or https"
        raise UsageError(reason) from None


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
        raise UsageError(f"{key}: {_shown(endpoint)} does not name a folder of this machine: file:///path")
    return endpoint.rstrip("/")


def _scheme(url: str) -> str:
    """http, https or file.

    Raises:
        ObjectError: it is something else, or no address at all.
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


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(url: str) -> str:
    """The URL without what may be secret in it: login and query."""
    return re.sub(r"//[^/@]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])
