import errno
import hashlib
import os
import resource
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from clipgs.catalog import downloads, parts
from clipgs.catalog.downloads import Downloader
from clipgs.config import Downloads
from clipgs.core.errors import ClipgsError, ObjectError, UsageError
from clipgs.core.files import check, older_sidecar, sidecar
from tests.catalog.server import OBJAVERSE, Fault, Server, make_objaverse

DATA = bytes(range(256)) * 40  # 10 kB
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "HF_TOKEN":
            monkeypatch.delenv(name)
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_SECONDS", 0.02)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.glb").write_bytes(DATA)
    return folder


@pytest.fixture
def server(folder):
    with Server(folder) as server:
        yield server


@pytest.fixture
def place(tmp_path) -> Path:
    return tmp_path / "cache" / "a.glb"


def downloader(**settings) -> Downloader:
    return Downloader(Downloads(**{"per_second": 5000.0, "timeout_seconds": 5.0, "retries": 4, **settings}))


def files(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()} if path.parent.is_dir() else set()


# --- what is whole -----------------------------------------------------------------------------------------------


def test_a_file_comes_whole_with_a_sidecar_and_only_once(server, place):
    first = downloader()
    assert first.get(f"{server.url}/a.glb", place) == place
    assert place.read_bytes() == DATA
    check(place)
    assert files(place) == {"a.glb", ".a.glb.check"}
    first.get(f"{server.url}/a.glb", place)
    downloader().get(f"{server.url}/a.glb", place)
    assert server.requests["/a.glb"] == 1


def test_a_sidecar_of_the_older_name_counts_and_goes_with_its_file(server, place):
    downloader().get(f"{server.url}/a.glb", place)
    os.rename(sidecar(place), older_sidecar(place))
    downloader().get(f"{server.url}/a.glb", place)
    assert server.requests["/a.glb"] == 1
    place.write_bytes(b"damaged")
    downloader().get(f"{server.url}/a.glb", place)
    assert server.requests["/a.glb"] == 2
    assert place.read_bytes() == DATA
    assert files(place) == {"a.glb", ".a.glb.check"}


def test_a_known_hash_needs_no_sidecar(server, place):
    downloader().get(f"{server.url}/a.glb", place, sha256=SHA256.upper())
    downloader().get(f"{server.url}/a.glb", place, sha256=SHA256)
    assert files(place) == {"a.glb"}
    assert server.requests["/a.glb"] == 1


@pytest.mark.parametrize("known", [{}, {"sha256": SHA256}])
@pytest.mark.parametrize("damaged", [DATA[:-1], DATA[:-1] + b"?"])
def test_a_damaged_file_is_fetched_again(server, place, known, damaged, caplog):
    downloader().get(f"{server.url}/a.glb", place, **known)
    place.write_bytes(damaged)
    downloader().get(f"{server.url}/a.glb", place, **known)
    assert place.read_bytes() == DATA
    assert "damaged" in caplog.text


def test_a_file_that_someone_else_put_there_is_taken_if_its_hash_is_known(server, place):
    place.parent.mkdir()
    place.write_bytes(DATA)
    downloader().get(f"{server.url}/a.glb", place, sha256=SHA256)
    assert not server.requests
    downloader().get(f"{server.url}/a.glb", place)  # it may be half of the file
    assert server.requests["/a.glb"] == 1


# --- what may pass -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status=status) for status in (429, 500, 502, 503, 504)),
        Fault(cut_after=0),
        Fault(cut_after=4000),
        Fault(status=503, headers=(("Retry-After", "nonsense"),)),
    ],
)
def test_what_may_pass_is_tried_again(server, place, fault):
    server.faults["/a.glb"] = [fault, fault]
    downloader().get(f"{server.url}/a.glb", place)
    assert place.read_bytes() == DATA
    assert server.requests["/a.glb"] == 3


def test_tries_end(server, place):
    server.always["/a.glb"] = Fault(status=503)
    with pytest.raises(ObjectError, match=r"a\.glb could not be fetched in 3 tries: the server answered 503$"):
        downloader(retries=2).get(f"{server.url}/a.glb", place)
    assert server.requests["/a.glb"] == 3
    assert files(place) == set()


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed_by_all_threads(server, place, folder, form):
    (folder / "b.glb").write_bytes(DATA)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    server.faults["/a.glb"] = [Fault.limit("1" if form == "seconds" else date)]
    fetch = downloader()
    times = {}

    def get(name):
        fetch.get(f"{server.url}/{name}", place.with_name(name))
        times[name] = time.monotonic() - start

    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(get, "a.glb")
        while not server.requests["/a.glb"]:
            time.sleep(0.01)
        time.sleep(0.2)
        pool.submit(get, "b.glb").result()
        first.result()
    assert min(times.values()) > 0.95
    assert server.requests["/a.glb"] == 2


