"""A Ray cluster with token authentication and a job server, for tests that submit jobs."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def cluster_url(s3_server):
    """Yield the job server's URL of a head node that runs in its own process group."""
    gcs, dashboard, agent = _find_free_ports(3)
    scripts = Path(sys.executable).parent
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_DISABLE_USAGE_STATS": "1"}
    environment |= {"PATH": f"{scripts}:{os.environ['PATH']}"}
    node = subprocess.Popen(
        [
            *(scripts / "ray", "start", "--head", "--block", "--num-cpus=6", "--include-dashboard=true"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{dashboard}"
    _wait_until_ready(f"{url}/api/version", Path("~/.ray/auth_token").expanduser().read_text())
    yield url
    os.killpg(node.pid, signal.SIGTERM)
    try:
        node.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)


@pytest.fixture
def client(cluster_url):
    from pipeline.cluster.job_client import connect

    return connect(cluster_url)


def _find_free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def _wait_until_ready(url, token, seconds=90):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    for _ in range(seconds):
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(f"{url} did not answer in {seconds} s")
