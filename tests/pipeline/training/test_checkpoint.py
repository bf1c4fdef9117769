"""A checkpoint of two processes, resumed by one, by two and with another ZeRO stage."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from pipeline import models, recipe
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.training import checkpoint, engines
from pipeline.training.distiller import Distiller

pytestmark = pytest.mark.integration

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house")]
OTHER_LAYOUT_TOLERANCE = 1e-4  # the summation order differs
SAVED_AFTER, STEPS = 2, 4


def build_distiller(teacher, rank, world_size, stage):
    import numpy as np

    options = recipe.parse(
        "",
        [
            f"train.num_workers={world_size}",
            f"train.zero_stage={stage}",
            "train.batch_size=4",
            "train.clip_images=3",
            "train.clip_margin=2.0",
            "lora_teacher.rank=2",
            "student.learning_rate=1e-3",
        ],
    )
    model = models.load(Path(teacher))
    built = engines.build_engines(options, model, torch.device("cpu"), workers=world_size)
    negatives = NegativeSampler(["ugly", "dark"], np.array([0.5, 1.0]), False)
    return Distiller(
        options, model, built, negatives, Clip.load(options.train.clip_model), None, None, rank, world_size
    )


def run_steps(distiller, first, last):
    size = len(PROMPTS) // distiller.world_size
    prompts = PROMPTS[distiller.rank * size : (distiller.rank + 1) * size]
    return [distiller.step(step, prompts)["loss_lora_teacher"] for step in range(first, last)]


def run_process(rank, world_size, stage, teacher, workspace, *resumes):
    """Train and save halfway, or resume the saved run, once for each of `resumes`."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    store = f"file://{workspace}/store-{world_size}-{stage}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    for resume in resumes:
        train(rank, world_size, stage, teacher, workspace, resume)
    torch.distributed.destroy_process_group()


def train(rank, world_size, stage, teacher, workspace, resume):
    distiller = build_distiller(teacher, rank, world_size, stage)
    first_step = checkpoint.load(distiller, workspace / "checkpoint") if resume else 0
    losses = run_steps(distiller, first_step, SAVED_AFTER) if not resume else []
    if not resume:
        checkpoint.save(distiller, workspace / "checkpoint", SAVED_AFTER)
    losses += run_steps(distiller, SAVED_AFTER, STEPS)
    if rank == 0:
        weights = {"weights": distiller.collect_student_weights(), "ema": distiller.ema}
        result = {"losses": losses[-2:], "first": first_step, **weights}
        torch.save(result, workspace / f"end-{world_size}-{stage}-{resume}.pt")


def spawn_processes(teacher, workspace, world_size, stage, *resumes):
    arguments = (world_size, stage, str(teacher), workspace, *resumes)
    torch.multiprocessing.spawn(run_process, arguments, nprocs=world_size, join=True)


def load_result(workspace, world_size, stage, resume):
    return torch.load(workspace / f"end-{world_size}-{stage}-{resume}.pt", weights_only=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("universal")
    (folder / "checkpoint").mkdir()
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tiny_teacher, workspace):
    """Return the result of two processes with ZeRO 2; they saved halfway and then resumed from there too."""
    spawn_processes(tiny_teacher, workspace, 2, 2, False, True)
    return load_result(workspace, 2, 2, False)


def test_a_resumed_run_has_the_same_result(workspace, uninterrupted):
    resumed = load_result(workspace, 2, 2, True)
    assert resumed["first"] == SAVED_AFTER
    assert resumed["losses"] == uninterrupted["losses"]
    assert_same(resumed, uninterrupted, tolerance=0)


@pytest.mark.slow
def test_a_checkpoint_resumes_with_another_world_size_and_stage(tiny_teacher, workspace, uninterrupted):
    spawn_processes(tiny_teacher, workspace, 1, 1, True)
    assert_same(load_result(workspace, 1, 1, True), uninterrupted, OTHER_LAYOUT_TOLERANCE)


def assert_same(actual, expected, tolerance):
    for name in ("weights", "ema"):
        for key, value in expected[name].items():
            torch.testing.assert_close(actual[name][key], value, atol=tolerance, rtol=tolerance)
