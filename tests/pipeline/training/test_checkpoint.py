"""A checkpoint of two processes, resumed by one, two and three, in the same and in other ZeRO stages."""

import datetime
import os
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from pipeline import models, recipe
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.training import checkpoint, deepspeed_engine, engines
from pipeline.training.distiller import Distiller

pytestmark = pytest.mark.integration

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house")]
OTHER_LAYOUT_TOLERANCE = 1e-4  # the summation order differs
SAVED_AFTER, STEPS = 2, 4
PERSISTENT_SIZE = 200  # elements: by its own limit DeepSpeed would leave this small denoiser whole
OFFLOAD = "train.offload_optimizer=true"


def build_distiller(teacher, rank, world_size, stage, *overrides):
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
            *overrides,
        ],
    )
    model = models.load(Path(teacher))
    built = engines.build_engines(options, model, torch.device("cpu"), workers=world_size)
    negatives = NegativeSampler(["ugly", "dark"], np.array([0.5, 1.0]), False)
    return Distiller(
        options, model, built, negatives, Clip.load(options.train.clip_model), None, None, rank, world_size
    )


def run_steps(distiller, first, last):
    indices = distiller.recipe.get_batch_slice(distiller.rank, distiller.world_size)
    prompts = [PROMPTS[index] for index in indices]
    return [distiller.step(step, prompts)["loss_lora_teacher"] for step in range(first, last)]


def run_process(rank, world_size, teacher, workspace, stages, resumes, shared=()):
    """Train in each of `stages` and save halfway; then do each of `resumes`."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    deepspeed_engine.PERSISTENT_SIZE = PERSISTENT_SIZE
    store, limit = f"file://{workspace}/store-{world_size}", datetime.timedelta(minutes=3)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=limit)
    for stage in stages:
        distiller = build_distiller(teacher, rank, world_size, stage, *shared)
        run_steps(distiller, 0, SAVED_AFTER)
        checkpoint.save(distiller, workspace / f"checkpoint-{stage}", SAVED_AFTER)
        finish(distiller, workspace / f"end-{stage}.pt", SAVED_AFTER)
        first_step = checkpoint.load(distiller, workspace / f"checkpoint-{stage}")  # as after a rollback
        finish(distiller, workspace / f"end-{stage}-rollback.pt", first_step)
    for source, stage, *overrides in resumes:
        distiller = build_distiller(teacher, rank, world_size, stage, *shared, *overrides)
        first_step = checkpoint.load(distiller, workspace / f"checkpoint-{source}")
        name = "-".join(["end", str(source), str(world_size), str(stage), *("offload" for _ in overrides)])
        finish(distiller, workspace / f"{name}.pt", first_step)
    torch.distributed.destroy_process_group()


def finish(distiller, file, first_step):
    """Train to the last step, and save the result on rank 0."""
    losses = run_steps(distiller, first_step, STEPS)
    weights = distiller.collect_student_weights()
    if distiller.rank == 0:
        copies = {name: value.clone() for name, value in weights.items()}
        ema = {name: value.clone() for name, value in distiller.ema.items()}
        torch.save({"losses": losses, "first": first_step, "weights": copies, "ema": ema}, file)


def spawn_processes(teacher, workspace, world_size, stages, resumes, shared=()):
    arguments = (world_size, str(teacher), workspace, stages, resumes, shared)
    torch.multiprocessing.spawn(run_process, arguments, nprocs=world_size, join=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("universal")
    for stage in range(4):
        (folder / f"checkpoint-{stage}").mkdir()
    return folder


@pytest.fixture(scope="module")
def saved(tiny_teacher, workspace):
    """Train two processes in ZeRO 2 and 3 and save halfway; resume those from there too, as they are and exchanged."""
    spawn_processes(tiny_teacher, workspace, 2, (2, 3), ((2, 2), (3, 3), (3, 2), (2, 3)))
    return lambda name: torch.load(workspace / f"end-{name}.pt")


@pytest.mark.parametrize("name", ["2-2-2", "2-rollback", "3-2-3", "3-rollback"])
def test_a_resumed_run_has_the_same_result(saved, name):
    resumed, uninterrupted = saved(name), saved(name[0])
    assert resumed["first"] == SAVED_AFTER
    assert resumed["losses"] == uninterrupted["losses"]
    assert_same(resumed, uninterrupted, tolerance=0)


@pytest.mark.parametrize("name", ["3-2-2", "2-2-3"])
def test_a_checkpoint_resumes_with_another_stage(saved, name):
    assert_same(saved(name), saved(name[0]), OTHER_LAYOUT_TOLERANCE)


@pytest.fixture(scope="module")
def saved_unsharded(tiny_teacher, saved, tmp_path_factory):
    """Train in ZeRO 0 and 1 too, and resume all that changes little code."""
    workspace = tmp_path_factory.mktemp("unsharded")
    for stage in range(4):
        (workspace / f"checkpoint-{stage}").mkdir()
    resumes = ((0, 0), (0, 3), (3, 0), (1, 3), (2, 2, OFFLOAD), (3, 3, OFFLOAD), (3, 2, OFFLOAD))
    spawn_processes(tiny_teacher, workspace, 2, (0, 1, 2, 3), resumes)
    return lambda name: torch.load(workspace / f"end-{name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["0-2-0", "0-2-3", "3-2-0", "1-2-3", "2-2-2-offload", "3-2-3-offload", "3-2-2-offload"]
)
def test_a_checkpoint_resumes_from_stage_0_and_with_offload(saved_unsharded, name):
    assert saved_unsharded(name)["first"] == SAVED_AFTER
    assert_same(saved_unsharded(name), saved_unsharded(name[0]), OTHER_LAYOUT_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "resumes"), [(1, ((2, 1), (3, 2), (3, 3))), (3, ((3, 3), (2, 3), (3, 2)))])
def test_a_checkpoint_resumes_with_another_number_of_workers(tiny_teacher, workspace, saved, world_size, resumes):
    """Three workers divide no parameter of this denoiser evenly, and four images neither."""
    spawn_processes(tiny_teacher, workspace, world_size, (), resumes)
    for source, stage in resumes:
        assert_same(saved(f"{source}-{world_size}-{stage}"), saved(str(source)), OTHER_LAYOUT_TOLERANCE)


def assert_same(actual, expected, tolerance):
    for name in ("weights", "ema"):
        assert actual[name].keys() == expected[name].keys()
        for key, value in expected[name].items():
            torch.testing.assert_close(actual[name][key], value, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def saved_before_the_student_s_first_step(tiny_teacher, tmp_path_factory):
    """Save while the LoRA teacher warms up, and resume with other stages."""
    workspace = tmp_path_factory.mktemp("warm-up")
    for stage in range(4):
        (workspace / f"checkpoint-{stage}").mkdir()
    warm_up = [f"lora_teacher.warm_up_steps={SAVED_AFTER + 1}"]
    spawn_processes(tiny_teacher, workspace, 2, (0, 2, 3), ((0, 2), (2, 3), (2, 0), (3, 2)), warm_up)
    return lambda name: torch.load(workspace / f"end-{name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["0-2-2", "2-2-3", "2-2-0", "3-2-2", "2-rollback", "3-rollback"])
def test_a_checkpoint_before_an_engine_s_first_step_resumes(saved_before_the_student_s_first_step, name):
    load = saved_before_the_student_s_first_step
    assert_same(load(name), load(name[0]), OTHER_LAYOUT_TOLERANCE)
