"""The harness of the scenarios: a distillation that takes seconds, its cluster, and the weights it must end on."""

import os
import random
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.local_cluster import LocalCluster, Process, free_ports
from pipeline import ROOT, manifest
from pipeline.storage import Folder

STEPS = 16
OVERRIDES = {
    "train.steps": STEPS,
    "train.checkpoint_every_n_steps": 4,
    "train.batch_size": 4,
    "train.clip_weight": 0,
    "train.max_failures": 20,
    "train.num_to_keep": 3,
    "lora_teacher.rank": 4,
    "evaluation.num_prompts": 4,
    "evaluation.teacher_prompts": 0,
    "evaluation.scales": "[0.5]",
    "promotion.metric": '"clip_positive"',
}
TIMEOUT = 900  # seconds for one command


@dataclass
class Run:
    """One distillation; `uri` is where it writes, its folder or an s3:// address."""

    folder: Path
    uri: str
    prompts: Path
    teacher: Path
    tracking_uri: str
    overrides: dict[str, Any] = field(default_factory=lambda: dict(OVERRIDES))

    def command(self, name: str, *more: str) -> list[str]:
        recipe = ["--teacher", str(self.teacher), "--prompts", str(self.prompts)]
        recipe += [part for key, value in self.overrides.items() for part in ("--set", f"{key}={value}")]
        options = recipe if name in ("prepare", "distill", "run") else []
        tracking = [] if name == "prepare" else ["--tracking-uri", self.tracking_uri]
        return [sys.executable, "-m", "jobs", name, "--run", self.uri, *options, *tracking, *more]

    @property
    def student_sha256(self) -> str:
        """The hash of the student's weights."""
        return str(manifest.read(Folder.from_uri(self.uri) / "distilled", manifest.DistilledManifest).student_sha256)

    def count_versions(self) -> int:
        """Return the number of versions in the run's registry."""
        with sqlite3.connect(self.tracking_uri.removeprefix("sqlite:///")) as store:
            return int(store.execute("select count(*) from model_versions").fetchone()[0])

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "distilled/train").glob("checkpoint_*/state.json"))


class Job(Process):
    """A command in a process group of its own, and its output."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            super().__init__(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def assert_exit(self, *codes: int) -> int:
        """Wait for the exit code and return it; another one raises an AssertionError with the last lines of output."""
        code = self.wait(timeout=TIMEOUT)
        assert code in codes, f"{self.output[-3000:]}\nexit {code}: {self.output[-300:]!r}"
        return code


class Harness:
    """The state that all scenarios share: a random teacher, prepared prompts, a cluster and the expected student.

    Attributes:
        times: most faults that are injected into one run.
        expected: hash of an undisturbed run's student.
        seconds: duration of an undisturbed run.
    """

    def __init__(self, folder: Path, seed: int, times: int) -> None:
        self.folder, self.random, self.number, self.times = folder, random.Random(seed), 0, times
        home = folder / "home"
        (home / ".ray").mkdir(parents=True)
        (home / ".ray/auth_token").write_text(secrets.token_hex(32))
        self.s3_port = free_ports(1)[0]  # where every process expects S3
        self.environment = os.environ | {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.s3_port}",
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": "chaos",
            "AWS_DEFAULT_REGION": "us-east-1",
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "OMP_NUM_THREADS": "1",
            "TORCH_EXTENSIONS_DIR": str(Path(sys.prefix) / "torch_extensions"),
            "HF_HUB_OFFLINE": "1",
        }
        os.environ.update(self.environment)  # this process reads from S3 and queries the cluster
        self.teacher = folder / "tiny"
        _save_teacher(self.teacher)
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(f"a photo of {subject}" for subject in ("a cat", "a dog", "a tree")) * 5)
        self.prepared: Folder | None = None
        self.cluster = self.new_cluster()
        self.expected, self.seconds = self._run_undisturbed()

    def new_cluster(self, cpus: int = 4) -> LocalCluster:
        return LocalCluster(cpus, self.environment).start()

    def new_run(self, bucket: str = "") -> Run:
        """Return a run with prepared prompts, in a local folder or in a bucket."""
        self.number += 1
        folder = self.folder / f"run{self.number:03}"
        uri = f"s3://{bucket}/{folder.name}" if bucket else str(folder)
        run = Run(folder, uri, self.prompts, self.teacher, f"sqlite:///{folder}/ml.db")
        folder.mkdir()
        if self.prepared:
            (Folder.from_uri(uri) / "prompts").upload(Path(self.prepared.path))
            return run
        self.run_to_end(run.command("prepare"))
        self.prepared = Folder.from_uri(folder / "prompts")
        return run

    def new_evaluated_run(self) -> Run:
        """Return a run that was distilled and evaluated undisturbed."""
        run = self.new_run()
        self.run_to_end(self.distill(run))
        self.run_to_end(run.command("evaluate", "--ray-address", self.cluster.address))
        return run

    def start(self, command: list[str]) -> "Job":
        return Job(command, self.folder, self.environment)

    def run_to_end(self, command: list[str]) -> None:
        self.start(command).assert_exit(0)

    def distill(self, run: Run, *more: str) -> list[str]:
        return run.command("distill", "--ray-address", self.cluster.address, *more)

    def sleep_randomly(self, longest: float | None = None) -> float:
        """Sleep for a random part of `longest`, or of an undisturbed run; return the seconds slept."""
        delay = self.random.uniform(0, longest or self.seconds)
        time.sleep(delay)
        return delay

    def assert_expected(self, run: Run) -> None:
        """Assert that the run ended on the expected weights and left no partial files."""
        assert run.student_sha256 == self.expected, f"student {run.student_sha256[:12]}, not {self.expected[:12]}"
        partial = [path.name for path in run.folder.rglob("*.partial")]
        assert not partial, f"partial files: {partial}"

    def close(self) -> None:
        self.cluster.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run_undisturbed(self) -> tuple[str, float]:
        run = self.new_run()
        self.run_to_end(self.distill(run))  # pays for the first compilation and imports
        expected, again = run.student_sha256, self.new_run()
        start = time.monotonic()
        self.run_to_end(self.distill(again))
        assert again.student_sha256 == expected, "undisturbed runs differ"
        return expected, time.monotonic() - start


def wait_for(
    condition: Callable[[], Any],
    description: str,
    process: Any = None,
    seconds: float = TIMEOUT,
    pause: float = 0.05,
) -> Any:
    """Wait until the condition holds, and return its value; the process must not end before that."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{getattr(process, 'output', '')[-3000:]}\nended before {description}")
        assert time.monotonic() < deadline, f"no {description} in {seconds:g} s"
        time.sleep(pause)
    return value


def find_processes(cluster: LocalCluster, name: str) -> set[int]:
    """Return the ids of this cluster's processes whose title contains `name`."""
    pids = set()
    for node in cluster.processes:
        with suppress(psutil.Error):
            for child in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any(name in part for part in child.cmdline()):
                        pids.add(child.pid)
    return pids


def _save_teacher(folder: Path) -> None:
    import torch

    from nasa.testing import tiny_stable_diffusion

    torch.manual_seed(0)
    tiny_stable_diffusion().save_pretrained(folder)
