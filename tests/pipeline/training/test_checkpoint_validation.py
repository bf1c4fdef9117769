"""Evaluation and registration of checkpoints during training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from ray.train import Checkpoint
from safetensors.torch import save_file

from jobs.__main__ import main
from pipeline import models, tracking
from pipeline.evaluation import evaluate
from pipeline.hashing import hash_folder
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.recipe import parse
from pipeline.storage import Folder
from pipeline.training.checkpoint import EMA_FILE, STATE_FILE
from pipeline.training.checkpoint_validation import VERSIONS, is_due, validate
from pipeline.training.train_loop_config import TrainLoopConfig

ROOT = Path(__file__).parents[3]
SMALL = [
    "prompts.count=40",
    "prompts.negative_draws=20",
    "evaluation.every_n_checkpoints=1",
    "evaluation.num_prompts=4",
    "evaluation.exclusion_seeds=9",
    "evaluation.teacher_prompts=2",
    "evaluation.teacher_steps=2",
    "evaluation.scales=[0.5]",
    "evaluation.cpus_per_process=0.5",
]


@pytest.mark.parametrize(
    ("every_n", "selection", "due"),
    [(0, "latest", []), (0, "best", []), (1, "latest", [10, 20]), (2, "latest", [20]), (2, "best", [20, 30])],
)
def test_which_checkpoints_are_evaluated(every_n, selection, due):
    recipe = parse(
        "",
        [
            "train.steps=30",
            "train.checkpoint_every_n_steps=10",
            f"evaluation.every_n_checkpoints={every_n}",
            f"evaluation.student_selection={selection}",
        ],
    )
    assert [step for step in (10, 20, 30) if is_due(recipe, step)] == due


class Actor:
    """A stand-in for the progress actor."""

    def __init__(self):
        self.messages = []
        self.log = self

    def remote(self, message):
        self.messages.append(message)


@pytest.fixture
def config(tmp_path):
    recipe, prompts = parse("", SMALL), Folder.from_uri(tmp_path / "prompts")
    prepare(recipe, prompts)
    uri = f"sqlite:///{tmp_path}/ml.db"
    teacher = models.find_teacher_folder("shapes")
    run = tracking.create_run(uri, "test", {})
    return TrainLoopConfig(recipe, str(teacher), "", prompts.uri, load_manifest(prompts), uri, run)


def write_checkpoint(folder, config, step, factor):
    """Write what training leaves: the EMA weights and the step."""
    weights = models.load_denoiser(Path(config.teacher_folder)).state_dict()
    folder.mkdir()
    save_file({name: (value * factor).contiguous() for name, value in weights.items()}, folder / EMA_FILE)
    (folder / STATE_FILE).write_text(json.dumps({"step": step}))
    return Checkpoint.from_directory(str(folder))


def test_a_checkpoint_is_evaluated_and_registered_once(ray_cluster, tmp_path, config, monkeypatch):
    actor, sha256 = Actor(), hash_folder(Path(config.teacher_folder))

    def run_validation(checkpoint):
        return validate(checkpoint, config, sha256, Folder.from_uri(tmp_path / "run"), actor)

    first = write_checkpoint(tmp_path / "first", config, 2, 1.0)
    metrics = run_validation(first)
    assert 0 <= metrics["eval_clean_and_right"] <= 1
    (folder,) = (tmp_path / "run" / VERSIONS).iterdir()
    assert folder.name.startswith("000002-")
    assert not (folder / "student").exists()  # the registered version holds it
    monkeypatch.setattr(evaluate, "run_workers", None)  # nothing is sampled again
    assert run_validation(first) == metrics
    client = mlflow.MlflowClient(config.tracking_uri)
    (version,) = client.search_model_versions("name = 'nasa-shapes'")
    assert version.tags["step"] == "2"
    assert len(actor.messages) == 2
    assert actor.messages[0].startswith("step 2: version 1 of nasa-shapes: ")
    monkeypatch.undo()
    run_validation(write_checkpoint(tmp_path / "second", config, 4, 0.9))
    assert len(client.search_model_versions("name = 'nasa-shapes'")) == 2
    assert len(list((tmp_path / "run" / VERSIONS).iterdir())) == 2
    logged = client.get_metric_history(config.mlflow_run, "eval_clean_and_right")
    assert [metric.step for metric in logged] == [2, 4]


def build_arguments(command, folder):
    overrides = [
        *SMALL,
        "train.steps=30",
        "train.checkpoint_every_n_steps=10",
        "train.batch_size=4",
        'evaluation.student_selection="best"',
    ]
    options = [part for override in overrides for part in ("--set", override)] if command != "register" else []
    tracking_uri = [] if command == "prepare" else ["--tracking-uri", f"sqlite:///{folder}/ml.db"]
    return [command, "--run", str(folder), *options, *tracking_uri]


def find_children(process, name):
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any(name in part for part in child.cmdline())
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["evaluator", "driver"])
def test_each_checkpoint_is_evaluated_once_if_a_process_dies(tmp_path, victim):
    """Three checkpoints give three versions, and the student of the run is the best of them."""
    assert main(build_arguments("prepare", tmp_path)) == 0
    command = [sys.executable, "-m", "jobs", *build_arguments("distill", tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=ROOT)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob(f"distilled/{VERSIONS}/*/evaluation/images/*.parquet")):
        assert process.poll() is None, "ended before the first evaluation"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if victim == "driver":
        process.kill()
    else:
        for child in find_children(process, "run_validation_fn"):
            child.kill()
    assert process.wait(timeout=900) == (-signal.SIGKILL if victim == "driver" else 0)
    if victim == "driver":
        assert subprocess.run(command, env=environment, cwd=ROOT, timeout=900, check=False).returncode == 0
    folders = sorted((tmp_path / "distilled" / VERSIONS).iterdir())
    assert [folder.name[:6] for folder in folders] == ["000010", "000020", "000030"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/ml.db")
    versions = client.search_model_versions("name = 'nasa-shapes'")
    assert sorted(version.tags["step"] for version in versions) == ["10", "20", "30"]
    scores = {
        json.loads((folder / "manifest.json").read_text())["student_sha256"]: json.loads(
            (folder / "evaluation/summary.json").read_text()
        )["metrics"]["clean_and_right"]["value"]
        for folder in folders
    }
    record = json.loads((tmp_path / "distilled/manifest.json").read_text())
    assert scores[record["student_sha256"]] == max(scores.values())
