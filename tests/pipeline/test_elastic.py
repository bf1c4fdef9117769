"""Elastic training: a machine of two is lost in the middle, and the other one goes on alone to the same end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STEPS = 60
SETS = [
    f"train.steps={STEPS}",
    "train.checkpoint_every_n_steps=10",
    "train.batch_size=4",
    "train.num_workers=2",
    "train.min_workers=1",
    "train.max_failures=5",
    "lora_teacher.rank=4",
    "prompts.count=200",
    "prompts.negative_draws=50",
    "train.clip_weight=0.1",  # which --teacher turns off
    'train.clip_model="shapes"',
    "train.clip_images=3",
]
OTHER_LAYOUT_TOLERANCE = 1e-3  # sums in another order, over fifty steps


def command(name, folder, teacher, *more):
    sets = [part for override in SETS for part in ("--set", override)]
    tracking = ["--tracking-uri", f"sqlite:///{folder}/ml.db"] if name == "distill" else []
    own = ["--teacher", str(teacher)]
    return [sys.executable, "-m", "jobs", name, "--run", str(folder / "run"), *own, *sets, *tracking, *more]


def steps_of(folder):
    return [json.loads(f.read_text()) for f in sorted(folder.glob("run/distilled/train/checkpoint_*/state.json"))]


def student(folder):
    return load_file(folder / "run/distilled/student/unet/diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_a_lost_machine_leaves_the_other_one_training(tmp_path, tiny_teacher):
    from ray.cluster_utils import Cluster

    lost, whole = tmp_path / "lost", tmp_path / "whole"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for folder in (lost, whole):
        folder.mkdir()
        subprocess.run(command("prepare", folder, tiny_teacher), cwd=ROOT, env=environment, check=True)
    subprocess.run(command("distill", whole, tiny_teacher), cwd=ROOT, env=environment, check=True, timeout=600)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1.0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1.0)
        more = ("--ray-address", cluster.address, "--set", "train.cpus_per_worker=0.8")
        process = subprocess.Popen(command("distill", lost, tiny_teacher, *more), cwd=ROOT, env=environment)
        deadline = time.monotonic() + 600
        while not steps_of(lost):
            assert process.poll() is None, "ended before the first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=600) == 0
    finally:
        cluster.shutdown()
    states = steps_of(lost)
    assert {state["workers"] for state in states} <= {1, 2}
    assert (states[-1]["step"], states[-1]["workers"]) == (STEPS, 1)
    expected = student(whole)
    for name, value in student(lost).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=OTHER_LAYOUT_TOLERANCE)