def test_a_very_long_retry_after_ends_the_run(server, place):
    server.faults["/a.glb"] = [Fault.limit("86400")]
    with pytest.raises(ClipgsError, match=r"asks to wait 1440 minutes; run the same command again"):
        downloader().get(f"{server.url}/a.glb", place)


def test_a_server_that_falls_silent_is_left(server, place):
    server.faults["/a.glb"] = [Fault(stall_seconds=3)]
    start = time.monotonic()
    downloader(timeout_seconds=0.3).get(f"{server.url}/a.glb", place)
    assert time.monotonic() - start < 2
    server.always["/a.glb"] = Fault(stall_seconds=1)
    with pytest.raises(ObjectError, match=r"in 2 tries: no byte was received for 0\.2 s"):
        downloader(timeout_seconds=0.2, retries=1).get(f"{server.url}/a.glb", place.with_name("b"))


def test_slow_bytes_are_waited_for(server, place):
    server.faults["/a.glb"] = [Fault(bytes_per_second=20_000)]
    downloader(timeout_seconds=0.4).get(f"{server.url}/a.glb", place)  # 0.5 s in all
    assert server.requests["/a.glb"] == 1


def test_one_dead_object_is_a_failed_one_and_a_dead_host_ends_the_run(folder, place):
    with Server(folder) as gone:
        pass
    url = f"{gone.url}/a.glb"
    fetch = downloader(retries=1, parallel=2)

    def fail_three_times():
        for _ in range(3):
            with pytest.raises(ObjectError, match="could not be fetched in 2 tries: its host accepts no connection"):
                fetch.get(url, place)

    fail_three_times()
    with Server(folder, port=int(url.split(":")[2].split("/")[0])):
        fetch.get(url, place.with_name("b"))
    fail_three_times()  # not in a row with the first
    with pytest.raises(ClipgsError, match=r"could not be reached for 4 files in a row.*endpoint"):
        fetch.get(url, place)


# --- resuming ----------------------------------------------------------------------------------------------------


def test_a_cut_file_is_gone_on_with(server, place):
    server.faults["/a.glb"] = [Fault(cut_after=4000)]
    downloader().get(f"{server.url}/a.glb", place)
    assert place.read_bytes() == DATA
    second = server.seen["/a.glb"][1]
    assert second["range"] == "bytes=4000-"
    assert second["if-range"].startswith('"')
    assert server.sent["/a.glb"] == len(DATA)


def test_the_next_run_goes_on_where_the_last_ended(server, place):
    server.faults["/a.glb"] = [Fault(cut_after=4000), Fault(status=500)]
    with pytest.raises(ObjectError):
        downloader(retries=1).get(f"{server.url}/a.glb", place)
    assert files(place) == {".a.glb.part", ".a.glb.part.json"}
    downloader().get(f"{server.url}/a.glb", place)
    assert place.read_bytes() == DATA
    assert server.sent["/a.glb"] == len(DATA)
    assert files(place) == {"a.glb", ".a.glb.check"}


@pytest.mark.parametrize("options", [{"ranges": False}, {"etags": False}])
def test_a_server_that_cannot_go_on_begins_again(folder, place, options):
    with Server(folder, **options) as server:
        server.faults["/a.glb"] = [Fault(cut_after=4000)]
        downloader().get(f"{server.url}/a.glb", place)
        assert place.read_bytes() == DATA
        assert server.sent["/a.glb"] == len(DATA) + 4000


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_changed_in_between_is_not_mixed(place, folder, heeds):
    with Server(folder, heeds_if_range=heeds) as server:
        server.faults["/a.glb"] = [Fault(cut_after=4000), Fault(status=500)]
        with pytest.raises(ObjectError):
            downloader(retries=1).get(f"{server.url}/a.glb", place)
        (folder / "a.glb").write_bytes(DATA[::-1])
        downloader().get(f"{server.url}/a.glb", place)
    assert place.read_bytes() == DATA[::-1]


