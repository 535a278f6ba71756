"""The client of a server that answers questions about pictures, against one that misbehaves in every way."""

import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipgs.config import Http
from clipgs.core import web
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.triplets import chat
from clipgs.triplets.chat import Answer, Endpoint, Question, base_url
from tests.catalog.server import Fault
from tests.triplets.chat_server import PASSING_FAULTS, ChatServer, completion

MUG = Question([b"picture of a mug"], 0)
ANSWER = Answer("A red mug.", "stop", None)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(chat, "FIRST_PAUSE_SECONDS", 0.02)


@pytest.fixture
def server():
    with ChatServer() as made:
        yield made


@pytest.fixture
def endpoint(server, tmp_path):
    """Makes endpoints that share a cache."""

    def made(**settings):
        given = {"address": server.address, "model": "vlm", "per_minute": 60_000.0, "parallel": 2, "retries": 3}
        return Endpoint(Http(**given | settings), tmp_path / "answers")

    return made


def test_a_question_is_sent_as_the_api_has_it(server, endpoint):
    asked = endpoint(extra={"top_p": 0.9}, max_tokens=None, temperature=0.5)
    assert asked.ask(Question([b"one", b"two"], 0)) == ANSWER
    (fields,) = server.requests
    assert {name: fields[name] for name in fields if name != "messages"} == {
        "model": "vlm",
        "temperature": 0.5,
        "top_p": 0.9,
    }
    (message,) = fields["messages"]
    assert message["role"] == "user"
    assert message["content"][0] == {"type": "text", "text": Http().prompt}
    assert server.pictures(0) == [b"one", b"two"]
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "fault",
    [
        *PASSING_FAULTS,
        Fault(status=408),
        Fault(status=502),
        Fault(status=529),
        Fault(stall_seconds=2.0),
        Fault(bytes_per_second=20),
        Fault(body=b""),
        Fault(body=b"null"),
        Fault(body=b"[" * 100_000),
        Fault(body=b'{"choices": []}'),
        Fault(body=b'{"choices": [{"message": "text"}]}'),
        Fault(body=b'{"choices": [{"message": {"content": 7}}]}'),
        Fault(body=b"\xff\xfe"),
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(server, endpoint, fault):
    server.faults = [fault]
    assert endpoint(timeout_seconds=0.7).ask(MUG) == ANSWER
    assert len(server.requests) == 2


def test_an_answer_may_come_in_parts_and_without_a_reason_for_its_end(server, endpoint):
    server.reply = lambda fields: completion([{"type": "text", "text": "A red "}, {"text": "mug."}], None)
    assert endpoint().ask(MUG) == Answer("A red mug.", None, None)
    server.reply = lambda fields: completion(None, "content_filter", refusal="no")
    assert endpoint().ask(Question([b"other"], 0)) == Answer("", "content_filter", "no")


def test_retry_after_is_obeyed_by_all_threads(server, endpoint):
    server.faults = [Fault.limit("1")]
    asked = endpoint()
    start = time.monotonic()
    assert asked.ask(MUG) == ANSWER
    assert 1.0 <= time.monotonic() - start < 4.0
    server.faults = [Fault.limit("7200")]
    with pytest.raises(ClipgsError, match=r"asks to wait 120 minutes.*answers are kept"):
        asked.ask(Question([b"other"], 0))


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "got no token: set the environment variable OPENAI_API_KEY"),
        (403, "got no token: set the environment variable OPENAI_API_KEY"),
        (404, r"a model vlm \(caption\.http\.model\), and the address http://127"),
        (302, "which leads to https://host/login; .* mostly ends in /v1"),
        (307, "which leads to https://host/login; .* mostly ends in /v1"),
    ],
)
def test_a_wrong_configuration_is_said_after_one_request(server, endpoint, status, words):
    redirects = (("Location", "https://me:secret@host/login?key=secret"),) if status < 400 else ()
    server.always = Fault(status=status, headers=redirects)
    with pytest.raises(UsageError, match=words) as error:
        endpoint().ask(MUG)
    assert len(server.requests) == 1
    assert str(error.value).startswith(
        f"config: caption.http: 127.0.0.1:{server.port} refused: HTTP {status} (no luck)"
    )
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_refused_question_is_that_objects_failure_however_many_there_are(server, endpoint):
    server.always = Fault(status=400, body=b'{"error": {"message": "image\\n too small"}}')
    asked = endpoint()
    for number in range(9):
        with pytest.raises(ObjectError, match=r"refused the question: HTTP 400 \(image too small\)"):
            asked.ask(Question([b"x"], number))
    assert len(server.requests) == 9  # none twice
    server.always = None
    assert asked.ask(MUG) == ANSWER


def test_an_error_that_stays_is_the_objects_failure(server, endpoint):
    server.always = Fault(status=500)
    with pytest.raises(ObjectError, match=r"gave no answer in 4 tries: HTTP 500 \(no luck\)"):
        endpoint().ask(MUG)
    assert len(server.requests) == 4


