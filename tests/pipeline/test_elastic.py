"""Elastic training: one of two machines is lost, and the other one alone reaches the same result."""

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
OVERRIDES = [
    f"train.steps={STEPS}",
    "train.checkpoint_every_n_steps=10",
    "train.batch_size=4",
    "train.num_workers=2",
    "train.min_workers=1",
    "train.max_failures=5",
    "lora_teacher.rank=4",
    "prompts.count=200",
    "prompts.negative_draws=50",
    "train.clip_weight=0.1",  # turned off by --teacher
    'train.clip_model="shapes"',
    "train.clip_images=3",
]
OTHER_LAYOUT_TOLERANCE = 1e-3  # the summation order differs over fifty steps


def build_command(name, folder, teacher, *extra):
    overrides = [part for override in OVERRIDES for part in ("--set", override)]
    tracking = ["--tracking-uri", f"sqlite:///{folder}/ml.db"] if name == "distill" else []
    inputs = ["--teacher", str(teacher)]
    return [sys.executable, "-m", "jobs", name, "--run", str(folder / "run"), *inputs, *overrides, *tracking, *extra]


def load_states(folder):
    return [json.loads(file.read_text()) for file in sorted(folder.glob("run/distilled/train/checkpoint_*/state.json"))]


def load_student(folder):
    return load_file(folder / "run/distilled/student/unet/diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_training_continues_if_one_of_two_machines_is_lost(tmp_path, tiny_teacher):
    from ray.cluster_utils import Cluster

    lost, undisturbed = tmp_path / "lost", tmp_path / "whole"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for folder in (lost, undisturbed):
        folder.mkdir()
        subprocess.run(build_command("prepare", folder, tiny_teacher), cwd=ROOT, env=environment, check=True)
    subprocess.run(
        build_command("distill", undisturbed, tiny_teacher), cwd=ROOT, env=environment, check=True, timeout=600
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1.0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1.0)
        options = ("--ray-address", cluster.address, "--set", "train.cpus_per_worker=0.8")
        process = subprocess.Popen(build_command("distill", lost, tiny_teacher, *options), cwd=ROOT, env=environment)
        deadline = time.monotonic() + 600
        while not load_states(lost):
            assert process.poll() is None, "ended before the first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        assert process.wait(timeout=600) == 0
    finally:
        cluster.shutdown()
    states = load_states(lost)
    assert {state["workers"] for state in states} <= {1, 2}
    assert (states[-1]["step"], states[-1]["workers"]) == (STEPS, 1)
    expected = load_student(undisturbed)
    for name, value in load_student(lost).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=OTHER_LAYOUT_TOLERANCE)