def test_many_cuts_are_endured_while_the_file_grows_and_no_longer(place, folder, monkeypatch):
    monkeypatch.setattr(downloads, "_PROGRESS_BYTES", 1000)
    for ranges in (True, False):
        with Server(folder, ranges=ranges) as server:
            server.faults["/a.glb"] = [Fault(cut_after=1000 + 10 * (index % 2)) for index in range(9)]
            fetch = downloader(retries=2)
            if ranges:
                assert fetch.get(f"{server.url}/a.glb", place).read_bytes() == DATA
            else:
                with pytest.raises(ObjectError, match="in 3 tries: the connection was cut"):
                    fetch.get(f"{server.url}/a.glb", place.with_name("b"))


def test_a_part_of_another_address_is_not_gone_on_with(server, place, folder):
    (folder / "b.glb").write_bytes(DATA)  # the same ETag here
    server.faults["/a.glb"] = [Fault(cut_after=4000), Fault(status=500)]
    with pytest.raises(ObjectError):
        downloader(retries=1).get(f"{server.url}/a.glb", place)
    downloader().get(f"{server.url}/b.glb", place)
    assert "range" not in server.seen["/b.glb"][0]


def test_killed_before_the_renaming_it_is_not_fetched_again(server, place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parts.Part, "publish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            downloader().get(f"{server.url}/a.glb", place)
    assert files(place) == {".a.glb.part", ".a.glb.part.json"}
    downloader().get(f"{server.url}/a.glb", place)
    assert place.read_bytes() == DATA
    assert server.requests["/a.glb"] == 1


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "meaning"),
    [(404, "was not found"), (410, "has been removed"), (403, "is not public"), (401, "HF_TOKEN"), (451, "451")],
)
def test_what_will_not_pass_is_not_tried_again(server, place, status, meaning):
    server.always["/a.glb"] = Fault(status=status)
    with pytest.raises(ObjectError, match=meaning) as error:
        downloader().get(f"{server.url}/a.glb?signature=secret", place)
    assert "/a.glb" in str(error.value)
    assert "secret" not in str(error.value)
    assert server.requests["/a.glb"] == 1
    assert files(place) == set()


def test_wrong_bytes_are_never_stored(server, place):
    server.always["/a.glb"] = Fault(body=b"<html>please log in</html>")
    with pytest.raises(ObjectError, match=r"other bytes than it should: its SHA-256 begins \w{12}, not " + SHA256[:12]):
        downloader().get(f"{server.url}/a.glb", place, sha256=SHA256)
    assert files(place) == set()


def test_bytes_that_were_wrong_once_get_a_second_chance(server, place):
    server.faults["/a.glb"] = [Fault(body=DATA[::-1])]
    downloader().get(f"{server.url}/a.glb", place, sha256=SHA256)
    assert place.read_bytes() == DATA


def test_a_hash_that_the_source_announces_is_checked(server, folder, place):
    with Server(folder) as store:
        linked = ("X-Linked-ETag", f'"{SHA256}"')
        server.always["/a.glb"] = Fault.redirect(f"{store.url}/a.glb", linked)
        store.faults["/a.glb"] = [Fault(body=DATA[::-1])]
        downloader().get(f"{server.url}/a.glb", place)
        assert place.read_bytes() == DATA
        assert store.requests["/a.glb"] == 2


def test_a_file_that_is_too_large_is_refused_before_it_comes(server, place):
    with pytest.raises(ObjectError, match=r"has at least 0\.0 MB, and at most 0\.0 MB are allowed"):
        downloader().get(f"{server.url}/a.glb", place, max_bytes=len(DATA) - 1)
    downloader().get(f"{server.url}/a.glb", place, max_bytes=len(DATA))


def test_a_file_of_unknown_length_that_is_too_large_is_left(place):
    class Endless(threading.Thread):
        """Speaks HTTP/1.0 without a length, and never ends."""

        def __init__(self):
            super().__init__(daemon=True)
            import socket

            self.socket = socket.create_server(("127.0.0.1", 0))

        def run(self):
            connection, _ = self.socket.accept()
            with connection, self.socket:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
                try:
                    while True:
                        connection.sendall(bytes(65536))
                except OSError:
                    pass

    endless = Endless()
    port = endless.socket.getsockname()[1]
    endless.start()
    with pytest.raises(ObjectError, match=r"has at least 3\.\d MB, and at most 3\.0 MB are allowed"):
        downloader().get(f"http://127.0.0.1:{port}/a", place, max_bytes=3_000_000)
    assert files(place) == set()
    endless.join(timeout=10)