def test_a_limit_that_stays_and_a_server_that_is_gone_are_no_objects_failure(server, endpoint):
    server.always = Fault(status=429, body=b'{"error": "quota is used up"}')
    with pytest.raises(ClipgsError, match=r"in 2 tries: HTTP 429 \(quota is used up\); .*answers are kept"):
        endpoint(retries=1).ask(MUG)
    with pytest.raises(ClipgsError, match="in 2 tries: its host accepts no connection"):
        endpoint(retries=1, address="http://127.0.0.1:9/v1").ask(MUG)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_never_asked_again(server, endpoint, monkeypatch):
    for _ in range(2):
        assert endpoint().ask(MUG) == ANSWER
    monkeypatch.setenv("MY_TOKEN", "secret")
    same = {"address": "http://127.0.0.1:9/v1", "token_variable": "MY_TOKEN", "parallel": 1, "per_minute": 1.0}
    assert endpoint(**same, retries=0, timeout_seconds=1.0, views=2, candidates=1).ask(MUG) == ANSWER
    assert len(server.requests) == 1
    others = [{"model": "other"}, {"prompt": "What?"}, {"temperature": 0.1}, {"max_tokens": 9}, {"extra": {"seed": 1}}]
    for other in others:
        endpoint(**other).ask(MUG)
    endpoint().ask(MUG._replace(number=1))
    endpoint().ask(Question([b"another picture"], 0))
    assert len(server.requests) == 1 + len(others) + 2


def test_two_at_once_ask_once(server, endpoint):
    server.faults = [Fault(stall_seconds=0.3, body=json.dumps(completion("A red mug.")).encode())]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: endpoint().ask(MUG), range(8))) == {ANSWER}  # a lock a file, as between jobs
    assert len(server.requests) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"text": "x"}', b"\xff"])
def test_a_damaged_answer_is_asked_again(server, endpoint, tmp_path, damage):
    endpoint().ask(MUG)
    (file,) = (tmp_path / "answers").rglob("*.json")
    file.write_bytes(damage)
    file.with_name(f".{file.name}.part").write_bytes(b'{"te')  # of a job that was killed
    assert endpoint().ask(MUG) == ANSWER
    assert endpoint().ask(MUG) == ANSWER
    assert len(server.requests) == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_is_one_line(server, endpoint, tmp_path):
    (tmp_path / "answers").write_text("a file")
    with pytest.raises(ClipgsError, match=r"answers.*: Not a directory|answers.*: File exists"):
        endpoint().ask(MUG)


# --- the token and the address ---------------------------------------------------------------------------------------


def test_the_token_is_sent_and_written_nowhere(server, endpoint, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    asked = endpoint()
    server.faults = [Fault(status=500, body=b"sk-secret is slow")]
    asked.ask(MUG)
    assert server.headers[1]["authorization"] == "Bearer sk-secret"
    server.always = Fault(status=401, body=b'{"error": {"message": "Wrong key: sk-secret"}}')
    with pytest.raises(UsageError, match=r"Wrong key: \.\.\..*does not accept the token in the environment") as error:
        asked.ask(Question([b"other"], 0))
    assert "secret" not in f"{error.value}{caplog.text}"
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.parametrize("secret", ["sk secret", "sk-s\u00e9cret"])
def test_what_is_no_token_is_neither_sent_nor_shown(endpoint, monkeypatch, secret):
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    with pytest.raises(UsageError, match="OPENAI_API_KEY is not a token") as error:
        endpoint()
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://[::1/v1", "file:///x", "a b"]
)
def test_what_is_no_address_is_said(address):
    with pytest.raises(UsageError, match=re.escape(f"config: caption.http.address = {address}: this is no address")):
        base_url(address)


def test_an_address_holds_no_secret():
    for address in (
        "http://me:secret@host/v1",
        "https://host/v1?key=secret",
        "http//me:secret@host/v1",
        "me:secret@host",
    ):
        with pytest.raises(UsageError) as error:
            base_url(address)
        assert "secret" not in str(error.value)


def test_an_address_may_be_the_whole_one():
    for address in ("https://host/v1", "https://host/v1/", "https://host/v1/chat/completions"):
        assert base_url(address) == "https://host/v1"


# --- pace ------------------------------------------------------------------------------------------------------------


def test_requests_keep_their_pace(server, endpoint):
    asked = endpoint(per_minute=600.0)
    start = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: asked.ask(Question([b"x"], number)), range(6)))
    assert 0.5 <= time.monotonic() - start < 2.0


def test_leaving_ends_all_waiting(server, endpoint):
    server.always = Fault(status=503, headers=(("Retry-After", "600"),))
    errors = []
    with endpoint() as asked:

        def ask():
            with pytest.raises(ClipgsError, match="stopped") as error:
                asked.ask(MUG)
            errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        while not server.requests:
            time.sleep(0.01)
    thread.join(5.0)
    assert len(errors) == 1


def test_pauses_grow_and_are_never_the_same_for_all():
    assert max(web.pause_seconds(1, 0.5) for _ in range(200)) <= 0.5
    assert max(web.pause_seconds(1000, 0.5) for _ in range(200)) <= web.LONGEST_PAUSE_SECONDS
    assert len({web.pause_seconds(3, 0.5) for _ in range(20)}) == 20
