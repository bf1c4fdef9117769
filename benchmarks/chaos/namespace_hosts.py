"""Hosts in Linux namespaces of this machine, connected by a switch whose cables can be pulled.

A host has its own network, processes, files and name, and an ssh server. It ends with all its processes when this
process ends. Root, Linux and the Debian packages of `PROGRAMS` are needed.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline import ROOT

SCRIPT = Path(__file__).with_name("namespace_host.sh")
PROGRAMS = {"ip": "iproute2", "bridge": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client"}
PROGRAMS |= {"rsync": "rsync", "unshare": "util-linux", "nsenter": "util-linux", "useradd": "passwd", "pgrep": "procps"}
UNSHARE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--fork", "--kill-child"]  # both end with this process
START_SECONDS = 60
RELAY_SECONDS = 1  # in which the relay has created its devices
Process = subprocess.Popen[bytes]


def find_missing() -> list[str]:
    """Return what this machine lacks for hosts in namespaces: root, or Debian packages."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = {package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)}
    return [*(["root"] if os.geteuid() else []), *sorted(missing)]


class Switch:
    """A network with a port for each host, in a namespace of its own."""

    def __init__(self, network: str = "10.0.0") -> None:
        self.network = network
        self.process = subprocess.Popen([*UNSHARE, "--net", "sleep", "infinity"])
        self.pid = _wait_for_child(self.process)
        for command in (
            "ip link set lo up",
            "ip link add name switch type bridge",
            f"ip address add {network}.1/24 dev switch",
            "ip link set switch up",
        ):
            self.run(command)

    def run(self, command: str, pid: int | None = None) -> None:
        """Run a command in this network, or in that of another process."""
        subprocess.run(["nsenter", "--target", str(pid or self.pid), "--net", *command.split()], check=True)

    def connect(self, host: "NamespaceHost") -> None:
        """Connect a host to a new port, which has its name."""
        self.run(f"ip link add name {host.name} type veth peer name eth0 netns {host.pid}")
        self.run(f"ip link set {host.name} master switch up")
        for command in (
            f"ip address add {host.address}/24 dev eth0",
            "ip link set eth0 up",
            f"ip route add default via {self.network}.1",
        ):
            self.run(command, host.pid)

    def unplug(self, host: "NamespaceHost") -> None:
        """Pull a host's cable."""
        self.run(f"ip link set {host.name} down")

    def plug(self, host: "NamespaceHost") -> None:
        """Put a host's cable back."""
        self.run(f"ip link set {host.name} up")

    def set_partition(self, hosts: list["NamespaceHost"], apart: bool) -> None:
        """Keep these hosts from reaching each other, or let them again; all of them still reach the others."""
        for host in hosts:
            self.run(f"bridge link set dev {host.name} isolated {'on' if apart else 'off'}")

    @contextmanager
    def delay(self, host: "NamespaceHost", seconds: float) -> Iterator[None]:
        """Lengthen a host's cable: what it sends and receives arrives this many seconds later."""
        near, far, cable = (f"{host.name}-{name}" for name in ("near", "far", "cable"))
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", "--target", str(self.pid), "--net"]
        command = [sys.executable, "-m", "benchmarks.chaos.delay_relay", near, far, str(seconds)]
        relay = subprocess.Popen([*enter, *command], cwd=ROOT)
        try:
            time.sleep(RELAY_SECONDS)
            self.run(f"ip link add name {cable} type bridge")
            for change in (f"{cable} up", f"{near} master {cable} up", f"{far} master switch up"):
                self.run(f"ip link set {change}")
            self.run(f"ip link set {host.name} master {cable}")
            yield
        finally:
            self.run(f"ip link set {host.name} master switch")
            relay.kill()
            relay.wait()
            self.run(f"ip link delete {cable}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class NamespaceHost:
    """A host with an account `ray`.

    Attributes:
        name: its host name.
        address: its IPv4 address.
        home_files: folder that is copied into the home of `ray`.
        log: file of the output of its start and of its ssh server.
    """

    name: str
    address: str
    home_files: Path
    log: Path
    process: Process = field(init=False)
    pid: int = field(init=False)

    def __post_init__(self) -> None:
        namespaces = ("--net", "--mount", "--uts", "--ipc", "--pid", "--mount-proc")
        python = Path(sys.base_prefix).resolve()
        arguments = (self.name, str(python), str(Path(sys.prefix).resolve()), str(self.home_files))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*UNSHARE, *namespaces, "bash", str(SCRIPT), *arguments], stdout=log, stderr=log
            )
        self.pid = _wait_for_child(self.process)

    def wait_until_ready(self) -> None:
        """Wait until its files and its ssh server are there."""
        deadline = time.monotonic() + START_SECONDS
        while not self.path("/run/ready").exists():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def path(self, path: str) -> Path:
        """Return where this process sees a file of the host."""
        return Path(f"/proc/{self.pid}/root{path}")

    def command(self, command: str) -> list[str]:
        """Return the command that runs a shell command in a login shell of `ray` on the host."""
        return ["nsenter", "--target", str(self.pid), "--all", "runuser", "--login", "ray", "--command", command]

    def run(self, command: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a shell command to its end and return its output, which has stderr's lines too."""
        return subprocess.run(
            self.command(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def find_processes(self, name: str = "") -> list[str]:
        """Return the command lines on the host that contain `name`, without those that every host runs."""
        lines = []
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if line and name in line and not line.startswith(("sleep infinity", "sshd:", "/usr/sbin/sshd")):
                lines.append(line)
        return lines

    def close(self) -> None:
        """End the host with all its processes."""
        self.process.kill()
        self.process.wait()


class HostCommand(Process):
    """A shell command that runs on a host, and its output. It ends with the host."""

    def __init__(self, host: NamespaceHost, command: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            super().__init__(host.command(command), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


def _wait_for_child(process: Process) -> int:
    """Return the id of the process that `unshare` starts in its namespaces."""
    deadline = time.monotonic() + START_SECONDS
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None, "unshare did not start"
        assert time.monotonic() < deadline, "unshare did not start"
        time.sleep(0.01)
    return children[0].pid
