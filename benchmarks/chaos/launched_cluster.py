"""`deploy/on-premises.yaml` launched as it is written, on hosts in network namespaces of this machine.

Its three nodes, its S3 server and the machine of the person who launches it have the addresses that the file names.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.harness import wait_for
from benchmarks.chaos.namespace_hosts import HostCommand, NamespaceHost, Switch
from pipeline import ROOT

WHEELS = ("uv", "pip", "setuptools", "wheel", "packaging")  # what the setup commands find missing in a new environment
KEY = ".ssh/id_ed25519"
CREDENTIALS = "[default]\naws_access_key_id = launched\naws_secret_access_key = launched\n"
S3 = "http://10.0.0.20:8333"
TRACKING_URI = "http://10.0.0.10:5000"
CLUSTER_FILE = "deploy/on-premises.yaml"
START_SECONDS = 240  # for three nodes to join
CHECKOUT = "cd ~/nasa-distill && export PATH=$HOME/venv/bin:$PATH"


@dataclass(frozen=True)
class Outcome:
    """The exit code of a command, its output, and the seconds that it took."""

    code: int
    output: str
    seconds: float

    @property
    def error(self) -> str:
        """The last line of the output that reports an error."""
        return next((line for line in reversed(self.output.splitlines()) if line.startswith("error: ")), "")


class LaunchedCluster:
    """The hosts of the cluster file and of the person who launches it.

    Attributes:
        head: the head node.
        workers: the other nodes.
        desk: the machine of the person who launches the cluster, with a checkout; it is no node.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, 0
        node_files, desk_files = build_home_files(folder)
        self.switch = Switch()
        self.hosts: list[NamespaceHost] = []
        self.head = self._add_host("head", "10.0.0.10", node_files)
        self.workers = [self._add_host(f"worker{n}", f"10.0.0.{10 + n}", node_files) for n in (1, 2)]
        self.store = self._add_host("store", "10.0.0.20", node_files)
        self.desk = self._add_host("desk", "10.0.0.2", desk_files)
        for host in self.hosts:
            host.wait_until_ready()
        self._start_store()

    def _add_host(self, name: str, address: str, home_files: Path) -> NamespaceHost:
        host = NamespaceHost(name, address, home_files, self.folder / f"{name}.log")
        self.hosts.append(host)
        self.switch.connect(host)
        return host

    def _start_store(self) -> None:
        """Start the S3 server with an empty bucket."""
        HostCommand(self.store, "~/venv/bin/python -m moto.server -H 10.0.0.20 -p 8333", self.folder / "s3.log")
        self.run_on_store(
            "while True:\n try: s3.create_bucket(Bucket='runs'); break\n except Exception: time.sleep(0.5)"
        )

    def run_on_store(self, code: str) -> str:
        """Run Python code, in which `s3` is a client, on the host of the S3 server; return what it prints."""
        client = f"import boto3, json, time; s3 = boto3.client('s3', endpoint_url='{S3}', region_name='us-east-1')"
        (self.store.path("/tmp/code.py")).write_text(f"{client}\n{code}\n")
        result = self.store.run("~/venv/bin/python /tmp/code.py")
        assert result.returncode == 0, result.stdout
        return result.stdout

    def run(self, command: str, timeout: float = 900) -> Outcome:
        """Run a shell command in the checkout on the desk."""
        start = time.monotonic()
        result = self.desk.run(f"{CHECKOUT}; {command}", timeout)
        return Outcome(result.returncode, result.stdout, time.monotonic() - start)

    def start(self, command: str) -> HostCommand:
        """Start a shell command in the checkout on the desk."""
        self.commands += 1
        return HostCommand(self.desk, f"{CHECKOUT}; {command}", self.folder / f"command{self.commands}.log")

    def launch(self) -> float:
        """Create a token, launch the cluster, and return the seconds until all nodes have joined."""
        start = time.monotonic()
        for command in ("ray get-auth-token --generate", f"ray up --yes {CLUSTER_FILE}"):
            result = self.run(command)
            assert result.code == 0, result.output[-3000:]
        self.wait_for_nodes(1 + len(self.workers))
        return time.monotonic() - start

    def forward_job_server(self) -> None:
        """Forward the job server to the desk, as `ray dashboard` does until it is stopped."""
        self.start(f"ray dashboard {CLUSTER_FILE}")
        wait_for(lambda: not self.run("python -m jobs list").code, "answer of the job server", seconds=60)

    def stop_forwarding(self) -> None:
        """End `ray dashboard` by its ssh client; only the desk's own processes are seen there."""
        self.desk.run("pkill -x ssh")

    def list_processes(self) -> list[str]:
        """Return what runs on the nodes beside their ssh servers."""
        return [f"{host.name}: {line}" for host in (self.head, *self.workers) for line in host.find_processes()]

    def count_nodes(self) -> int:
        """Return the number of nodes that the head node knows as active."""
        status = self.head.run("bash -lic 'ray status' 2> /dev/null").stdout
        active = re.search(r"Active:\n(.*?)Pending:", status, re.DOTALL)
        return sum(int(number) for number in re.findall(r"^ (\d+) ", active[1] if active else "", re.MULTILINE))

    def wait_for_nodes(self, count: int) -> None:
        """Wait until this many nodes are active."""
        wait_for(lambda: self.count_nodes() == count, f"{count} active nodes", seconds=START_SECONDS, pause=3)

    def find_training_hosts(self) -> list[NamespaceHost]:
        """Return the hosts on which a train worker runs."""
        return [host for host in (self.head, *self.workers) if host.find_processes("ray::RayTrainWorker")]

    def read_manifest(self, run: str) -> dict[str, Any]:
        """Return the manifest of a distilled student."""
        key = f"{run}/distilled/manifest.json"
        printed = self.run_on_store(f"print(s3.get_object(Bucket='runs', Key='{key}')['Body'].read().decode())")
        manifest: dict[str, Any] = json.loads(printed)
        return manifest

    def copy_prompts(self, source: str, run: str) -> None:
        """Copy the prepared prompts of one run to another."""
        self.run_on_store(
            f"for each in s3.list_objects_v2(Bucket='runs', Prefix='{source}/prompts/')['Contents']:\n"
            f" key = '{run}' + each['Key'].removeprefix('{source}')\n"
            " s3.copy_object(Bucket='runs', Key=key, CopySource={'Bucket': 'runs', 'Key': each['Key']})"
        )

    def close(self) -> None:
        for host in self.hosts:
            host.close()
        self.switch.close()


