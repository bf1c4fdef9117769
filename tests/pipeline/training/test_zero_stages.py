"""Two gloo processes in each ZeRO stage and with each memory option, against one process of plain torch."""

import datetime
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F

from nasa.testing.tiny_pipelines import TINY_PIPELINES
from pipeline import models, recipe
from pipeline.models.clip.loss_model import Clip
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.training import deepspeed_engine, engines
from pipeline.training.distiller import Distiller
from pipeline.training.progress_reporter import ProgressReporter
from pipeline.training.sharded_weights import is_sharded, iter_whole

pytestmark = pytest.mark.integration

PROMPTS = [f"a photo of a {thing}" for thing in ("cat", "dog", "tree", "house")]
STEPS, FEW_STEPS, WORKERS = 10, 3, 2
PERSISTENT_SIZE = 200  # elements: by its own limit DeepSpeed would leave this small denoiser whole
METRIC_TOLERANCE = 2e-4  # relative
WEIGHT_TOLERANCE = 1e-3  # of the distance that the weights moved: the order of sums differs, and Adam divides by it
ROUNDED_TOLERANCE = 0.1  # of both, if gradients have 8 bits: Adam's first steps take their signs
BFLOAT16_METRIC_TOLERANCE = 1e-3  # of the first step: DeepSpeed's hooks add up a layer's gradients in another order
LOCAL_STATISTICS = {"vsd_gradient_rms", "image_variation"}  # not linear in the images, so not the mean over the ranks
BASE = [
    *("train.batch_size=4", "train.clip_images=3", "train.clip_margin=2.0", "lora_teacher.rank=2"),
    *("student.learning_rate=1e-4", "student.ema_decay=0.5"),
]


class Case(NamedTuple):
    """Overrides for DeepSpeed and plain torch (`both`), and for DeepSpeed alone (`stage`, `options`).

    `reference` is another case to compare with instead of plain torch.
    """

    stage: int = 3
    options: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    teacher: str = "stable-diffusion"
    steps: int = FEW_STEPS
    reference: str = ""

    @property
    def metric_tolerance(self) -> float:
        if SENT_REDUCED in self.options:
            return ROUNDED_TOLERANCE
        return BFLOAT16_METRIC_TOLERANCE if self.both == BFLOAT16 else METRIC_TOLERANCE

    @property
    def weight_tolerance(self) -> float:
        return ROUNDED_TOLERANCE if SENT_REDUCED in self.options or self.both == BFLOAT16 else WEIGHT_TOLERANCE


OFFLOAD, PARAMETERS = "train.offload_optimizer=true", "train.offload_parameters=true"
SENT_REDUCED, OVERLAP = 'train.communication_precision="bfloat16"', "train.overlap_comm=true"
BFLOAT16 = ('train.precision="bfloat16"',)
FALLING_RATE = ("student.lr_scheduler=linear", f"train.steps={STEPS}")
ALWAYS = {f"stage-{stage}": Case(stage, both=FALLING_RATE, steps=STEPS) for stage in range(4)}
SLOW = {
    **{f"offload-optimizer-{stage}": Case(stage, (OFFLOAD,)) for stage in (1, 2, 3)},
    "offload-parameters": Case(3, (PARAMETERS,)),
    "offload-both": Case(3, (OFFLOAD, PARAMETERS)),
    **{f"overlap-{stage}": Case(stage, (OVERLAP,)) for stage in (1, 2, 3)},
    **{f"sent-in-bfloat16-{stage}": Case(stage, (SENT_REDUCED,)) for stage in range(4)},
    "accumulation": Case(both=("train.micro_batch_size=1", "method.lora_shares_pass=true")),
    "checkpointing": Case(both=("train.gradient_checkpointing=true",)),
    "lora-student": Case(both=("student.lora_rank=2", "student.lora_alpha=8", "student.learning_rate=1e-3")),
    "pixart": Case(teacher="pixart"),
    "four-steps": Case(both=("method.student_steps=4", "method.lora_updates=3", "train.micro_batch_size=1")),
    "bfloat16": Case(
        both=BFLOAT16, steps=1, reference="bfloat16-stage-2"
    ),  # a batch's halves are rounded unlike the whole
}
CASES = ALWAYS | SLOW | {"bfloat16-stage-2": Case(2, both=BFLOAT16, steps=1)}


def build_distiller(teacher, overrides, make, rank=0, world_size=1):
    options = recipe.parse("", [*BASE, f"train.num_workers={world_size}", *overrides])
    model = models.load_for_recipe(options, Path(teacher))
    built = engines.build_engines(options, model, torch.device("cpu"), workers=world_size, make=make)
    negatives = NegativeSampler(["ugly", "dark"], np.array([0.5, 1.0]), False)
    return Distiller(
        options, model, built, negatives, Clip.load(options.train.clip_model), None, None, rank, world_size
    )


def copy_trained(distiller):
    """Return all trained weights of both engines, whole."""
    adapters = [(name, value) for name, value in distiller.engines.teachers.named_parameters() if "lora_" in name]
    copied = {f"lora_teacher.{name}": value.clone() for name, value in iter_whole(adapters)}
    return copied | {name: value.clone() for name, value in distiller.iter_student_weights()}


