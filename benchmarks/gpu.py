"""Measurements that need a GPU, in under eight minutes: one JSON, row by row.

    make gpu-wheels     # on a machine with a network: diffusers, DeepSpeed and what they need, into build/wheels
    make gpu            # on the GPU machine, which needs torch, transformers and peft beside those
    python -m benchmarks.gpu --device cpu --sizes tiny --batch 2 --out gpu.json    # does it run?

Each step row is a real bfloat16 step of a paper recipe's architecture with random weights through DeepSpeed's engines:
seconds, images/s beside SwiftBrush's step in the same run, and the peak of memory beside the estimate. Each steering
row is the time of a denoiser's call, plain and with a negative prompt. Rows that --out has are not run again.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed

import nasa
from benchmarks.gpu_step import GIB, RATES, SIZES, Baseline, Setting
from nasa import architectures
from nasa.distillation import lora_teacher_loss, student_loss
from nasa.teachers import get_lora_parameters
from pipeline.training.deepspeed_engine import EngineOptions, initialize

ESTIMATES = Path(__file__).parents[1] / "docs" / "data" / "gpu_estimates.json"
BATCH = {"tiny": 4, "sd15": 16, "sd21": 16, "pixart": 8}  # of a worker, in the paper's recipes
STEERED: dict[str, tuple[Callable[[], Any], int, int]] = {  # model, tokens, features
    "tiny": SIZES["tiny"],
    "sd21": SIZES["sd21"],
    "sdxl": (architectures.build_sdxl, 77, 2048),
    "pixart": SIZES["pixart"],
}
WARM_UP, STEPS, CALLS = 2, 5, 10


class DeepSpeedStep:
    """A step of NASA-T through two DeepSpeed engines, as a Ray Train worker has them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        options = EngineOptions(setting.batch, 1, 1.0, 2)
        student, teachers = setting.student(), setting.lora_teacher()
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.student = initialize(student, trained, RATES[0], options)
        self.lora_teacher = initialize(teachers, get_lora_parameters(teachers), RATES[1], options)
        self.model = student.model

    def step(self, texts: Any, randomness: Any) -> dict[str, torch.Tensor]:
        setting = self.setting
        teachers = self.lora_teacher.module
        found = student_loss(self.student, teachers, setting.diffusion, setting.method, texts, randomness)
        self.student.backward(found.loss)
        self.student.step()
        lora_loss = lora_teacher_loss(self.lora_teacher, setting.diffusion, texts, randomness, found.x0)
        self.lora_teacher.backward(lora_loss)
        self.lora_teacher.step()
        return {"loss_student": found.loss.detach(), "loss_lora_teacher": lora_loss.detach()}


def step_row(size: str, options: argparse.Namespace) -> dict[str, Any]:
    setting = Setting(argparse.Namespace(**vars(options), size=size, bfloat16=True))
    setting.batch = options.batch or BATCH[size]
    row: dict[str, Any] = {"batch": setting.batch, "estimate_gib": _estimates().get(size)}
    for name, make in (("ours", DeepSpeedStep), ("baseline", Baseline)):
        _reset(setting)
        made = make(setting)
        taken, losses = [], {}
        for number in range(WARM_UP + STEPS):
            inputs = setting.numbers(number, made.model)
            setting.wait()
            started = time.perf_counter()
            losses = made.step(*inputs)
            setting.wait()
            taken.append(time.perf_counter() - started)
        seconds = sorted(taken[WARM_UP:])[STEPS // 2]
        assert all(math.isfinite(float(value)) for value in losses.values()), losses
        row[name] = {
            "seconds": seconds,
            "images_per_second": setting.batch / seconds,
            "peak_gib": _peak(setting),
            **{key: float(value) for key, value in losses.items()},
        }
        del made
    row["ratio"] = row["baseline"]["seconds"] / row["ours"]["seconds"]
    return row


def steer_row(size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time a call of the denoiser in bfloat16: plain, with its batch doubled as CFG does, and steered."""
    make, tokens, features = STEERED[size]
    device = torch.device(options.device)
    torch.manual_seed(0)
    with device:
        model = make().to(torch.bfloat16).requires_grad_(False).eval()
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
        own = dict(more)
        if size == "sdxl":
            own["added_cond_kwargs"] = {
                key: value.repeat(copies, 1) for key, value in more["added_cond_kwargs"].items()
            }
        timestep = torch.full((copies,), 500, device=device)
        model(
            latents.repeat(copies, 1, 1, 1), timestep=timestep, encoder_hidden_states=text.repeat(copies, 1, 1), **own
        )

    negative = torch.randn_like(text)
    row = {"plain": _timed(device, lambda: call(1)), "cfg": _timed(device, lambda: call(2))}
    for method in ("nag", "nasa"):
        with nasa.steer(pipe, negative_prompt_embeds=negative, scale=0.3, rule=method):
            row[method] = _timed(device, lambda: call(1))
    return row | {f"{name}_ratio": row[name] / row["plain"] for name in ("cfg", "nag", "nasa")}


@torch.inference_mode()
def _timed(device: torch.device, call: Callable[[], None]) -> float:
    taken = []
    for _ in range(WARM_UP + CALLS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return sorted(taken[WARM_UP:])[CALLS // 2]


def _reset(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(setting: Setting) -> float | None:
    return torch.cuda.max_memory_reserved() / GIB if setting.device.type == "cuda" else None


def _estimates() -> dict[str, float]:
    return dict(json.loads(ESTIMATES.read_text())) if ESTIMATES.is_file() else {}


def write_estimates() -> None:
    """Write what `distill --dry-run` expects of one worker alone, without CLIP loss and text encoder, in GiB."""
    from pipeline.recipe import load
    from pipeline.training.estimate import estimate

    found = {}
    for size in ("sd15", "sd21", "pixart"):
        sets = ["train.num_workers=1", f"train.batch_size={BATCH[size]}", "train.clip_weight=0", "train.num_encoders=1"]
        memory = dict(estimate(load(size, sets)).memory)
        memory.pop("its moving average")  # the row has none
        found[size] = round(sum(memory.values()) / GIB, 2)
    ESTIMATES.write_text(json.dumps(found, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="*", choices=STEERED, default=["sd21", "pixart", "sdxl", "sd15"])
    parser.add_argument("--batch", type=int, default=0, help="images of a step (default: the recipe's of a worker)")
    parser.add_argument("--out", type=Path, default=Path("docs/data/gpu.json"))
    parser.add_argument("--estimates", action="store_true", help="write the estimates to compare with, and end")
    options = parser.parse_args()
    if options.estimates:
        write_estimates()
        return
    _one_process(options.device)
    done = json.loads(options.out.read_text()) if options.out.is_file() else {}
    rows = [("step", size, step_row) for size in options.sizes if size in SIZES]
    rows += [("steer", size, steer_row) for size in options.sizes if size in STEERED]
    for kind, size, measure in rows:
        key = f"{kind} {size}"
        if key not in done:
            done[key] = measure(size, options) | {"device": _device_name(options.device), "torch": torch.__version__}
            scratch = options.out.with_suffix(".partial")
            scratch.write_text(json.dumps(done, indent=1) + "\n")
            scratch.replace(options.out)
        print(key, json.dumps(done[key]), flush=True)
    torch.distributed.destroy_process_group()


def _one_process(device: str) -> None:
    """Make the process group of one that DeepSpeed asks for."""
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
