"""Ray nodes on this machine, each in processes of its own, with a token; ended by their process group."""

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
class Nodes:
    """A head with a job server, and nodes beside it.

    Attributes:
        environment: of every process of the cluster; it names the token.
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

    def start(self) -> "Nodes":
        own = (f"--port={self.port}", f"--dashboard-port={self.dashboard}", "--include-dashboard=true")
        self._ray("--head", "--node-ip-address=127.0.0.1", f"--num-cpus={self.cpus}", *own)
        self._await()
        while not self._joined():  # the head itself
            time.sleep(0.5)
        return self

    def add(self, cpus: int) -> Process:
        """A node that has joined; one that does not start on a busy machine is started again."""
        before = self._joined()
        for _ in range(3):
            process = self._ray(f"--address={self.address}", f"--num-cpus={cpus}")
            deadline = time.monotonic() + GRACE_SECONDS
            while process.poll() is None and time.monotonic() < deadline:
                if self._joined() - before:
                    return process
                time.sleep(0.5)
            self.kill(process)
        raise TimeoutError("a node of Ray's did not start")

    def _joined(self) -> set[str]:
        """The ids of nodes that live."""
        token = Path(self.environment["HOME"], ".ray/auth_token").read_text()
        request = urllib.request.Request(
            f"{self.url}/api/v0/nodes?limit=1000", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return {node["node_id"] for node in nodes if node["state"] == "ALIVE"}

    def kill(self, node: Process | None = None) -> None:
        """SIGKILL to one node's processes, or to all."""
        for process in [node] if node else self.processes:
            end(process)
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

    def _await(self) -> None:
        """Wait until the job server answers, with any status."""
        for _ in range(GRACE_SECONDS):
            assert self.processes[0].poll() is None, "Ray's head did not start"
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
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def await_port(port: int, seconds: float = GRACE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing answers on port {port} in {seconds:g} s") from None
            time.sleep(0.2)


def end(process: Process) -> None:
    """SIGKILL to all of its group, if it still lives."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill(pid: int) -> bool:
    """Whether there was something to kill."""
    if not pid:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
