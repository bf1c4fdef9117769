"""Measurements that need a GPU, in under eight minutes.

    make gpu-wheels     # on a machine with a network: diffusers, DeepSpeed and their dependencies, into build/wheels
    make gpu            # on the GPU machine, which also needs torch, transformers and peft
    python -m benchmarks.gpu --device cpu --sizes tiny --batch 2 --toy-steps 5 --out gpu.json    # does it run?

A step row measures a bfloat16 step of a paper recipe's architecture, with random weights, through DeepSpeed's engines:
seconds, images/s beside SwiftBrush's step in the same run, and peak memory beside the estimate. A steering row measures
a call of the denoiser, plain and with a negative prompt. The row "distil" trains a student of the bundled teacher in
bfloat16, by the distiller of a Ray Train worker, and judges its images. Each row is written to
--out and not measured again.
"""

import argparse
import json
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed

import nasa
from benchmarks.gpu_step import GIB, LEARNING_RATES, SIZES, Baseline, StepSetup
from nasa import architectures
from nasa.distillation import lora_teacher_loss, student_loss
from nasa.lora import get_lora_parameters
from pipeline.training.deepspeed_engine import EngineOptions, initialize

ESTIMATES = Path(__file__).parents[1] / "docs" / "data" / "gpu_estimates.json"
BATCH = {"tiny": 4, "sd15": 16, "sd21": 16, "pixart": 8}  # per worker, in the paper's recipes
STEERED: dict[str, tuple[Callable[[], Any], int, int]] = {  # model, tokens, features
    "tiny": SIZES["tiny"],
    "sd21": SIZES["sd21"],
    "sdxl": (architectures.build_sdxl, 77, 2048),
    "pixart": SIZES["pixart"],
}
ENGINE_STAGES = (0, 1, 2)
ROWS = ("distil", "step", "engine", "steer")
WARM_UP, STEPS, CALLS = 2, 5, 10

Measure = Callable[[str, argparse.Namespace], dict[str, Any]]


class DeepSpeedStep:
    """A step of NASA-T through two DeepSpeed engines, as in a Ray Train worker."""

    def __init__(self, setup: StepSetup, zero_stage: int = 2) -> None:
        self.setup = setup
        options = EngineOptions(setup.batch, 1, 1.0, zero_stage)
        student, teachers = setup.student(), setup.lora_teacher()
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.student = initialize(student, trained, LEARNING_RATES[0], options)
        self.lora_teacher = initialize(teachers, get_lora_parameters(teachers), LEARNING_RATES[1], options)
        self.model = student.model

    def step(self, texts: Any, randomness: Any) -> dict[str, torch.Tensor]:
        setup = self.setup
        teachers = self.lora_teacher.module
        student = student_loss(self.student, teachers, setup.diffusion, setup.method, texts, randomness)
        self.student.backward(student.loss)
        self.student.step()
        lora_loss = lora_teacher_loss(self.lora_teacher, setup.diffusion, setup.method, texts, randomness, student.x0)
        self.lora_teacher.backward(lora_loss)
        self.lora_teacher.step()
        return {"loss_student": student.loss.detach(), "loss_lora_teacher": lora_loss.detach()}