def train(distiller, steps):
    """Train; return the weights before and after, the EMA weights, the metrics and the number of sharded weights."""
    size = len(PROMPTS) // distiller.world_size
    prompts = PROMPTS[distiller.rank * size : (distiller.rank + 1) * size]
    start = copy_trained(distiller)
    metrics = [distiller.step(step, prompts) for step in range(steps)]
    parameters = [*distiller.engines.student.module.parameters(), *distiller.engines.teachers.parameters()]
    return {
        "start": start,
        "weights": copy_trained(distiller),
        "student": {name: value.clone() for name, value in distiller.collect_student_weights().items()},
        "ema": distiller.ema,
        "metrics": metrics,
        "sharded": sum(is_sharded(each) and each.numel() == 0 for each in parameters),
        "previews": draw_previews(distiller),
    }


class FakeTracker:
    """Stands in for MLflow, and keeps the images."""

    run_id = "run"

    def __init__(self):
        self.images = {}

    def skip_written(self, *_):
        pass

    def log_image(self, sheet, *, key, step):
        self.images[key] = torch.from_numpy(np.array(sheet))


def draw_previews(distiller):
    """Return the images that rank 0 logs; if another rank did not help, a sharded student would wait for ever."""
    tracker = FakeTracker() if distiller.rank == 0 else None
    ProgressReporter(tracker, None, distiller.recipe, 0, 0, ("a cat",)).log_previews(distiller, 0)
    return tracker.images if tracker else {}


def assert_configured(distiller):
    """Ask DeepSpeed what it does: on a CPU, states that are offloaded are where they would be otherwise."""
    options = distiller.recipe.train
    for _, engine in distiller.engines.list_named():
        assert engine.zero_optimization_stage() == options.zero_stage
        assert bool(engine.zero_offload_optimizer()) == options.offload_optimizer
        assert bool(engine.zero_offload_param()) == options.offload_parameters
        assert not options.zero_stage or engine.zero_overlap_comm() == options.overlap_comm


def run_process(rank, folder, names):
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    deepspeed_engine.PERSISTENT_SIZE = PERSISTENT_SIZE
    store, limit = f"file://{folder}/store", datetime.timedelta(minutes=3)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORKERS, timeout=limit)
    linear = F.linear
    for name in names:
        case = CASES[name]
        overrides = [f"train.zero_stage={case.stage}", *case.options, *case.both]
        distiller = build_distiller(folder / case.teacher, overrides, engines.build_deepspeed_engine, rank, WORKERS)
        assert_configured(distiller)
        result = train(distiller, case.steps)
        assert bool(distiller.ema) == (rank == 0), "rank 0 alone keeps the moving average"
        assert F.linear is linear, "DeepSpeed replaced it in the whole process"
        if rank == 0:
            torch.save(result, folder / f"{name}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def load_result(request, tmp_path_factory):
    """Run the selected cases, all in the same two processes; return a function that loads a case's result."""
    folder = tmp_path_factory.mktemp("stages")
    selected = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    names = selected | {CASES[name].reference for name in selected} - {""}
    for teacher in {CASES[name].teacher for name in names}:
        TINY_PIPELINES[teacher]().save_pretrained(folder / teacher)
    torch.multiprocessing.spawn(run_process, (folder, sorted(names)), nprocs=WORKERS, join=True)
    plain = {}

    def load(name):
        case = CASES[name]
        if case.reference:
            return torch.load(folder / f"{case.reference}.pt"), torch.load(folder / f"{name}.pt")
        key = case.both, case.teacher, case.steps
        if key not in plain:
            distiller = build_distiller(folder / case.teacher, case.both, engines.PlainEngine)
            plain[key] = train(distiller, case.steps)
        return plain[key], torch.load(folder / f"{name}.pt")

    return load


@pytest.mark.parametrize("name", [*ALWAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_two_processes_equal_plain_torch(load_result, name):
    expected, actual = load_result(name)
    case = CASES[name]
    for one, other in zip(expected["metrics"], actual["metrics"], strict=True):
        for metric in one.keys() - LOCAL_STATISTICS:
            assert other[metric] == pytest.approx(one[metric], rel=case.metric_tolerance), metric
    assert actual["student"].keys() == actual["ema"].keys() == expected["ema"].keys()
    for part in ("weights", "student", "ema"):
        distances = compute_distances(actual[part], expected[part], expected["start"])
        assert max(distances) < case.weight_tolerance, part
    if SENT_REDUCED in case.options:
        assert min(compute_distances(actual["weights"], expected["weights"], expected["start"])) > 1e-4, "not rounded"
    assert bool(actual["sharded"]) == (case.stage == 3)
    assert any("/ema_" in key for key in actual["previews"]) is (case.stage < 3), "no rank has a whole sharded student"
    compared = [key for key in expected["previews"] if case.stage < 3 or "/raw_" in key]
    assert compared
    for key in compared:
        assert (actual["previews"][key].float() - expected["previews"][key].float()).abs().mean() < 1


def compute_distances(actual, expected, start):
    """Return the norms of the differences over the distances moved, of the student and of the LoRA teacher."""
    assert actual.keys() == expected.keys()
    ratios = []
    for is_adapter in (True, False):
        if names := [name for name in expected if name.startswith("lora_teacher.") is is_adapter]:
            difference, distance = (
                torch.cat([(expected[name] - others[name]).flatten() for name in names]).norm()
                for others in (actual, start)
            )
            assert distance > 0
            ratios.append((difference / distance).item())
    return ratios
