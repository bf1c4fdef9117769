"""A checkpoint of two processes continued by one, by two, and in another ZeRO stage."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from pipeline import models, recipe
from pipeline.models.clip.model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.training import checkpoint, engines
from pipeline.training.distiller import Distiller

pytestmark = pytest.mark.integration

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house")]
OTHER_LAYOUT_TOLERANCE = 1e-4  # sums in another order
SAVED_AFTER, STEPS = 2, 4


def distiller(teacher, rank, world_size, stage):
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
    built = engines.build(options, model, torch.device("cpu"), workers=world_size)
    negatives = NegativeSampler(["ugly", "dark"], np.array([0.5, 1.0]), False)
    return Distiller(options, model, built, negatives, Clip.load(options.train.clip_model), None, rank, world_size)


def run(made, first, last):
    size = len(PROMPTS) // made.world_size
    own = PROMPTS[made.rank * size : (made.rank + 1) * size]
    return [made.step(step, own)["loss_lora_teacher"] for step in range(first, last)]


def process(rank, world_size, stage, teacher, place, *resumes):
    """Each in turn: train and save halfway, or continue what was saved; leave losses and weights in a file."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    store = f"file://{place}/store-{world_size}-{stage}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    for resume in resumes:
        train(rank, world_size, stage, teacher, place, resume)
    torch.distributed.destroy_process_group()


def train(rank, world_size, stage, teacher, place, resume):
    made = distiller(teacher, rank, world_size, stage)
    first = checkpoint.load(made, place / "checkpoint") if resume else 0
    losses = run(made, first, SAVED_AFTER) if not resume else []
    if not resume:
        checkpoint.save(made, place / "checkpoint", SAVED_AFTER)
    losses += run(made, SAVED_AFTER, STEPS)
    if rank == 0:
        torch.save({"losses": losses[-2:], "first": first, "weights": made.collect_student_weights(), "ema": made.ema},
                   place / f"end-{world_size}-{stage}-{resume}.pt")  # fmt: skip


def processes(teacher, place, world_size, stage, *resumes):
    arguments = (world_size, stage, str(teacher), place, *resumes)
    torch.multiprocessing.spawn(process, arguments, nprocs=world_size, join=True)


def end(place, world_size, stage, resume):
    return torch.load(place / f"end-{world_size}-{stage}-{resume}.pt", weights_only=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("universal")
    (folder / "checkpoint").mkdir()
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tiny_teacher, place):
    """Two processes, ZeRO 2, which saved halfway, and then began again from there."""
    processes(tiny_teacher, place, 2, 2, False, True)
    return end(place, 2, 2, False)


def test_a_checkpoint_continues_to_the_same_end(place, uninterrupted):
    continued = end(place, 2, 2, True)
    assert continued["first"] == SAVED_AFTER
    assert continued["losses"] == uninterrupted["losses"]
    same(continued, uninterrupted, tolerance=0)


@pytest.mark.slow
def test_a_checkpoint_continues_on_another_number_of_processes_and_stage(tiny_teacher, place, uninterrupted):
    processes(tiny_teacher, place, 1, 1, True)
    same(end(place, 1, 1, True), uninterrupted, OTHER_LAYOUT_TOLERANCE)


def same(found, expected, tolerance):
    for name in ("weights", "ema"):
        for key, value in expected[name].items():
            torch.testing.assert_close(found[name][key], value, atol=tolerance, rtol=tolerance)
