"""Who may ask for what: addresses, names of the host, other sites, tokens and sizes."""

import socket

import pytest

from clipgs.core.bundles import read_table, write_table
from clipgs.core.errors import UsageError
from clipgs.serve import server as module
from clipgs.serve.server import MAX_PICTURE_MB, Server
from clipgs.serve.site import Site
from clipgs.triplets.pack import merge_index, schema
from tests.serve.conftest import png, serving

SECRET = b"the secret outside the output"
KINDS = ("render", "mesh", "splat", "ply", "failed", "api/object")


@pytest.fixture
def secret(output):
    """A file beside the output, and links to it inside, under names that an address may hold."""
    file = output.folder.parent / "secret"
    file.write_bytes(SECRET)
    for folder in (output.folder, output.folder / "triplets", output.folder / "views", output.folder / "renders"):
        for name in ("link", "link.tar", "link.parquet", "99999.tar", "a"):
            (folder / name).symlink_to(file)
    return file


UP = """
.. ../.. ../../.. ../secret ../../secret ../../../secret ..%2fsecret ..%2f..%2fsecret %2e%2e/secret %2e%2e%2fsecret
%2e%2e%2f%2e%2e%2fsecret %252e%252e%252fsecret ..%5csecret ..\\secret ..%c0%afsecret %c0%ae%c0%ae/secret ....//secret
..;/secret ./../secret a/../../secret a/..%2f..%2fsecret a%00 a%00/../secret a;/../secret a?/../secret a#/../secret link
link.tar 99999 nobody %61 A a.ply a.00.webp 00000.tar index.parquet / a/ a//0 a/0/0 a/-1 a/1e1 a/9999 a/\u0661 \u00e9
- ~root $HOME /etc/passwd //etc/passwd etc/passwd %2fetc%2fpasswd C:\\Windows\\win.ini \\\\host\\share
"""
OF_FILES = """
/page.py /assets/page.html /page.css/../server.py /page.css%2f.. /PAGE.CSS /.git/config /catalog/excluded.csv /run.yaml
/triplets/00000.tar /triplets/index.parquet * http://example.org/render/../secret
"""


def attacks(secret):
    names = [*UP.split(), "", str(secret), f"/{secret}", f"file://{secret}", 65 * "a", 5000 * "a", "a\0", "\0"]
    yield from (f"/{kind}/{name}" for kind in KINDS for name in names)
    yield from (f"/{name}" for name in names)
    yield from (*OF_FILES.split(), f"http://127.0.0.1{secret}", f"file://{secret}", str(secret))


