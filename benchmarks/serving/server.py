"""A server of its own process, over a registry of two versions that generate different images."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors.torch import load_file, save_file

from pipeline import ROOT, tracking
from pipeline.hashing import hash_folder
from pipeline.registry import mlflow_registry
from pipeline.registry.version_cache import fetch_version, find_version
from pipeline.registry.version_download import DownloadedVersion

START_SECONDS = 180


@dataclass(frozen=True)
class Registry:
    """A registry whose version 1 is the given champion, and version 2 the same student with other weights."""

    uri: str
    name: str
    versions: dict[str, DownloadedVersion]


def build_scratch_registry(tracking_uri: str, name: str) -> Registry:
    """Copy a champion into a registry that the benchmark may change."""
    champion = fetch_version(tracking_uri, name, find_version(tracking_uri, name))
    folder = Path(tempfile.mkdtemp(prefix="serving-"))
    uri = f"sqlite:///{folder}/ml.db"
    client = tracking.build_client(uri)
    client.create_registered_model(name)
    for number in ("1", "2"):
        version = folder / number
        shutil.copytree(champion.root, version)
        if number == "2":
            _change_weights(version / "student")
        tags = {mlflow_registry.STUDENT: hash_folder(version / "student")}
        client.create_model_version(name, version.as_uri(), tags=tags)
    client.set_registered_model_alias(name, mlflow_registry.CHAMPION, "1")
    return Registry(uri, name, {number: fetch_version(uri, name, number) for number in ("1", "2")})


def _change_weights(student: Path) -> None:
    file = next(student / part for part in ("unet", "transformer") if (student / part).is_dir())
    file = next(file.glob("*.safetensors"))
    weights = load_file(file)
    save_file({name: value * 1.02 for name, value in weights.items()}, file)


def find_free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_server(registry: Registry, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run `jobs serve`; yield its URL and process."""
    port = find_free_port()
    words = ["serve", "--name", registry.name, "--tracking-uri", registry.uri, "--port", str(port), *arguments]
    process = subprocess.Popen([sys.executable, "-m", "jobs", *words], cwd=ROOT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/healthz", process)
        yield url, psutil.Process(process.pid)
    finally:
        end(process)


@contextmanager
def run_mlflow_server(tracking_uri: str, model: str, log: Path) -> Iterator[str]:
    """Run `mlflow models serve` on a model's URI, with its output in a file; yield the URL of its scoring."""
    port, programs = find_free_port(), Path(sys.executable).parent
    words = ["models", "serve", "-m", model, "--env-manager", "local", "-p", str(port)]
    variables = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri, "PATH": f"{programs}:{os.environ['PATH']}"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(programs / "mlflow"), *words], env=variables, start_new_session=True, stdout=output, stderr=output
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        end(process)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server answers.

    Raises:
        RuntimeError: It ended, or it does not answer in `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"{url} does not answer")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and those that it started."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in started:
        if child.is_running():
            child.kill()


def list_replicas(server: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a server that generate images."""
    names = ((child, " ".join(_read_command(child))) for child in server.children(recursive=True))
    return [child for child, name in names if name.startswith("ray::ServeReplica") and ":student" in name]


def measure_memory(server: psutil.Process) -> float:
    """Return the MiB of a server's own process, which answers HTTP, and of its replicas, each page counted once."""
    served = [
        server,
        *(child for child in server.children(recursive=True) if "Serve" in " ".join(_read_command(child))),
    ]
    return sum(child.memory_full_info().uss for child in served) / 2**20


def _read_command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
