"""One training step at full size with random weights, compared with SwiftBrush's: time, memory, denoiser's share.

    python -m benchmarks.gpu_step --out step.json                      # Stable Diffusion 2.1 on a GPU, bfloat16
    python -m benchmarks.gpu_step --size tiny --device cpu --batch 4   # does it run?

It needs torch, diffusers, peft and one GPU; no cluster, no weights, no text encoder. Each row is interleaved with the
baseline at the same precision, written to --out and not measured again. `--memory-cap` (GiB) simulates a smaller GPU.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.swiftbrush import SwiftBrush
from nasa import architectures
from nasa.diffusion_process import DiffusionProcess
from nasa.distillation import StepRandomness, TextConditions, lora_teacher_loss, sample_step, student_loss
from nasa.ema import update_ema
from nasa.lora import add_lora, get_lora_parameters
from nasa.method_options import MethodOptions
from nasa.mixed_precision import cast_frozen
from nasa.prompt_embeds import PromptEmbeds
from nasa.steerable_denoiser import get_output_layer, make_steerable
from nasa.teachers import use_frozen_teacher, use_merged_teacher

GIB = 2**30
LEARNING_RATES = (1e-6, 1e-3)  # Table 6
ROWS: dict[str, dict[str, bool]] = {
    "ours": {},
    "shared": {"shared_pass": True},
    "compiled": {"compile": True},
    "both": {"shared_pass": True, "compile": True},
    "checkpointed": {"checkpointing": True},
}


def build_tiny_unet() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        norm_num_groups=8,
    )


SIZES: dict[str, tuple[Callable[[], Any], int, int]] = {  # model, tokens, features
    "tiny": (build_tiny_unet, 77, 64),
    "sd15": (architectures.build_stable_diffusion_15, 77, 768),
    "sd21": (architectures.build_stable_diffusion_21, 77, 1024),
    "pixart": (architectures.build_pixart_alpha, 120, 4096),
}


class StepSetup:
    """The models, device, precision, random numbers and texts that both steps share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device, self.bfloat16, self.batch = torch.device(arguments.device), arguments.bfloat16, arguments.batch
        self.build_model, self.tokens, self.features = SIZES[arguments.size]
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        self.diffusion = DiffusionProcess.from_alphas_cumprod((1 - betas).cumprod(0).to(self.device), "epsilon")
        self.method = MethodOptions()
        self.dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32

    def model(self) -> Any:
        torch.manual_seed(0)
        with self.device:
            return self.build_model().requires_grad_(False)

    def frozen_model(self) -> Any:
        model = self.model()
        cast_frozen(model, self.dtype, keep=get_output_layer(model))
        return model

    def student(self) -> Any:
        return make_steerable(self.model().requires_grad_(True), self.dtype)

    def lora_teacher(self) -> Any:
        model = self.frozen_model()
        add_lora(model, rank=64, lora_alpha=128, target_modules=("to_q", "to_v"))
        for parameter in get_lora_parameters(model):
            parameter.data = parameter.data.float()
        return make_steerable(model.to(self.device), self.dtype)

    def sample_inputs(self, step: int, model: Any) -> tuple[TextConditions, StepRandomness]:
        """Return random texts and the random numbers of a step."""
        generator = torch.Generator().manual_seed(step)
        masked = type(model).__name__ == "PixArtTransformer2DModel"
        shape = (int(model.config.in_channels), *[int(model.config.sample_size)] * 2)

        def embeds(count: int) -> PromptEmbeds:
            values = torch.randn(count, self.tokens, self.features, generator=generator).to(self.device)
            return PromptEmbeds(values, torch.ones(count, self.tokens, device=self.device) if masked else None)

        by_image = [torch.Generator().manual_seed(step * self.batch + index) for index in range(self.batch)]
        randomness = sample_step(self.method, self.diffusion, shape, generator, by_image)
        return TextConditions(embeds(self.batch), embeds(self.batch), embeds(1)), randomness

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Baseline:
    """SwiftBrush's step."""

    def __init__(self, setup: StepSetup) -> None:
        self.setup, student = setup, setup.student()
        self.model = student.model
        self.swiftbrush = SwiftBrush(
            student,
            make_steerable(setup.frozen_model(), setup.dtype),
            setup.lora_teacher(),
            setup.diffusion,
            setup.method,
            LEARNING_RATES,
        )

    def step(self, texts: TextConditions, randomness: StepRandomness) -> dict[str, Tensor]:
        return self.swiftbrush.step(texts, randomness)