def answer_to(client, target):
    """Status and all bytes of the answer to a request whose target is sent as it is."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % target.encode())
        received = b""
        while block := connection.recv(65536):
            received += block
    return int(received.split()[1]), received


def test_nothing_outside_the_output_is_read_by_any_address(client, secret):
    for target in attacks(secret):
        status, received = answer_to(client, target)
        assert SECRET not in received, target
        assert b"root:" not in received, target
        if status == 200:  # what is no attack to this server: the page or the object `a`, with a query
            assert target.partition("?")[0].strip("/") in {"", *(f"{kind}/a" for kind in KINDS)}, target
        else:
            assert status in (400, 403, 404), target


def test_objects_of_a_query_are_found_by_uid_alone(client, secret):
    for value in ("../secret", str(secret), "%2e%2e/secret", "link", "\0", "a/../../secret"):
        for name in ("q", "like", "category", "license", "split", "stage", "sort", "offset", "run", "file", "path"):
            for page in ("api/search", "api/failures", "api/about"):
                status, _, body = client.ask(f"{page}?{name}={value.replace(chr(0), '%00')}")
                assert SECRET not in body
                assert status in (200, 400, 404, 503)


@pytest.mark.parametrize("shard", ["../secret", "/etc/passwd", "link", "..", "0/../../secret", ""])
def test_an_index_that_names_another_place_is_refused(output, secret, shard):
    """An output may have come from somebody else."""
    table = output.folder / "triplets" / "00000.parquet"
    rows = read_table(table)
    write_table(table, [row | {"shard": shard} for row in rows], schema())
    merge_index([table], output.folder / "triplets" / "index.parquet")
    with serving(output.config) as client:
        for address in ("render/a", "ply/a", "splat/a", "mesh/a", "mesh/a/0", "failed/d"):
            status, _, body = client.ask(address)
            assert status in (400, 404)
            assert SECRET not in body


def test_a_shard_that_is_a_link_to_another_file_gives_nothing(output, secret):
    tar = output.folder / "triplets" / "00000.tar"
    secret.write_bytes(100 * SECRET)
    tar.unlink()
    tar.symlink_to(secret)
    with serving(output.config) as client:
        for address in ("render/a", "ply/a", "splat/a"):
            assert client.ask(address)[0] == 404


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:8700", "localhost.", "[::1]:9", "127.8.9.1"],
)
def test_names_of_this_machine_are_answered(client, host):
    assert client.ask("api/about", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("example.org", "localhost.example.org", "127.0.0.1.nip.io", "10.0.0.1", "0.0.0.0", "", "localhost:port"),
        *("localhost/", "a@localhost", "localhost@example.org", "127.0.0.1, example.org", "[::2]", "0x7f000001"),
        *("127.1", "2130706433", ["localhost", "example.org"]),
    ],
)
def test_other_names_are_refused_so_that_no_other_site_leads_here(client, host):
    status, _, body = client.ask("api/about", Host=host)
    assert (status, body) == (421, b"this server does not answer under that name")


def test_headers_that_proxies_read_change_nothing(client):
    tricks = {
        "X_Forwarded_Host": "example.org",
        "X_Original_URL": "/../../secret",
        "X_Rewrite_URL": "/../../secret",
        "Forwarded": "host=example.org",
        "Range": "bytes=0-10",
        "X_HTTP_Method_Override": "DELETE",
    }
    assert client.ask("api/object/a", **tricks)[2] == client.ask("api/object/a")[2]
    assert client.ask("api/about", Host="example.org", X_Forwarded_Host="localhost")[0] == 421


def test_every_answer_forbids_what_the_page_does_not_need(client):
    for address in ("", "page.js", "api/about", "render/a", "nothing", "../secret"):
        _, headers, _ = client.ask(address)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert all(word not in policy for word in ("unsafe", "*", "http", "data:"))
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Python" not in headers["Server"]
    assert client.ask("", "BREW")[1]["Content-Security-Policy"]


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_get_and_post_are_known(client, method):
    assert client.ask("api/about", method)[0] == 501


def test_a_picture_is_taken_only_with_its_size_and_not_from_another_site(searching, monkeypatch):
    assert searching.ask("api/search", "POST", png())[0] == 200
    own = f"http://127.0.0.1:{searching.port}"
    assert searching.ask("api/search", "POST", png(), Origin=own)[0] == 200
    for origin in ("https://example.org", "null", f"{own}.example.org", "http://localhost"):
        assert searching.ask("api/search", "POST", png(), Origin=origin)[0] == 403
    assert searching.ask("render/a", "POST", png())[0] == 404
    assert searching.ask("api/search", "POST")[0] == 411
    assert searching.ask("api/search", "POST", png(), Transfer_Encoding="chunked")[0] == 411
    assert searching.ask("api/search", "POST", png(), Content_Length=["4", "5"])[0] == 411
    assert searching.ask("api/search", "POST", Content_Length="-1")[0] == 411
    status, headers, _ = searching.ask("api/search", "POST", Content_Length=str(MAX_PICTURE_MB * 10**6 + 1))
    assert (status, headers["Connection"]) == (413, "close")


def test_a_body_that_was_not_read_is_not_the_next_request(client):
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
        inner = b"GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(
            b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner
        )
        received = b""
        while block := connection.recv(65536):
            received += block
    assert received.count(b"HTTP/1.1") == 1


def test_what_is_no_request_does_not_end_the_server(client):
    for sent in (b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", 70000 * b"a", b""):
        with socket.create_connection(("127.0.0.1", client.port), timeout=60) as connection:
            connection.sendall(sent)
    assert client.ask("api/about")[0] == 200


def test_elsewhere_than_on_loopback_a_token_begins_every_address(trained):
    with serving(trained.config, trained.run, host="0.0.0.0") as client:
        token = client.server.prefix.strip("/")
        assert len(token) >= 32
        assert token in client.server.address
        wrong = (token[:-1], f"{token[:-1]}./", f"{token.swapcase()}/", f"x/{token}/")
        for address in ("/", "/api/about", "/render/a", "/page.js", *(f"/{one}" for one in wrong)):
            status, _, body = client.ask(address, raw=True)
            assert status in (403, 404), address
            assert b"<html" not in body
        for address in ("", "api/about", "render/a", "page.js"):
            assert client.ask(address)[0] == 200
        assert client.ask("api/search", "POST", png())[0] == 200
        assert client.ask("api/about", Host="192.0.2.7:80")[0] == 200  # its number as others see it
        assert client.ask("api/about", Host=socket.gethostname())[0] == 200
        assert client.ask("api/about", Host="example.org")[0] == 421


def test_two_servers_have_two_tokens(output):
    site = Site(output.config, None)
    with Server(site, "0.0.0.0", 0) as one, Server(site, "0.0.0.0", 0) as other:
        assert one.prefix != other.prefix


def test_a_port_that_is_taken_is_named(client, output):
    with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{client.port} cannot be listened on .*choose --port"):
        Server(Site(output.config, None), "127.0.0.1", client.port)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("no.such.host.invalid", "no machine of this name is known here"),
        ("192.0.2.1", "this machine has no such address"),  # of documentation (RFC 5737)
    ],
)
def test_an_address_that_is_not_of_this_machine_is_named(output, host, message):
    with pytest.raises(UsageError, match=f"--host {host}: {message}"):
        Server(Site(output.config, None), host, 0)


def test_asking_changes_nothing_on_disk(searching, trained):
    def seen():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in [trained.folder, *trained.folder.rglob("*")]
        }

    before = seen()
    for address in (
        "",
        "api/about",
        "api/search?q=tree",
        "api/failures",
        "api/object/a",
        "render/a",
        "splat/a",
        "failed/d",
    ):
        assert searching.ask(address)[0] == 200
    searching.ask("api/search", "POST", png())
    assert seen() == before


def test_an_error_of_the_code_is_one_answer(client, monkeypatch, caplog):
    monkeypatch.setattr(client.server.site, "get", lambda *_: 1 / 0)
    status, _, said = client.ask("api/about")
    assert (status, said) == (500, b"ZeroDivisionError; the server's log says more")
    assert "ZeroDivisionError" in caplog.text


def test_a_browser_that_leaves_is_no_error(client, monkeypatch, caplog):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr(module._Handler, "_send", gone)
    with pytest.raises(OSError, match=r"closed|reset"):
        client.ask("api/about")
    assert caplog.text == ""


def test_it_runs_until_it_is_interrupted(output, monkeypatch, caplog):
    caplog.set_level("INFO")

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    module.serve(output.config, None, "127.0.0.1", 0)
    assert "serve: http://127.0.0.1:" in caplog.text