def measure_step(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a training step, ours and SwiftBrush's: time, peak memory and losses."""
    setup = StepSetup(argparse.Namespace(**vars(options), size=size, bfloat16=True))
    setup.batch = options.batch or BATCH[size]
    ours, baseline = (_measure_stepper(setup, make(setup)) for make in (DeepSpeedStep, Baseline))
    row = {"batch": setup.batch, "estimate_gib": _read_estimates().get(size), "ours": ours, "baseline": baseline}
    return row | {"ratio": baseline["seconds"] / ours["seconds"]}


def measure_engine(size_and_stage: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a step through DeepSpeed's engines in one ZeRO stage."""
    size, stage = size_and_stage.split()
    setup = StepSetup(argparse.Namespace(**vars(options), size=size, bfloat16=True))
    setup.batch = options.batch or BATCH[size]
    return _measure_stepper(setup, DeepSpeedStep(setup, int(stage)))


def _measure_stepper(setup: StepSetup, stepper: DeepSpeedStep | Baseline) -> dict[str, Any]:
    durations, losses = [], {}
    for number in range(WARM_UP + STEPS):
        inputs = setup.sample_inputs(number, stepper.model)
        setup.synchronize()
        started = time.perf_counter()
        losses = stepper.step(*inputs)
        setup.synchronize()
        durations.append(time.perf_counter() - started)
    seconds = sorted(durations[WARM_UP:])[STEPS // 2]
    assert all(math.isfinite(float(value)) for value in losses.values()), losses
    return {
        "seconds": seconds,
        "images_per_second": setup.batch / seconds,
        **_read_peak_memory(setup),  # of the process, so only the first stepper's is its own
        **{key: float(value) for key, value in losses.items()},
    }


def measure_steering(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time a call of the denoiser in bfloat16: plain, with its batch doubled as CFG does, and steered."""
    build_model, tokens, features = STEERED[size]
    device = torch.device(options.device)
    torch.manual_seed(0)
    with device:
        model = build_model().to(torch.bfloat16).requires_grad_(False).eval()
    masked = type(model).__name__ == "PixArtTransformer2DModel"
    name = "transformer" if masked else "unet"
    pipe = SimpleNamespace(**{name: model}, scheduler=SimpleNamespace(timesteps=[0]))
    side, channels = model.config.sample_size, model.config.in_channels
    latents = torch.randn(1, channels, side, side, device=device, dtype=torch.bfloat16)
    text = torch.randn(1, tokens, features, device=device, dtype=torch.bfloat16)
    more: dict[str, Any] = {}
    if size == "sdxl":
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        more = {"added_cond_kwargs": {key: value.to(device, torch.bfloat16) for key, value in added.items()}}
    if masked:
        more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}

    def call(copies: int) -> None:
        arguments = dict(more)
        if size == "sdxl":
            arguments["added_cond_kwargs"] = {
                key: value.repeat(copies, 1) for key, value in more["added_cond_kwargs"].items()
            }
        timestep = torch.full((copies,), 500, device=device)
        model(
            latents.repeat(copies, 1, 1, 1),
            timestep=timestep,
            encoder_hidden_states=text.repeat(copies, 1, 1),
            **arguments,
        )

    negative = torch.randn_like(text)
    row = {"plain": _time(device, lambda: call(1)), "cfg": _time(device, lambda: call(2))}
    for rule in ("nag", "nasa"):
        with nasa.steer(pipe, negative_prompt_embeds=negative, scale=0.3, rule=rule):
            row[rule] = _time(device, lambda: call(1))
    return row | {f"{name}_ratio": row[name] / row["plain"] for name in ("cfg", "nag", "nasa")}


def measure_distillation(recipe_name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train a student of the bundled teacher for `--toy-steps` steps; measure its seconds per step and its images."""
    from benchmarks.toy_students import build_distiller, judge_held_out
    from datasets_prep.shapes.prompts import sample_prompts
    from pipeline import models, recipe
    from pipeline.evaluation.judges.attribute_judge import AttributeJudge
    from pipeline.evaluation.sampling import Sampler, SamplingMethod
    from pipeline.training.engines import build_deepspeed_engine

    settings = recipe.load(recipe_name, ["train.num_workers=1", 'train.precision="bfloat16"'])
    distiller = build_distiller(settings, options.device, build_deepspeed_engine)
    prompts = list(sample_prompts(settings.prompts.count, settings.seed))
    batch, durations, metrics = settings.train.batch_size, [], {}
    for step in range(options.toy_steps):
        started = time.perf_counter()
        metrics = distiller.step(step, [prompts[i % len(prompts)] for i in range(step * batch, (step + 1) * batch)])
        durations.append(time.perf_counter() - started)
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    student = models.load(distiller.model.folder, options.device)  # in float32, as in an evaluation
    student.denoiser.load_state_dict(distiller.ema, strict=False)
    sampler, judge = Sampler(student), AttributeJudge.load()
    accurate = judge_held_out(sampler, judge, SamplingMethod(), 512, settings.evaluation.seed)
    return {
        "steps": options.toy_steps,
        "batch": batch,
        "seconds": sorted(durations)[len(durations) // 2],
        "clean_and_right": sum(accurate) / len(accurate),
        **metrics,
    }


@torch.inference_mode()
def _time(device: torch.device, call: Callable[[], None]) -> float:
    """Return the median seconds of a call."""
    durations = []
    for _ in range(WARM_UP + CALLS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - started)
    return sorted(durations[WARM_UP:])[CALLS // 2]


def _read_peak_memory(setup: StepSetup) -> dict[str, float]:
    """Return the most memory that torch's allocator reserved, and that tensors took, in GiB; empty without a GPU."""
    if setup.device.type != "cuda":
        return {}
    peaks = {"peak_gib": torch.cuda.max_memory_reserved(), "peak_allocated_gib": torch.cuda.max_memory_allocated()}
    return {name: value / GIB for name, value in peaks.items()}


def _read_estimates() -> dict[str, float]:
    return dict(json.loads(ESTIMATES.read_text())) if ESTIMATES.is_file() else {}


def write_estimates() -> None:
    """Write the memory that `distill --dry-run` estimates for one worker without CLIP loss and text encoder, in GiB."""
    from pipeline.recipe import load
    from pipeline.training.resource_estimate import estimate

    estimates = {}
    for size in ("sd15", "sd21", "pixart"):
        sets = ["train.num_workers=1", f"train.batch_size={BATCH[size]}", "train.clip_weight=0", "train.num_encoders=1"]
        memory = dict(estimate(load(size, sets)).memory)
        memory.pop("student's moving average")  # the measured step has none
        estimates[size] = round(sum(memory.values()) / GIB, 2)
    ESTIMATES.write_text(json.dumps(estimates, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="*", choices=STEERED, default=["sd21", "pixart", "sdxl", "sd15"])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), help="kinds of rows (default: all)")
    parser.add_argument("--batch", type=int, default=0, help="images per step (default: those of the recipe's worker)")
    parser.add_argument("--toy-steps", type=int, default=300, help="steps of the bundled teacher's distillation")
    parser.add_argument("--out", type=Path, default=Path("docs/data/gpu.json"))
    parser.add_argument("--estimates", action="store_true", help="only write the memory estimates to compare with")
    options = parser.parse_args()
    if options.estimates:
        write_estimates()
        return
    failed: list[str] = []
    done = json.loads(options.out.read_text()) if options.out.is_file() else {}
    rows: list[tuple[str, str, Measure]] = [("distil", "shapes", measure_distillation)]
    rows += [("step", size, measure_step) for size in options.sizes if size in SIZES]
    rows += [("engine", f"{options.sizes[0]} {stage}", measure_engine) for stage in ENGINE_STAGES]
    rows += [("steer", size, measure_steering) for size in options.sizes if size in STEERED]
    for kind, size, measure in [row for row in rows if row[0] in options.rows]:
        key = f"{kind} {size}"
        if key not in done:
            try:
                row = _run_in_process(measure, size, options)
            except Exception:  # the other rows need the same machine, which may not come again
                failed.append(key)
                traceback.print_exc()
                continue
            done[key] = row
            scratch = options.out.with_suffix(".partial")
            scratch.write_text(json.dumps(done, indent=1) + "\n")
            scratch.replace(options.out)
        print(key, json.dumps(done[key]), flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _run_in_process(measure: Measure, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return a row, measured in a process of its own, whose memory nothing else has used."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_in_child, (measure, size, options))


def _measure_in_child(measure: Measure, size: str, options: argparse.Namespace) -> dict[str, Any]:
    _init_process_group(options.device)
    row = measure(size, options) | {"device": _device_name(options.device), "torch": torch.__version__}
    torch.distributed.destroy_process_group()
    return row


def _init_process_group(device: str) -> None:
    """Initialise the process group of one process that DeepSpeed requires."""
    defaults = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


if __name__ == "__main__":
    main()
