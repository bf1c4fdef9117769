"""Ten steps of two gloo processes in each ZeRO stage, against one process of plain torch on the same batches."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from nasa.testing.tiny_pipelines import TINY_PIPELINES
from pipeline import models, recipe
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.training import deepspeed_engine, engines
from pipeline.training.distiller import Distiller
from pipeline.training.sharded_weights import is_sharded, iter_whole

pytestmark = pytest.mark.integration

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house")]
STEPS, WORKERS = 10, 2
PERSISTENT_SIZE = 200  # elements: by its own limit DeepSpeed would leave this small denoiser whole
METRIC_TOLERANCE = 1e-4  # relative
WEIGHT_TOLERANCE = 1e-3  # of the distance that the weights moved: the order of sums differs, and Adam divides by it
BFLOAT16_TOLERANCE = 5e-2  # of both: a batch is rounded otherwise than its halves
LOCAL_STATISTICS = ("vsd_gradient_rms", "image_variation")  # not linear in the images, so not the mean over the ranks
BASE = [
    *("train.batch_size=4", "train.clip_images=3", "train.clip_margin=2.0", "lora_teacher.rank=2"),
    *("student.learning_rate=1e-4", "student.ema_decay=0.5"),
]
LORA = ["student.lora_rank=2", "student.lora_alpha=8"]


class Case(NamedTuple):
    """What DeepSpeed and plain torch are both given, and what only DeepSpeed is."""

    both: tuple[str, ...] = ()
    sharded: tuple[str, ...] = ()
    teacher: str = "stable-diffusion"


STAGE_3 = ("train.zero_stage=3",)
CASES = {
    **{f"stage-{stage}": Case(sharded=(f"train.zero_stage={stage}",)) for stage in range(4)},
    "accumulation": Case(("train.micro_batch_size=1", "method.lora_shares_pass=true"), STAGE_3),
    "checkpointing": Case(("train.gradient_checkpointing=true",), STAGE_3),
    "lora-student": Case(tuple(LORA), STAGE_3),
    "pixart": Case((), STAGE_3, "pixart"),
    "bfloat16": Case(('train.precision="bfloat16"',), STAGE_3),
}
SLOW = set(CASES) - {f"stage-{stage}" for stage in range(4)}


def build_distiller(teacher, overrides, make, rank=0, world_size=1):
    options = recipe.parse("", [*BASE, f"train.num_workers={world_size}", *overrides])
    model = models.load(Path(teacher))
    built = engines.build_engines(options, model, torch.device("cpu"), workers=world_size, make=make)
    negatives = NegativeSampler(["ugly", "dark"], np.array([0.5, 1.0]), False)
    return Distiller(
        options, model, built, negatives, Clip.load(options.train.clip_model), None, None, rank, world_size
    )


def collect(distiller):
    """Return all trained weights of both engines, whole and copied."""
    adapters = [(name, value) for name, value in distiller.engines.teachers.named_parameters() if "lora_" in name]
    copied = {f"lora_teacher.{name}": value.clone() for name, value in iter_whole(adapters)}
    return copied | {name: value.clone() for name, value in distiller.iter_student_weights()}


def train(distiller):
    """Train; return the weights before and after, the EMA weights, the metrics and the number of sharded weights."""
    size = len(PROMPTS) // distiller.world_size
    prompts = PROMPTS[distiller.rank * size : (distiller.rank + 1) * size]
    start = collect(distiller)
    metrics = [distiller.step(step, prompts) for step in range(STEPS)]
    parameters = [*distiller.engines.student.module.parameters(), *distiller.engines.teachers.parameters()]
    return {
        "start": start,
        "weights": collect(distiller),
        "student": {name: value.clone() for name, value in distiller.collect_student_weights().items()},
        "ema": distiller.ema,
        "metrics": metrics,
        "sharded": sum(is_sharded(each) and each.numel() == 0 for each in parameters),
    }


def run_process(rank, folder, names):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    deepspeed_engine.PERSISTENT_SIZE = PERSISTENT_SIZE
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORKERS)
    for name in names:
        case = CASES[name]
        overrides = [*case.both, *case.sharded]
        distiller = build_distiller(folder / case.teacher, overrides, engines.build_deepspeed_engine, rank, WORKERS)
        result = train(distiller)
        assert not rank or not distiller.ema, "rank 0 alone keeps the moving average"
        if rank == 0:
            torch.save(result, folder / f"{name}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(request, tmp_path_factory):
    """Return a function that gives a case's result; both processes run all selected cases once."""
    folder = tmp_path_factory.mktemp("stages")
    names = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    for teacher in {CASES[name].teacher for name in names}:
        TINY_PIPELINES[teacher]().save_pretrained(folder / teacher)
    torch.multiprocessing.spawn(run_process, (folder, sorted(names)), nprocs=WORKERS, join=True)
    return lambda name: (folder / CASES[name].teacher, torch.load(folder / f"{name}.pt", weights_only=True))


@pytest.fixture(scope="module")
def plain_results():
    return {}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CASES])
def test_two_processes_equal_plain_torch(sharded, plain_results, name):
    teacher, actual = sharded(name)
    case = CASES[name]
    key = (case.both, case.teacher)
    if key not in plain_results:
        plain_results[key] = train(build_distiller(teacher, case.both, engines.PlainEngine))
    expected = plain_results[key]
    reduced = "bfloat16" in name
    for one, other in zip(expected["metrics"], actual["metrics"], strict=True):
        for metric in one.keys() - set(LOCAL_STATISTICS):
            tolerance = BFLOAT16_TOLERANCE if reduced else METRIC_TOLERANCE
            assert other[metric] == pytest.approx(one[metric], rel=tolerance), metric
    assert actual["student"].keys() == actual["ema"].keys() == expected["ema"].keys()
    for part in ("weights", "student", "ema"):
        assert_close(
            actual[part], expected[part], expected["start"], BFLOAT16_TOLERANCE if reduced else WEIGHT_TOLERANCE
        )
    assert bool(actual["sharded"]) == ("train.zero_stage=3" in case.sharded)


def assert_close(actual, expected, start, tolerance):
    """Compare the difference, of the student and of the LoRA teacher alone, with the distance from the start."""
    assert actual.keys() == expected.keys()
    for prefix in (True, False):
        names = [name for name in expected if name.startswith("lora_teacher.") is prefix]
        if names:
            difference, distance = (
                torch.cat([(expected[name] - others[name]).flatten() for name in names]).norm()
                for others in (actual, start)
            )
            assert distance > 0
            assert difference < tolerance * distance, f"{difference / distance:.2e}"
