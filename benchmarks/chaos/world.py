"""A small distillation that takes seconds, the cluster that it runs on, and where it must end."""

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

from benchmarks.chaos.nodes import Nodes, Process, free_ports
from pipeline import ROOT, manifest
from pipeline.storage import Folder

STEPS = 16
SETS = {
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
LIMIT = 900  # seconds for one command


@dataclass
class Run:
    """One distillation's folder; `place` is where it writes, the folder or an s3:// address."""

    folder: Path
    place: str
    prompts: Path
    teacher: Path
    tracking: str
    sets: dict[str, Any] = field(default_factory=lambda: dict(SETS))

    def command(self, name: str, *more: str) -> list[str]:
        recipe = ["--teacher", str(self.teacher), "--prompts", str(self.prompts)]
        recipe += [part for key, value in self.sets.items() for part in ("--set", f"{key}={value}")]
        own = recipe if name in ("prepare", "distill", "run") else []
        tracking = [] if name == "prepare" else ["--tracking-uri", self.tracking]
        return [sys.executable, "-m", "jobs", name, "--run", self.place, *own, *tracking, *more]

    @property
    def student(self) -> str:
        """The hash of its weights."""
        return str(manifest.read(Folder.from_uri(self.place) / "distilled", manifest.DistilledManifest).student_sha256)

    def versions(self) -> int:
        """Return the versions in the run's registry."""
        with sqlite3.connect(self.tracking.removeprefix("sqlite:///")) as store:
            return int(store.execute("select count(*) from model_versions").fetchone()[0])

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "distilled/train").glob("checkpoint_*/state.json"))


class Job(Process):
    """A command in a process group of its own, and what it printed."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            super().__init__(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def ends_with(self, *codes: int) -> int:
        """Its exit code; raises an AssertionError with its last lines where that is another."""
        code = self.wait(timeout=LIMIT)
        assert code in codes, f"{self.printed[-3000:]}\nexit {code}: {self.printed[-300:]!r}"
        return code


class World:
    """Shared by all scenarios: a teacher with random weights, prepared prompts, a cluster, and the expected student."""

    def __init__(self, folder: Path, seed: int, times: int) -> None:
        """`times`: how often harm is done in one run, where it lasts so long."""
        self.folder, self.random, self.number, self.times = folder, random.Random(seed), 0, times
        home = folder / "home"
        (home / ".ray").mkdir(parents=True)
        (home / ".ray/auth_token").write_text(secrets.token_hex(32))
        self.s3_port = free_ports(1)[0]  # where every process looks for S3, if it does
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
        os.environ.update(self.environment)  # this process reads results from S3 and asks the cluster
        self.teacher = folder / "tiny"
        _save_teacher(self.teacher)
        self.prompts = folder / "prompts.txt"
        self.prompts.write_text("\n".join(f"a photo of {thing}" for thing in ("a cat", "a dog", "a tree")) * 5)
        self.prepared: Folder | None = None
        self.nodes = self.cluster()
        self.expected, self.took = self._undisturbed()

    def cluster(self, cpus: int = 4) -> Nodes:
        return Nodes(cpus, self.environment).start()

    def new_run(self, bucket: str = "") -> Run:
        """Prepared, in a folder of this machine or in a bucket."""
        self.number += 1
        folder = self.folder / f"run{self.number:03}"
        place = f"s3://{bucket}/{folder.name}" if bucket else str(folder)
        run = Run(folder, place, self.prompts, self.teacher, f"sqlite:///{folder}/ml.db")
        folder.mkdir()
        if self.prepared:
            (Folder.from_uri(place) / "prompts").upload(Path(self.prepared.path))
            return run
        self.finish(run.command("prepare"))
        self.prepared = Folder.from_uri(folder / "prompts")
        return run

    def evaluated(self) -> Run:
        """Distilled and evaluated, undisturbed."""
        run = self.new_run()
        self.finish(self.distill(run))
        self.finish(run.command("evaluate", "--ray-address", self.nodes.address))
        return run

    def begin(self, command: list[str]) -> "Job":
        return Job(command, self.folder, self.environment)

    def finish(self, command: list[str]) -> None:
        self.begin(command).ends_with(0)

    def distill(self, run: Run, *more: str) -> list[str]:
        return run.command("distill", "--ray-address", self.nodes.address, *more)

    def moment(self, longest: float | None = None) -> float:
        """A random time within an undisturbed run."""
        wait = self.random.uniform(0, longest or self.took)
        time.sleep(wait)
        return wait

    def same(self, run: Run) -> None:
        """It ended on the expected weights, and left nothing half-written."""
        assert run.student == self.expected, f"student {run.student[:12]}, not {self.expected[:12]}"
        partial = [path.name for path in run.folder.rglob("*.partial")]
        assert not partial, f"half-written: {partial}"

    def close(self) -> None:
        self.nodes.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _undisturbed(self) -> tuple[str, float]:
        run = self.new_run()
        self.finish(self.distill(run))  # compiles and imports for the first time
        expected, again = run.student, self.new_run()
        start = time.monotonic()
        self.finish(self.distill(again))
        assert again.student == expected, "an undisturbed run does not repeat itself"
        return expected, time.monotonic() - start


def wait_for(found: Callable[[], Any], what: str, process: Any = None, seconds: float = LIMIT) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{getattr(process, 'printed', '')[-3000:]}\nended before {what}")
        assert time.monotonic() < deadline, f"no {what} in {seconds:g} s"
        time.sleep(0.05)
    return value


def processes(cluster: Nodes, name: str) -> set[int]:
    """Return this cluster's processes whose title contains `name`, by id."""
    found = set()
    for node in cluster.processes:
        with suppress(psutil.Error):
            for child in psutil.Process(node.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if any(name in part for part in child.cmdline()):
                        found.add(child.pid)
    return found


def _save_teacher(folder: Path) -> None:
    import torch

    from nasa.testing import tiny_stable_diffusion

    torch.manual_seed(0)
    tiny_stable_diffusion().save_pretrained(folder)
