"""Settings and fixtures of all tests: quiet libraries, one thread, a temporary home, one Ray session, tiny models."""

import os
import secrets
import sys
import tempfile
from pathlib import Path

os.environ["HOME"] = os.environ.get("NASA_TEST_HOME") or tempfile.mkdtemp(prefix="nasa-home-")
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", DS_ACCELERATOR="cpu")
# Extensions are compiled once per environment.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))

import pytest
import torch

from pipeline import apply_environment

apply_environment()
torch.set_num_threads(1)

TOKEN_FILE = Path(os.environ["HOME"], ".ray", "auth_token")
if not TOKEN_FILE.exists():  # Ray reads it once per process, so that all clusters of a session share it
    TOKEN_FILE.parent.mkdir(parents=True, exist_ok=True)
    TOKEN_FILE.write_text(secrets.token_hex(32))
for _name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
    os.environ.pop(_name, None)


SERVICES = {"ray_cluster", "s3_server", "cluster_url", "migrated", "seaweedfs"}  # fixtures that start a service


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests that use a service, so that `make test-unit` leaves them out."""
    for item in items:
        if SERVICES & set(getattr(item, "fixturenames", ())):
            item.add_marker("integration")


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory):
    """Return a folder in Stable Diffusion's layout with random weights."""
    from nasa.testing import tiny_stable_diffusion

    folder = tmp_path_factory.mktemp("teacher") / "tiny"
    tiny_stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def s3_server():
    """Run an S3 server in this process, and point the environment at it for the whole test session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://{host}:{port}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        AWS_DEFAULT_REGION="us-east-1",
    )
    yield
    server.stop()


@pytest.fixture
def bucket(s3_server):
    """Yield the URI of an empty bucket."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="runs")
    yield "s3://runs"
    for entry in client.list_objects_v2(Bucket="runs").get("Contents", []):
        client.delete_object(Bucket="runs", Key=entry["Key"])


@pytest.fixture(scope="session")
def ray_cluster(s3_server):
    """Yield `ray` with one local cluster for the whole test session, whose processes can reach the S3 server."""
    import ray

    from pipeline.ray_session import start_ray_session

    with start_ray_session():
        yield ray
