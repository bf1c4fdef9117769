"""A Ray cluster of several nodes on this machine, with token authentication; a node is killed as a process group."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
GRACE_SECONDS = 120
Process = subprocess.Popen[bytes]


@dataclass
class LocalCluster:
    """A head node with a job server, and further nodes.

    Attributes:
        cpus: CPUs of the head node.
        environment: environment variables of every process; `HOME` holds the token.
    """

    cpus: int
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def __post_init__(self) -> None:
        self.port, self.dashboard = free_ports(2)
        self.processes: list[Process] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The URL of the job server."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self) -> "LocalCluster":
        ports = (f"--port={self.port}", f"--dashboard-port={self.dashboard}", "--include-dashboard=true")
        self._ray("--head", "--node-ip-address=127.0.0.1", f"--num-cpus={self.cpus}", *ports)
        self._wait_for_job_server()
        while not self._alive_nodes():  # the head itself
            time.sleep(0.5)
        return self

    def add_node(self, cpus: int) -> Process:
        """Start a node and wait until it has joined; on a busy machine, try again."""
        before = self._alive_nodes()
        for _ in range(3):
            process = self._ray(f"--address={self.address}", f"--num-cpus={cpus}")
            deadline = time.monotonic() + GRACE_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if self._alive_nodes() - before:
                    return process
                time.sleep(0.5)
            self.kill(process)
        raise TimeoutError("a Ray node did not start")

    def _alive_nodes(self) -> set[str]:
        """Return the ids of the nodes that are alive."""
        token = Path(self.environment["HOME"], ".ray/auth_token").read_text()
        request = urllib.request.Request(
            f"{self.url}/api/v0/nodes?limit=1000", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            nodes = json.load(response)["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def kill(self, node: Process | None = None) -> None:
        """Send SIGKILL to one node's processes, or to all."""
        for process in [node] if node else self.processes:
            kill_group(process)
        self.processes = [process for process in self.processes if process.poll() is None]

    def _ray(self, *arguments: str) -> Process:
        environment = self.environment | {"RAY_AUTH_MODE": "token", "RAY_DISABLE_USAGE_STATS": "1"}
        environment["PATH"] = f"{SCRIPTS}:{environment['PATH']}"
        agent = free_ports(1)[0]
        process = subprocess.Popen(
            [str(SCRIPTS / "ray"), "start", "--block", f"--dashboard-agent-listen-port={agent}", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def _wait_for_job_server(self) -> None:
        """Wait until the job server answers, with any status."""
        for _ in range(GRACE_SECONDS):
            assert self.processes[0].poll() is None, "the head node did not start"
            try:
                urllib.request.urlopen(f"{self.url}/api/version", timeout=5).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(1)
        raise TimeoutError(f"Ray did not start in {GRACE_SECONDS} s")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for socket_ in sockets:
        socket_.bind(("127.0.0.1", 0))
    ports = [int(socket_.getsockname()[1]) for socket_ in sockets]
    for socket_ in sockets:
        socket_.close()
    return ports


def wait_for_port(port: int, seconds: float = GRACE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing answers on port {port} in {seconds:g} s") from None
            time.sleep(0.2)


def kill_group(process: Process) -> None:
    """Send SIGKILL to the process group, if it still exists, and wait for its leader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill(pid: int) -> bool:
    """Send SIGKILL to a process; return False if there is none."""
    if not pid:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
