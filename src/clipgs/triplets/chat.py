"""Questions about pictures, to any server that answers as OpenAI's chat completions do. Imports no torch.

An answer is kept in the cache under a hash of all that the question holds, and no question that has an answer there is
sent again: not after a kill, not by another job. The address is not part of the hash: the model is, wherever it runs.
"""

import base64
import hashlib
import json
import logging
import re
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

from clipgs import __version__
from clipgs.catalog.parts import Part
from clipgs.config import Http
from clipgs.core.errors import ClipgsError, ObjectError, UsageError, advice
from clipgs.core.seeds import canonical_json, json_digest
from clipgs.core.web import (
    FIRST_PAUSE_SECONDS,
    LONGEST_OBEYED_SECONDS,
    Pace,
    Pools,
    TransientError,
    connection_error,
    pause_seconds,
    retry_after,
    token,
)

log = logging.getLogger(__name__)

KEY = "config: caption.http"
_SAID = 200  # characters of a server's own words in a message
_BLOCK_BYTES = 1 << 16
_MOST_BYTES = 1 << 24  # of an answer; a caption has a thousandth of it
# No picture is the cause, and no other try helps: the address, the token or the model is wrong.
_WRONG = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404, 405, 410})
_PASSING = frozenset({408, 425, 429})  # and all from 500 on


class Answer(NamedTuple):
    """What the model said, as the server sent it."""

    text: str
    finish: str | None  # why it ended: stop, length, content_filter
    refusal: str | None


class Question(NamedTuple):
    """A request, without what cannot change its answer."""

    pictures: Sequence[bytes]  # PNG
    number: int  # of the candidate: the same question is asked several times


class Endpoint:
    """The configured server. Threads may share it; leaving its `with` block ends all waiting.

    Args:
        cache: the folder of answers.

    Raises:
        UsageError: the address or the token is none.
    """

    def __init__(self, settings: Http, cache: Path) -> None:
        self._settings, self._cache = settings, cache
        self._url = f"{base_url(settings.address)}/chat/completions"
        self._host = urlsplit(self._url).netloc
        self._secret = token(settings.token_variable)
        self._pools = Pools(settings.parallel)
        self._pace = Pace(settings.per_minute / 60)
        self._lock = threading.Lock()
        self._in_a_row = 0  # questions without an answer since the last that had one

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pace.stopped.set()

    def ask(self, question: Question) -> Answer:
        """The answer, from the cache or from the server.

        Raises:
            ObjectError: there is none to this question.
            ClipgsError: other questions would have none either: the address, the token or the model is wrong, the
                server cannot be reached or answers nothing, or the cache cannot be written.
        """
        settings = self._settings
        fields = {"model": settings.model, "temperature": settings.temperature, "max_tokens": settings.max_tokens}
        fields = settings.extra | {name: value for name, value in fields.items() if value is not None}
        hashes = [hashlib.sha256(picture).hexdigest() for picture in question.pictures]
        asked = {"prompt": settings.prompt, "pictures": hashes, "number": question.number}
        key = json_digest({"fields": fields, **asked})
        path = self._cache / key[:2] / f"{key}.json"
        if (kept := _read(path)) is not None:
            return kept
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with Part.claimed(path) as part:  # another thread or job may be asking the same
                if part.size:
                    part.restart()
                if (kept := _read(path)) is not None:
                    return kept
                answer = self._answered({**fields, "messages": [_message(settings.prompt, question.pictures)]})
                part.write(canonical_json(answer._asdict()).encode())
                part.publish("", with_sidecar=False)
                return answer
        except OSError as error:
            raise ClipgsError(f"{path}: {error.strerror or error}{advice(error, 'cache')}") from None

    def _answered(self, fields: dict[str, Any]) -> Answer:
        body, failures = json.dumps(fields).encode(), 0
        while True:
            try:
                answer = self._try(body)
            except TransientError as error:
                failures += 1
                if failures > self._settings.retries:
                    self._give_up(error, f"{self._host} gave no answer in {failures} tries: {error}")
                self._pause(failures, error)
            else:
                with self._lock:
                    self._in_a_row = 0
                return answer

    def _give_up(self, error: TransientError, reason: str) -> NoReturn:
        """The failure of one question, or that of the stage where the question is not the cause."""
        with self._lock:
            self._in_a_row += 1
            hopeless = self._in_a_row >= 2 * self._settings.parallel
        if hopeless:
            reason = f"{self._in_a_row} questions in a row had no answer, the last because {reason}"
        if hopeless or error.unreachable:
            raise ClipgsError(
                f"caption.http: {reason}; see what the server says, and run the same command again: answers are kept"
            ) from None
        raise ObjectError(reason) from None

    def _pause(self, failures: int, error: TransientError) -> None:
        seconds = pause_seconds(failures, FIRST_PAUSE_SECONDS)
        if error.wait_seconds is not None:
            if error.wait_seconds > LONGEST_OBEYED_SECONDS:
                raise ClipgsError(
                    f"{self._host} asks to wait {error.wait_seconds / 60:.0f} minutes; run the same command again "
                    "after that, with a lower caption.http.per_minute: answers are kept"
                )
            self._pace.hold(error.wait_seconds)
            seconds = error.wait_seconds + min(seconds, 1.0)
        log.log(logging.INFO if seconds > 5 else logging.DEBUG, "%s: %s; again in %.1f s", self._host, error, seconds)
        if self._pace.stopped.wait(seconds):
            raise ClipgsError("caption.http: stopped")

    def _try(self, body: bytes) -> Answer:
        headers = {"User-Agent": f"clipgs/{__version__}", "Content-Type": "application/json"}
        if self._secret:
            headers["Authorization"] = f"Bearer {self._secret}"
        self._pace.wait()
        if self._pace.stopped.is_set():
            raise ClipgsError("caption.http: stopped")
        seconds = self._settings.timeout_seconds
        until = time.monotonic() + seconds
        try:
            response = self._pools.of(self._url).urlopen(
                "POST",
                self._url,
                body=body,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=seconds,
            )
            with closing(response):
                data = _body(response, until)
        except HTTPError as error:
            raise connection_error(error, seconds) from None
        if response.status == 200:
            return self._parsed(data)
        said = f"HTTP {response.status}{self._said(data)}"
        if place := _without_secrets(response.headers.get("Location", "")):
            said += f", which leads to {place}"
        wait = retry_after(response.headers.get("Retry-After"))
        if response.status in _PASSING or response.status >= 500:
            if response.status == 429 and wait is None:
                self._pace.hold(FIRST_PAUSE_SECONDS)
            # No picture is the cause of a limit of the rate.
            raise TransientError(said, wait, unreachable=response.status == 429)
        if response.status in _WRONG:
            raise UsageError(f"{KEY}: {self._host} refused: {said}; {self._remedy(response.status)}")
        raise ObjectError(f"{self._host} refused the question: {said}")

    def _remedy(self, status: int) -> str:
        variable = self._settings.token_variable
        if status in (401, 402, 403):
            own = "does not accept the token in" if self._secret else "got no token: set"
            return f"it {own} the environment variable {variable} (caption.http.token_variable)"
        if status < 400:
            return "correct caption.http.address, which mostly ends in /v1: redirects are not followed"
        return (
            f"check that the server has a model {self._settings.model} (caption.http.model), and the address "
            f"{self._settings.address} (caption.http.address), which mostly ends in /v1"
        )

    def _said(self, data: bytes) -> str:
        """The server's own words in an answer that is an error, without the token."""
        text = data.decode(errors="replace")
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            for name in ("error", "message", "detail"):
                if isinstance(found, dict) and name in found:
                    found = found[name]
            text = found if isinstance(found, str) else json.dumps(found)
        if self._secret:
            for secret in (self._secret, json.dumps(self._secret)[1:-1]):
                text = text.replace(secret, "...")
        text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
        return f" ({text[:_SAID]})" if text else ""

    def _parsed(self, data: bytes) -> Answer:
        try:
            choice = json.loads(data)["choices"][0]
            message = choice["message"]
            content, refusal, finish = (message.get("content"), message.get("refusal"), choice.get("finish_reason"))
            if isinstance(content, list):  # of parts
                content = "".join(part.get("text") or "" for part in content)
            if not all(isinstance(value, str | None) for value in (content, refusal, finish)):
                raise TypeError
            if not content and not refusal and finish not in ("length", "content_filter"):
                raise TypeError  # nothing was said, which another try may mend, so it is not kept
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise TransientError(f"what it sent is no answer{self._said(data)}") from None
        return Answer(content or "", finish, refusal)