class NasaStep:
    """The step of `pipeline.training.distiller` without text encoding, CLIP loss and engines."""

    def __init__(
        self, setup: StepSetup, *, shared_pass: bool = False, compile: bool = False, checkpointing: bool = False
    ) -> None:
        self.setup = setup
        self.student, self.teachers = setup.student(), setup.lora_teacher()
        self.model = self.student.model
        self.method = MethodOptions(lora_shares_pass=shared_pass)
        if checkpointing:
            self.student.enable_gradient_checkpointing()
            self.teachers.enable_gradient_checkpointing()
        if compile:
            self.student.model.compile()
            self.teachers.model.compile()
        self.trained = [list(self.student.parameters()), get_lora_parameters(self.teachers)]
        self.optimizers = [
            torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0, fused=True)
            for parameters, rate in zip(self.trained, LEARNING_RATES, strict=True)
        ]
        self.ema = {name: value.detach().clone() for name, value in self.student.named_parameters()}
        self.steps = 0

    def step(self, texts: TextConditions, randomness: StepRandomness) -> dict[str, Tensor]:
        student = student_loss(self.student, self.teachers, self.setup.diffusion, self.method, texts, randomness)
        self._update(0, student.loss)
        lora_loss = student.lora_loss
        if lora_loss is None:
            lora_loss = lora_teacher_loss(
                self.teachers, self.setup.diffusion, self.setup.method, texts, randomness, student.x0
            )
        self._update(1, lora_loss)
        weights = {name: value.detach() for name, value in self.student.named_parameters()}
        update_ema(self.ema, weights, 0.9999, self.steps)
        self.steps += 1
        return {"loss_student": student.loss.detach(), "loss_lora_teacher": lora_loss.detach()}

    def _update(self, index: int, loss: Tensor) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained[index], 1.0)
        self.optimizers[index].step()
        self.optimizers[index].zero_grad()

    def run_denoiser_only(self, texts: TextConditions, randomness: StepRandomness) -> None:
        """Run the denoiser's passes of a step alone, without noise, losses, optimizers and moving average."""
        mask = texts.prompts.attention_mask
        twice = PromptEmbeds(torch.cat([texts.prompts.embeds] * 2), None if mask is None else torch.cat([mask] * 2))
        last = torch.full((len(texts.prompts),), self.setup.diffusion.steps - 1, device=self.setup.device)
        latents, timestep = torch.cat([randomness.noise] * 2), randomness.vsd_timestep_B.repeat(2)
        output = self.student(randomness.noise, last, texts.prompts, texts.negatives, randomness.scale)
        output.backward(torch.ones_like(output))
        with use_frozen_teacher(self.teachers):
            self.teachers(latents, timestep, twice)
        if self.method.lora_shares_pass:
            with torch.no_grad(), use_merged_teacher(self.teachers):
                self.teachers(randomness.noise, randomness.vsd_timestep_B, texts.prompts)
        else:
            with use_merged_teacher(self.teachers):
                self.teachers(latents, timestep, twice)
        output = self.teachers(randomness.noise, randomness.lora_timestep_B, texts.prompts)
        output.backward(torch.ones_like(output))


def time_call(setup: StepSetup, call: Callable[..., Any], number: int, model: Any) -> float:
    """Return the seconds of a call on the inputs of step `number`."""
    texts, randomness = setup.sample_inputs(number, model)
    setup.synchronize()
    started = time.perf_counter()
    call(texts, randomness)
    setup.synchronize()
    return time.perf_counter() - started


def compare(setup: StepSetup, ours: NasaStep, baseline: Baseline, rounds: int, warm_up: int = 3) -> dict[str, Any]:
    """Return median seconds of the row and the baseline, and the ratio's median and middle half."""
    calls = {"baseline": baseline.step, "row": ours.step, "denoiser": ours.run_denoiser_only}
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        for name in random.Random(number).sample(list(calls), len(calls)):
            elapsed = time_call(setup, calls[name], number, ours.model)
            for optimizer in ours.optimizers:
                optimizer.zero_grad()
            if number >= warm_up:
                durations[name].append(elapsed)
    ratio = np.array(durations["baseline"]) / np.array(durations["row"])
    row = float(np.median(durations["row"]))
    return {
        "baseline_seconds": float(np.median(durations["baseline"])),
        "seconds": row,
        "images_per_second": setup.batch / row,
        "ratio": [float(value) for value in np.percentile(ratio, (25, 50, 75))],
        "denoiser_share": float(np.median(durations["denoiser"])) / row,
    }


def measure_peak_gib(setup: StepSetup, build: Callable[[], Any]) -> float:
    """Return the peak memory of three steps in GiB; 0 without a GPU."""
    if setup.device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    stepper = build()
    for number in range(3):
        stepper.step(*setup.sample_inputs(number, stepper.model))
    del stepper
    reserved = torch.cuda.max_memory_reserved() / GIB
    torch.cuda.empty_cache()
    return reserved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sd21")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory-cap", type=float, metavar="GIB", help="limit of GPU memory")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS))
    parser.add_argument("--out", type=Path, default=Path("gpu_step.json"))
    arguments = parser.parse_args()
    if arguments.memory_cap:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(1.0, arguments.memory_cap / total))
    setup = StepSetup(arguments)
    done = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    for name in arguments.rows:
        key = f"{arguments.size} {'bfloat16' if setup.bfloat16 else 'float32'} {setup.batch} {name}"
        if key not in done:
            done[key] = {"peak_gib": measure_peak_gib(setup, lambda name=name: NasaStep(setup, **ROWS[name]))}
            done[key]["baseline_peak_gib"] = measure_peak_gib(setup, lambda: Baseline(setup))
            ours, baseline = NasaStep(setup, **ROWS[name]), Baseline(setup)
            done[key] |= compare(setup, ours, baseline, arguments.rounds)
            done[key]["device"] = torch.cuda.get_device_name() if setup.device.type == "cuda" else "cpu"
            arguments.out.write_text(json.dumps(done, indent=1) + "\n")
            del ours, baseline
        print(key, json.dumps(done[key]), flush=True)


if __name__ == "__main__":
    main()
