import http.client
import io
import json
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import urlencode

import numpy as np
import pytest
import yaml
from PIL import Image

from clipgs import config as configuration
from clipgs.catalog.records import frozen_schema
from clipgs.core.bundles import TarWriter, write_table, write_tensors
from clipgs.core.files import sha256_of, write_bytes
from clipgs.encoder import MODEL
from clipgs.serve.server import Server
from clipgs.serve.site import Site
from clipgs.teacher import model as teachers
from tests.packed_world import write_index
from tests.triplets.conftest import make_shard

NASTY = "<img src=x onerror=alert(1)> \"'&\N{SNOWMAN} </script>"
UIDS = ("a", "-b_", "c" * 64, "d", "e")  # the last two are failed objects
CATEGORIES = {"a": "mug", "-b_": "tree", "c" * 64: None}
PSNR = {"a": 41.0, "-b_": 30.0, "c" * 64: None}


def png(colour=(200, 30, 30), size=(40, 30), kind="PNG"):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


@pytest.fixture
def output(tmp_path):
    """An output of five objects, of which two failed; texts try to be markup. No run is trained."""
    folder = tmp_path / "results"
    folder.mkdir()
    shard = make_shard(folder, "00000", list(UIDS))
    for row in shard.inputs["labels"]:
        row |= {"category": CATEGORIES.get(row["uid"]), "credit": NASTY, "page": "javascript:alert(1)"}
    for row in shard.inputs["stages"]["caption"]:
        row["caption"] = f"a red mug {NASTY}" if row["uid"] == "a" else f"caption of {row['uid'][:3]}"
    for row in shard.inputs["stages"]["fit"]:
        row["psnr"] = PSNR.get(row["uid"])
    shard.inputs["stages"]["fit"][-1]["error"] = f"ObjectError: {NASTY}"
    shard.pack()
    with TarWriter(folder / "views" / "00000.tar") as tar:
        tar.add("a/cameras.json", b"{}")
        for view in range(3):
            tar.add(f"a/{view:03d}.png", png((view, 0, 0)))
    write_table(folder / "catalog" / "shards" / "00000.parquet", [], frozen_schema())
    write_index(folder)
    config = configuration.check({"output": str(folder), "device": "cpu", "pack": {"title": f"Mine {NASTY}"}})
    return SimpleNamespace(folder=folder, config=config, uids=[*CATEGORIES])


@pytest.fixture(scope="session")
def tiny_about(tiny):
    """What the tiny teacher's features say of it."""
    return teachers.load(configuration.check({"device": "cpu", "teacher": {"name": f"local-dir:{tiny}"}})).about


@pytest.fixture
def trained(output, tiny, tiny_about):
    """The same with a run of the tiny teacher, whose embeddings are at random."""
    run = output.folder / "runs" / "base"
    settings = {"device": "cpu", "teacher": {"name": f"local-dir:{tiny}"}}
    write_tensors(run / MODEL, {"any": np.zeros(1, np.float32)}, {"dim": 24, "teacher": tiny_about})
    write_bytes(run / "config.yaml", yaml.safe_dump(settings).encode())
    shapes = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    about = {"model_sha256": sha256_of(run / MODEL), "uids": sorted(output.uids)}
    write_tensors(output.folder / "evaluation" / "base" / "embeddings.safetensors", {"shapes": shapes}, about)
    output.run, output.shapes = run, dict(zip(sorted(output.uids), shapes, strict=True))
    return output


class Client:
    """Asks a server as it is told to, without the care that a browser takes of addresses."""

    def __init__(self, server):
        self.server, self.port = server, server.server_address[1]

    def ask(self, address="", method="GET", body=None, raw=False, **headers):
        """Status, headers and body. `raw`: the address is the whole target of the request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(
                method, address if raw else self.server.prefix + address, skip_host=True, skip_accept_encoding=True
            )
            headers = {
                "Host": f"127.0.0.1:{self.port}",
                **{key.replace("_", "-"): value for key, value in headers.items()},
            }
            if body is not None and "Transfer-Encoding" not in headers:
                headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                for one in value if isinstance(value, list) else [value]:
                    connection.putheader(name, one)
            connection.endheaders()
            if body:
                connection.send(body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, address, body=None, **query):
        status, _, found = self.ask(f"{address}?{urlencode(query)}", "GET" if body is None else "POST", body)
        assert status == 200, found
        return json.loads(found)

    def uids(self, body=None, **query):
        return [row["uid"] for row in self.json("api/search", body, **query)["objects"]]


@contextmanager
def serving(config, run=None, host="127.0.0.1"):
    """A client of a server over an output."""
    with Server(Site(config, run), host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Client(server)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def client(output):
    with serving(output.config) as found:
        yield found


@pytest.fixture
def searching(trained):
    with serving(trained.config, trained.run) as found:
        yield found