def build_home_files(folder: Path) -> tuple[Path, Path]:
    """Write the files of the home folders on the nodes and on the desk; return the two folders."""
    node, desk = folder / "node", folder / "desk"
    for path in (node / "wheels", node / ".ssh", node / ".aws", desk / ".ssh", desk / "nasa-distill"):
        path.mkdir(parents=True, mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", desk / KEY], check=True)
    shutil.copy(desk / f"{KEY}.pub", node / ".ssh/authorized_keys")
    (node / ".aws/credentials").write_text(CREDENTIALS)
    (node / ".aws/credentials").chmod(0o600)
    download_wheels(node / "wheels")
    copy_checkout(desk / "nasa-distill")
    return node, desk


def download_wheels(folder: Path) -> None:
    """Download the wheels that the hosts find missing, in the versions of the lock.

    Raises:
        ConnectionError: if no package index has them.
    """
    lock = {line.partition("==")[0]: line for line in (ROOT / "requirements.lock").read_text().splitlines()}
    names = [lock.get(name, name) for name in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ConnectionError(result.stderr.strip().splitlines()[-1])


def copy_checkout(folder: Path) -> None:
    """Copy the files that git does not ignore into a new repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in listed.stdout.decode().split("\0"):
        with suppress(FileNotFoundError):  # a file that was removed and not yet committed
            if name:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
    for command in (
        "init --quiet",
        "add --all",
        "-c user.name=launch -c user.email=launch@localhost commit --quiet -m x",
    ):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)