def base_url(address: str) -> str:
    """The address to which /chat/completions is added.

    Raises:
        UsageError: it is no address of http or https, or holds a login or a query, which may be secret.
    """
    try:
        parts = parse_url(address)
    except LocationParseError:
        parts = urllib3.util.Url()
    if parts.scheme not in ("http", "https") or not parts.host:
        shown = re.sub(r"[^/]*@", "", _without_secrets(address))
        raise UsageError(f"{KEY}.address = {shown}: this is no address of http or https, like http://localhost:8000/v1")
    if parts.auth or parts.query or parts.fragment:
        raise UsageError(f"{KEY}.address must hold no login or query; put the token into the environment instead")
    return address.strip().rstrip("/").removesuffix("/chat/completions")


def _without_secrets(address: str) -> str:
    """An address without login and query, which may be secret."""
    return re.sub(r"//[^/]*@", "//", re.split(r"[?#]", address, maxsplit=1)[0])[:_SAID]


def _message(prompt: str, pictures: Sequence[bytes]) -> dict[str, Any]:
    urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": prompt}, *images]}


def _body(response: urllib3.BaseHTTPResponse, until: float) -> bytes:
    """All that was sent. A server that sends a byte now and then does not hold a request for ever."""
    data = bytearray()
    while block := response.read1(_BLOCK_BYTES):
        data += block
        if len(data) > _MOST_BYTES:
            raise TransientError(f"its answer has more than {_MOST_BYTES / 1e6:.0f} MB")
        if time.monotonic() > until:
            raise TransientError("its answer was not whole in time")
    return bytes(data)


def _read(path: Path) -> Answer | None:
    """The answer in a file of the cache; None without one, or where a power cut left no whole one."""
    with suppress(OSError, ValueError, TypeError):
        return Answer(**json.loads(path.read_bytes()))
    return None
