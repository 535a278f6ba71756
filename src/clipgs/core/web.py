"""What requests over HTTP have in common: connections, their pace, pauses between tries, and tokens.

urllib3's Retry is not used. It cannot resume a body that was cut, counts a redirect as a try, does not wait before the
second try, shortens a Retry-After of a day to six hours, and makes one thread wait instead of all. It does not see an
answer that is no JSON.
"""

import ipaddress
import os
import random
import re
import threading
import time
import urllib.request
from contextlib import suppress
from email.utils import mktime_tz, parsedate_tz
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ProxySchemeUnknown,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import parse_url

from clipgs.core.errors import UsageError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_OBEYED_SECONDS = 3600.0  # if a server asks for a longer pause, the run ends


class TransientError(Exception):
    """A failure after which another try may succeed, not before `wait_seconds` if the server asked for a pause."""

    def __init__(self, reason: str, wait_seconds: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds
        self.unreachable = unreachable


class Pace:
    """A rate limit for the requests of all threads."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second
        self._next = self._held_until = 0.0
        self._lock = threading.Lock()
        self.stopped = threading.Event()  # once it is set, nobody waits

    def wait(self) -> None:
        """Returns when the next request may be sent."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._interval
        while (seconds := max(turn, self._held_until) - time.monotonic()) > 0:
            if self.stopped.wait(seconds):
                return

    def hold(self, seconds: float) -> None:
        """Stops the requests of all threads for that long."""
        with self._lock:
            self._held_until = max(self._held_until, time.monotonic() + seconds)


class Pools:
    """Connections to hosts, direct or through the environment's proxy. Threads may share them."""

    def __init__(self, parallel: int) -> None:
        self._parallel = parallel
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.PoolManager] = {}

    def of(self, url: str) -> urllib3.PoolManager:
        """Those to the URL's host.

        Raises:
            UsageError: the environment's proxy is neither http nor https.
        """
        proxy = ""
        if not is_loopback(url) and not urllib.request.proxy_bypass(urlsplit(url).hostname or ""):
            proxies = urllib.request.getproxies()
            general = proxies.get("all", "")
            proxy = proxies.get(urlsplit(url).scheme) or ("" if general.startswith("socks") else general)
        with self._lock:
            if proxy not in self._pools:
                self._pools[proxy] = _make_pool(proxy, self._parallel)
            return self._pools[proxy]


def _make_pool(proxy: str, parallel: int) -> urllib3.PoolManager:
    if not proxy:
        return urllib3.PoolManager(maxsize=parallel)
    place = parse_url(proxy if "://" in proxy else f"http://{proxy}")
    login = urllib3.make_headers(proxy_basic_auth=unquote(place.auth)) if place.auth else None
    try:
        return urllib3.ProxyManager(place._replace(auth=None).url, proxy_headers=login, maxsize=parallel)
    except ProxySchemeUnknown:
        raise UsageError(f"the environment's proxy is for {place.scheme}; only http and https are supported") from None


def pause_seconds(failures: int, first: float) -> float:
    """How long to wait after so many failures. Full jitter: threads that failed together do not try again together."""
    return random.uniform(0, min(LONGEST_PAUSE_SECONDS, first * 2 ** min(failures - 1, 30)))


def token(variable: str) -> str | None:
    """The secret in an environment variable; None without one.

    Raises:
        UsageError: it holds what no header may hold. The HTTP library's error would show it.
    """
    secret = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]*", secret):
        raise UsageError(f"the environment variable {variable} is not a token: it has spaces or non-ASCII characters")
    return secret or None


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def connection_error(error: HTTPError, timeout_seconds: float) -> TransientError:
    """The error of a connection in our words: urllib3's text may hold the query of a signed address."""
    for kind, reason in (  # subclasses first: NameResolutionError is a NewConnectionError
        (ReadTimeoutError, f"no byte was received for {timeout_seconds:g} s"),
        (NameResolutionError, "its host was not found"),
        (NewConnectionError, "its host accepts no connection"),
        (ConnectTimeoutError, f"no connection within {timeout_seconds:g} s"),
        (ProxyError, "the proxy accepts no connection"),
        (SSLError, "no secure connection (is its certificate known here?)"),
    ):
        if isinstance(error, kind):
            return TransientError(reason, unreachable=kind is not ReadTimeoutError)
    return TransientError("the connection was cut")


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for; None if it is missing or invalid."""
    if value and value.strip().isdecimal():
        return float(value)
    with suppress(ValueError, OverflowError):
        if date := parsedate_tz(value or ""):
            return max(0.0, mktime_tz(date) - time.time())
    return None