@pytest.mark.parametrize(
    "url", ["ftp://host/a", "gopher:a", "a.glb", "http://", "http://[", "http://h:99999/", "http://a..b/", ""]
)
def test_other_addresses_are_refused(place, url):
    with pytest.raises(ObjectError, match="is not an address"):
        downloader().get(url, place)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://localhost/a", "", "http://["])
def test_redirects_lead_to_the_web_only(server, place, target):
    server.always["/a.glb"] = Fault.redirect(target)
    with pytest.raises(ObjectError, match="redirects to something that is not a web address"):
        downloader().get(f"{server.url}/a.glb", place)


def test_a_loop_of_redirects_ends(server, place):
    server.always["/a.glb"] = Fault.redirect("/b.glb")
    server.always["/b.glb"] = Fault.redirect("/a.glb")
    with pytest.raises(ObjectError, match="redirects more than 10 times"):
        downloader().get(f"{server.url}/a.glb", place)


def test_https_does_not_fall_back_to_http():
    with pytest.raises(ObjectError, match="from https to plain http"):
        downloads._next_url("https://a/b", "https://a/b", "http://a/b")


# --- endpoint and token ------------------------------------------------------------------------------------------


def test_the_endpoint_stands_in_the_place_of_scheme_and_host(tmp_path):
    base = "https://huggingface.co/datasets/allenai/objaverse/resolve/main"
    assert downloader().resolve(base, "glbs/a b.glb") == f"{base}/glbs/a%20b.glb"
    mirror = downloader(endpoint="https://mirror.org/hf/").resolve(base + "/", "glbs/a#.glb")
    assert mirror == "https://mirror.org/hf/datasets/allenai/objaverse/resolve/main/glbs/a%23.glb"
    local = downloader(endpoint=tmp_path.as_uri()).resolve(base, "a.glb")
    assert local == f"{tmp_path.as_uri()}/datasets/allenai/objaverse/resolve/main/a.glb"


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a\\b", "a\0"])
def test_a_name_does_not_lead_out_of_its_base(name):
    with pytest.raises(ObjectError, match="is not the name of a file under https://host/x"):
        downloader().resolve("https://host/x", name)


@pytest.mark.parametrize(
    "endpoint", ["mirror.org", "ftp://mirror.org", "https://", "file://host/x", "https://u:p@m.org"]
)
def test_a_wrong_endpoint_is_said_at_once(endpoint):
    with pytest.raises(UsageError, match=r"^config: catalog\.downloads\.endpoint") as error:
        downloader(endpoint=endpoint)
    assert "u:p" not in str(error.value)


