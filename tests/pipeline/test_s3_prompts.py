"""Preparation and the stream against an S3 server that fails as real ones do."""

import json
import os
import socketserver
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prepared import check, shard
from pipeline.prompts.stream import PromptStream
from pipeline.recipe import parse
from pipeline.storage import Folder

EXPIRED = b"""<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>
<Message>The provided token has expired.</Message></Error>"""


_HOP = ("content-length", "transfer-encoding", "connection", "expect", "host")


class Faults(socketserver.ThreadingTCPServer):
    """Passes requests on to the real server, and each that `fails` picks it answers as `how` says."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.how, self.fails, self.requests = target, None, lambda number, path: False, 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_any(self):
        server = self.server
        body = self.body()
        server.requests += 1
        failing = server.how if server.fails(server.requests, self.path) else None
        if failing == "503":
            return self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
        if failing == "expired":
            return self.answer(403, {"Content-Type": "application/xml"}, EXPIRED)
        if failing == "slow":
            time.sleep(0.3)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        request = urllib.request.Request(
            server.target + self.path, data=body or None, headers=headers, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as found:
                status, headers, content = found.status, dict(found.headers), found.read()
        except urllib.error.HTTPError as error:
            status, headers, content = error.code, dict(error.headers), error.read()
        return self.answer(status, headers, content, cut=failing == "cut" and self.command == "GET")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status, headers, content, cut=False):
        self.send_response(status)
        length = headers.pop("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        for name, value in headers.items():
            if name.lower() not in (*_HOP, "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.wfile.flush()
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def faults(s3_server, monkeypatch):
    server = Faults(os.environ["AWS_ENDPOINT_URL"])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(bucket):
    """A JSONL and a Parquet source in the bucket."""
    place = Folder.of(bucket)
    lines = [json.dumps({"prompt": f"journey number {i}"}) for i in range(300)]
    place.write("in/jdb/a.jsonl", "\n".join(lines).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"TEXT": [f"laion caption {i}" for i in range(300)]}), sink)
    place.write("in/laion/part-0.parquet", sink.getvalue().to_pybytes())
    sources = f"[{{path='{bucket}/in/jdb'}}, {{path='{bucket}/in/laion/*.parquet'}}]"
    return parse("", [f"prompts.sources={sources}", "prompts.near_duplicates=0", "prompts.negative_count=40"])


def stream(folder):
    """The prompts of one epoch, read without a cluster."""
    reader = PromptStream(folder, check(folder), 0, 6, range(6))
    return [text for piece in reader.order.pieces(0, 600, 256) for text in reader.of_piece(piece).to_pylist()]


def test_from_a_bucket_to_a_bucket(bucket, recipe):
    folder = Folder.of(f"{bucket}/run/prompts")
    record = prepare(recipe, folder)
    assert record["prompts"] == 600
    assert len(set(stream(folder))) == 600
    assert prepare(recipe, folder) == record


@pytest.mark.parametrize("how", ["503", "slow", "cut"])
def test_what_passes_is_waited_for(bucket, recipe, faults, how, monkeypatch):
    folder = Folder.of(f"{bucket}/run-{how}/prompts")
    faults.how = how
    faults.fails = lambda number, path: number % 5 == 3
    record = prepare(recipe, folder)
    shard.cache_clear()
    assert record["prompts"] == 600
    assert not any(source["removed"] for source in record["sources"].values())
    assert len(set(stream(folder))) == 600
    assert faults.requests > 10


def test_expired_credentials_are_one_line_and_nothing_is_lost(bucket, recipe, faults):
    folder = Folder.of(f"{bucket}/run/prompts")
    faults.how = "expired"
    faults.fails = lambda number, path: "part-0.parquet" in path
    with pytest.raises(UserError, match=r"cannot be read: .*(ExpiredToken|expired|ACCESS_DENIED|403)") as caught:
        prepare(recipe, folder)
    assert "\n" not in str(caught.value)
    assert not folder.has("manifest.json")
    faults.how = None
    assert prepare(recipe, folder)["prompts"] == 600
