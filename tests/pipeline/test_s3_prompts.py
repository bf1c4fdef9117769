"""Preparation and the prompt stream against an S3 server with injected faults."""

import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.chaos.fault_proxy import FaultProxy
from pipeline.errors import UserError
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest, read_shard
from pipeline.prompts.prompt_stream import PromptStream
from pipeline.recipe import parse
from pipeline.storage import Folder


@pytest.fixture
def faults(s3_server, monkeypatch):
    server = FaultProxy(os.environ["AWS_ENDPOINT_URL"]).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.stop()


@pytest.fixture
def recipe(bucket):
    """Return a recipe with a JSONL and a Parquet source in the bucket."""
    root = Folder.from_uri(bucket)
    lines = [json.dumps({"prompt": f"journey number {i}"}) for i in range(300)]
    root.write("in/jdb/a.jsonl", "\n".join(lines).encode())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"TEXT": [f"laion caption {i}" for i in range(300)]}), sink)
    root.write("in/laion/part-0.parquet", sink.getvalue().to_pybytes())
    sources = f"[{{path='{bucket}/in/jdb'}}, {{path='{bucket}/in/laion/*.parquet'}}]"
    return parse("", [f"prompts.sources={sources}", "prompts.near_duplicates=0", "prompts.negative_count=40"])


def read_epoch(folder):
    """Return the prompts of one epoch, read without a cluster."""
    reader = PromptStream(folder, load_manifest(folder), 0, 6, range(6))
    return [text for span in reader.sampler.iter_ranges(0, 600, 256) for text in reader.read_prompts(span).to_pylist()]


def test_prompts_are_prepared_from_and_to_a_bucket(bucket, recipe):
    folder = Folder.from_uri(f"{bucket}/run/prompts")
    record = prepare(recipe, folder)
    assert record.prompts == 600
    assert len(set(read_epoch(folder))) == 600
    assert prepare(recipe, folder) == record


@pytest.mark.parametrize("fault", ["503", pytest.param("slow", marks=pytest.mark.slow), "cut"])
def test_transient_faults_are_retried(bucket, recipe, faults, fault, monkeypatch):
    folder = Folder.from_uri(f"{bucket}/run-{fault}/prompts")
    faults.fault = fault
    faults.matches = lambda number, path: number % 5 == 3
    record = prepare(recipe, folder)
    read_shard.cache_clear()
    assert record.prompts == 600
    assert not any(source.removed for source in record.sources.values())
    assert len(set(read_epoch(folder))) == 600
    assert faults.requests > 10


def test_expired_credentials_are_reported_and_preparation_can_resume(bucket, recipe, faults):
    folder = Folder.from_uri(f"{bucket}/run/prompts")
    faults.fault = "expired"
    faults.matches = lambda number, path: "part-0.parquet" in path
    with pytest.raises(UserError, match=r"cannot be read: .*(ExpiredToken|expired|ACCESS_DENIED|403)") as caught:
        prepare(recipe, folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists("manifest.json")
    faults.fault = None
    assert prepare(recipe, folder).prompts == 600