def test_the_token_goes_to_the_endpoint_alone(server, folder, place, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch = downloader(endpoint=server.url)
    with Server(folder, host="localhost") as other, Server(folder) as neighbour:
        fetch.get(f"{server.url}/a.glb", place, token=True)
        assert server.seen["/a.glb"][0]["authorization"] == "Bearer hf_secret"
        fetch.get(f"{server.url}/a.glb", place.with_name("b"))
        assert "authorization" not in server.seen["/a.glb"][1]
        for index, elsewhere in enumerate((other, neighbour)):
            server.faults["/a.glb"] = [Fault.redirect(f"{elsewhere.url}/a.glb")]
            fetch.get(f"{server.url}/a.glb", place.with_name(f"c{index}"), token=True)
            fetch.get(f"{elsewhere.url}/a.glb", place.with_name(f"d{index}"), token=True)
            assert elsewhere.requests["/a.glb"] == 2
            assert not any("authorization" in headers for headers in elsewhere.seen["/a.glb"])
        server.always["/a.glb"] = Fault(status=403)
        with pytest.raises(ObjectError) as error:
            fetch.get(f"{server.url}/a.glb", place.with_name("e"), token=True)
    assert "hf_secret" not in str(error.value) + caplog.text


@pytest.mark.parametrize("token", ["hf secret", "hf\nsecret", "hf_sécret"])
def test_what_is_no_token_is_neither_sent_nor_shown(server, place, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UsageError, match=r"HF_TOKEN is not a token: it has spaces or non-ASCII characters$"):
        downloader().get(f"{server.url}/a.glb", place, token=True)
    assert not server.requests


def test_the_token_is_not_sent_in_the_clear(server, place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("http_proxy", server.url)  # asks this server for the other host's file
    downloader(endpoint="http://objects.invalid").get("http://objects.invalid/a.glb", place, token=True)
    (headers,) = server.seen["/a.glb"]
    assert headers["host"] == "objects.invalid"
    assert "authorization" not in headers


def test_the_environments_proxy_is_used_with_its_login_and_not_for_loopback(server, place, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url.replace("//", "//me:pass%20word@"))
    downloader().get("http://objects.invalid/a.glb", place)
    assert server.seen["/a.glb"][0]["proxy-authorization"] == "Basic bWU6cGFzcyB3b3Jk"
    downloader().get(f"{server.url}/a.glb", place.with_name("b"))
    assert "proxy-authorization" not in server.seen["/a.glb"][1]


def test_a_proxy_that_is_not_understood_is_said(place, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks5://me:secret@localhost:1")
    with pytest.raises(UsageError, match=r"the environment's proxy is for socks5; only http"):
        downloader().get("http://objects.invalid/a.glb", place)


def test_a_folder_can_be_the_endpoint(folder, place):
    fetch = downloader(endpoint=folder.as_uri())
    fetch.get(fetch.resolve("https://host", "a.glb"), place)
    assert place.read_bytes() == DATA
    check(place)
    with pytest.raises(ObjectError, match=r"file://\S+/b\.glb was not found"):
        fetch.get(fetch.resolve("https://host", "b.glb"), place.with_name("b"))
    os.mkfifo(folder / "pipe")
    with pytest.raises(ObjectError, match="is not a file"):
        fetch.get(fetch.resolve("https://host", "pipe"), place.with_name("b"))
    with pytest.raises(ObjectError, match="other bytes"):
        fetch.get(fetch.resolve("https://host", "a.glb"), place.with_name("b"), sha256="0" * 64)
    with pytest.raises(ObjectError, match="at most"):
        fetch.get(fetch.resolve("https://host", "a.glb"), place.with_name("b"), max_bytes=10)
    assert files(place) == {"a.glb", ".a.glb.check"}


def test_a_folder_that_is_not_mounted_ends_the_run(tmp_path, place):
    fetch = downloader(endpoint=(tmp_path / "mirror").as_uri())
    with pytest.raises(ClipgsError, match="is not a folder; is it mounted"):
        fetch.get(fetch.resolve("https://host", "a.glb"), place)


# --- many at once ------------------------------------------------------------------------------------------------


def test_requests_keep_their_pace(server, place, folder):
    fetch = downloader(per_second=20.0)
    start = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: fetch.get(f"{server.url}/a.glb", place.with_name(f"{i}")), range(11)))
    assert time.monotonic() - start >= 0.5


def test_threads_that_want_one_file_fetch_it_once(server, place):
    server.faults["/a.glb"] = [Fault(bytes_per_second=50_000)]
    fetch = downloader()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: fetch.get(f"{server.url}/a.glb", place), range(8)))
    assert server.requests["/a.glb"] == 1


def run(code: str, *arguments: str) -> subprocess.Popen:
    """Python in another process, with a Downloader named `fetch`."""
    start = """
        import sys, time
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from clipgs.catalog import downloads, parts
        from clipgs.config import Downloads
        downloads._FIRST_PAUSE_SECONDS = 0.02
        fetch = downloads.Downloader(Downloads(per_second=5000.0, retries=6, timeout_seconds=20.0))
    """
    code = textwrap.dedent(start) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


def test_processes_that_want_one_file_fetch_it_once(server, place):
    server.faults["/a.glb"] = [Fault(bytes_per_second=10_000)]
    code = "fetch.get(sys.argv[1], Path(sys.argv[2]))"
    processes = [run(code, f"{server.url}/a.glb", str(place)) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    assert place.read_bytes() == DATA
    assert server.requests["/a.glb"] == 1


def test_hosts_whose_file_system_passes_no_locks_on_do_each_other_no_harm(server, place):
    server.faults["/a.glb"] = [Fault(bytes_per_second=8_000)]  # the second comer takes over what the first has
    code = """
        def flock(descriptor, operation):
            raise OSError(parts.errno.ENOLCK, "No locks available")
        parts.fcntl.flock = flock
        fetch.get(sys.argv[1], Path(sys.argv[2]))
    """
    first = run(code, f"{server.url}/a.glb", str(place))
    while not server.requests["/a.glb"]:
        time.sleep(0.01)
    second = run(code, f"{server.url}/a.glb", str(place))
    assert [process.wait(timeout=60) for process in (first, second)] == [0, 0]
    assert server.requests["/a.glb"] == 2
    assert place.read_bytes() == DATA
    check(place)
    assert files(place) == {"a.glb", ".a.glb.check"}


def test_of_500_objects_none_is_lost_or_comes_twice_when_a_tenth_of_requests_fails(tmp_path):
    bodies = [hashlib.sha256(bytes([index % 256, index // 256])).digest() * 64 for index in range(500)]
    uids = make_objaverse(tmp_path / "served", 500, body=bodies.__getitem__, objects_a_folder=500)
    with Server(tmp_path / "served", failure_rate=0.1, seed=1) as server:
        fetch = downloader(endpoint=server.url, retries=6)

        def get(uid):
            url = fetch.resolve(f"https://huggingface.co/{OBJAVERSE}", f"glbs/000-000/{uid}.glb")
            return fetch.get(url, tmp_path / "cache" / f"{uid}.glb")

        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(get, uids))
        assert [path.read_bytes() for path in paths] == bodies
        assert server.requests.total() > 530  # there were failures
        assert max(server.served.values()) == 1
        assert sum(server.sent.values()) == sum(map(len, bodies))  # what was cut was gone on with


def test_a_connection_serves_files_redirects_and_refusals_alike(server, place):
    server.faults["/a.glb"] = [Fault.redirect("/a.glb"), Fault(status=503)]
    fetch = downloader()
    fetch.get(f"{server.url}/a.glb", place)
    with pytest.raises(ObjectError, match="was not found"):
        fetch.get(f"{server.url}/b.glb", place.with_name("b"))
    fetch.get(f"{server.url}/a.glb", place.with_name("c"))
    assert server.requests.total() == 5
    assert server.connections() == 1


# --- memory and disk ---------------------------------------------------------------------------------------------


def test_memory_stays_flat(tmp_path, place):
    code = """
        import resource, tracemalloc
        fetch.get(sys.argv[2], Path(sys.argv[3] + ".small"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tracemalloc.start()
        fetch.get(sys.argv[1], Path(sys.argv[3]))
        assert Path(sys.argv[3]).stat().st_size == 300_000_000
        assert tracemalloc.get_traced_memory()[1] < 8e6, tracemalloc.get_traced_memory()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
    """
    with BigServer(300_000_000) as url:
        assert run(code, f"{url}/300000000", f"{url}/1000", str(place)).wait(timeout=120) == 0


class BigServer:
    """Serves zeros, as many as the path says, without holding them."""

    def __init__(self, most):
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                left = int(self.path[1:])
                self.send_response(200)
                self.send_header("Content-Length", str(left))
                self.end_headers()
                while left:
                    left -= self.wfile.write(bytes(min(left, 1 << 20)))

            def log_message(self, *arguments):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return f"http://127.0.0.1:{self.httpd.server_port}"

    def __exit__(self, *exception):
        self.httpd.shutdown()
        self.httpd.server_close()


def test_a_full_disk_ends_the_run_and_leaves_nothing(server, place, monkeypatch):
    pwrite = os.pwrite

    def full(descriptor, data, offset):
        if offset:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[:1000], offset)

    with monkeypatch.context() as patch:
        patch.setattr(parts.os, "pwrite", full)
        with pytest.raises(ClipgsError, match=r"a\.glb: No space left on device; free some space or choose another"):
            downloader().get(f"{server.url}/a.glb", place)
    assert files(place) == set()
    downloader().get(f"{server.url}/a.glb", place)
    assert place.read_bytes() == DATA


def test_a_file_larger_than_the_process_may_write_ends_the_run(server, place):
    code = """
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        from clipgs.core.errors import ClipgsError
        try:
            fetch.get(sys.argv[1], Path(sys.argv[2]))
        except ClipgsError as error:
            sys.exit(0 if "File too large" in str(error) else 1)
        sys.exit(2)
    """
    assert run(code, f"{server.url}/a.glb", str(place)).wait(timeout=60) == 0
    assert "a.glb" not in files(place)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 5000


def test_a_cache_that_may_not_be_written_is_said(server, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ClipgsError, match="cache"):
        downloader().get(f"{server.url}/a.glb", tmp_path / "cache" / "a.glb")
