"""The two readings of eq. 8 in joint attention, on a small rectified-flow transformer on the Shapes toy dataset.

    python -m benchmarks.joint_attention --work runs/joint      # trains and measures; training can be resumed

The transformer is Stable Diffusion 3's at small width, with the bundled teacher's autoencoder and text encoder. The
command writes docs/data/joint_attention.json and docs/images/joint_attention.png, and prints the table. Without --work
it plots and prints the recorded data.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

import nasa
from benchmarks.flow_teachers import build_sd3_transformer
from datasets_prep.shapes.prompts import sample_held_out_prompts
from datasets_prep.shapes.scene import ATTRIBUTES
from nasa.diffusion_process import decode_latents
from nasa.joint_attention import JOINT_ATTENTION_MODES
from nasa.prompt_embeds import tokenize
from nasa.random_numbers import draw_seeded_noise
from pipeline import models
from pipeline.evaluation.exclusion import compute_method_shares, run_trials
from pipeline.evaluation.judges.attribute_judge import AttributeJudge
from pipeline.evaluation.sampling import SamplingMethod
from pipeline.shapes import WEIGHTS
from pipeline.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE
from pipeline.shapes.clip import WIDTH
from pipeline.shapes_training.denoiser import NULL_TEXT_SHARE, encode_pool
from pipeline.shapes_training.pool import build_pool
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE = 2500, 64, 3e-3
SAMPLING_STEPS = 8
SCALES = {
    "text": (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5),
    "joint": (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0),
    "cfg": (1.5, 2.0, 3.0, 5.0),
}
NAMES = {"text": 'joint_attention="text"', "joint": 'joint_attention="joint"', "cfg": "CFG, two passes"}
FIRST_SEED, SEEDS, PROMPTS = 9_100_000, 192, 512
LATENT_SHAPE = LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE
DATA, IMAGE = Path("docs/data/joint_attention.json"), Path("docs/images/joint_attention.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the training; none plots recorded data")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="images of each pair of prompt and negative prompt")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="held-out prompts for the accuracy")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.work:
        torch.set_num_threads(options.threads)
        options.work.mkdir(parents=True, exist_ok=True)
        sampler = FlowSampler(train_transformer(options.work, options.steps))
        DATA.parent.mkdir(parents=True, exist_ok=True)
        measured = measure(sampler, options.seeds, options.prompts)
        DATA.write_text(json.dumps({"training_steps": options.steps, **measured}, indent=1) + "\n")
    data = json.loads(DATA.read_text())
    print(format_table(data))
    draw(data)


def build_transformer() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    return build_sd3_transformer(layers=4, heads=6, head_dim=16, text_width=WIDTH)


def train_transformer(work: Path, steps: int) -> SD3Transformer2DModel:
    """Train by conditional flow matching (arXiv 2210.02747): x_s = (1 - s) x0 + s eps; the model predicts eps - x0."""
    teacher = models.load(WEIGHTS / "teacher")
    pool = build_pool(teacher.pipe.tokenizer, work / "pool.pt", torch.device("cpu"))
    latents, model = encode_pool(teacher.vae, pool), build_transformer()

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        rows = pool.draw_rows(BATCH, generator)
        x0 = latents[rows]
        return {
            "captions": pool.draw_captions(rows, generator, NULL_TEXT_SHARE),
            "x0": x0,
            "eps": torch.randn(x0.shape, generator=generator),
            "s": torch.randn(BATCH, generator=generator).sigmoid(),  # logit-normal, as Stable Diffusion 3
        }

    def compute_loss(batch: Batch) -> Tensor:
        s, x0, eps = batch["s"], batch["x0"], batch["eps"]
        noisy = torch.lerp(x0, eps, s[:, None, None, None])
        embeds, pooled = encode_ids(teacher, batch["captions"])
        output = model(noisy, embeds, pooled, timestep=1000 * s, return_dict=False)[0]
        return F.mse_loss(output, eps - x0)

    fit(
        nn.ModuleDict({"transformer": model}),
        draw_batch,
        compute_loss,
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "transformer.pt",
    )
    return model


@torch.no_grad()
def encode(teacher: models.TextToImage, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Return embeddings [B, T, D] and pooled embeddings [B, D] of the teacher's text encoder."""
    return encode_ids(teacher, tokenize(teacher.pipe.tokenizer, prompts))


@torch.no_grad()
def encode_ids(teacher: models.TextToImage, token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `encode` does, of token ids int64 [B, T]."""
    output = teacher.pipe.text_encoder(token_ids)
    return output.last_hidden_state, output.pooler_output


class FlowSampler:
    """Samples the transformer by Euler's method, through diffusers' own pipeline and `nasa.steer`."""

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        self.teacher = models.load(WEIGHTS / "teacher")
        absent = dict.fromkeys(
            ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
        )
        self.pipe = StableDiffusion3Pipeline(
            transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=self.teacher.vae, **absent
        )
        self.pipe.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def sample(
        self,
        sampling: SamplingMethod,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negatives: Sequence[str] | None = None,
    ) -> Tensor:
        """Return images [B, 3, H, W] in about -1..1, sampled in `SAMPLING_STEPS` steps."""
        embeds, pooled = encode(self.teacher, list(prompts))
        options: dict[str, Any] = {"guidance_scale": 1.0}
        negative = None if negatives is None or sampling.kind == "plain" else encode(self.teacher, list(negatives))
        if sampling.kind == "cfg" and negative is not None:
            options = {
                "guidance_scale": sampling.scale,
                "negative_prompt_embeds": negative[0],
                "negative_pooled_prompt_embeds": negative[1],
            }
        steering: dict[str, Any] = {"negative_prompt_embeds": None}
        if sampling.kind in JOINT_ATTENTION_MODES and negative is not None:
            steering = {
                "negative_prompt_embeds": negative[0],
                "scale": sampling.scale,
                "joint_attention": sampling.kind,
            }
        with nasa.steer(self.pipe, **steering):
            latents = self.pipe(
                prompt_embeds=embeds, pooled_prompt_embeds=pooled, latents=draw_seeded_noise(seeds, LATENT_SHAPE),
                height=64, width=64, num_inference_steps=SAMPLING_STEPS, output_type="latent", **options,
            ).images  # fmt: skip
        return decode_latents(self.teacher.vae, latents)


def measure(sampler: FlowSampler, seeds: int = SEEDS, count: int = PROMPTS) -> dict[str, Any]:
    """Measure the plain model on held-out prompts, and every method at every scale on selected seeds."""
    judge = AttributeJudge.load()
    prompts = sample_held_out_prompts(count, 7)
    judged = judge.classify_attributes(sampler.sample(SamplingMethod(), [text for text, _ in prompts], range(count)))
    accuracy = {
        name: float(
            np.mean([shown[name] == getattr(scene, name) for shown, (_, scene) in zip(judged, prompts, strict=True)])
        )
        for name in ATTRIBUTES
    }
    samplings = [SamplingMethod(kind, scale) for kind, scales in SCALES.items() for scale in scales]
    collected = run_trials(sampler, judge, samplings, range(FIRST_SEED, FIRST_SEED + seeds), selects_scale=False)
    return {
        "accuracy": accuracy,
        "plain": compute_method_shares(collected, SamplingMethod()),
        "rows": [
            {"way": each.kind, "scale": each.scale, **compute_method_shares(collected, each)} for each in samplings
        ],
    }


def format_table(data: dict[str, Any]) -> str:
    """Return Markdown: the shares removed, kept and clean of each method at each scale."""
    lines = ["| method | scale | removed, % | prompted attributes kept, % | clean, % |", "|---|---|---|---|---|"]
    lines.append(f"| no negative | | 0 | 100 | {100 * data['plain']['clean']:.0f} |")
    for row in data["rows"]:
        cells = " | ".join(f"{100 * row[key]:.0f}" for key in ("removed", "kept", "clean"))
        lines.append(f"| {NAMES[row['way']]} | {row['scale']:g} | {cells} |")
    return "\n".join(lines)


def draw(data: dict[str, Any]) -> None:
    """Plot removed against kept and against clean: one line per method, annotated with scales."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), sharex=True)
    for axis, name in zip(axes, ("kept", "clean"), strict=True):
        for kind, marker in zip(SCALES, "osD", strict=True):
            rows = [row for row in data["rows"] if row["way"] == kind]
            x, y = ([100 * row[key] for row in rows] for key in ("removed", name))
            axis.plot(x, y, marker=marker, label=NAMES[kind], linewidth=2)
            for row, *at in zip(rows, x, y, strict=True):
                axis.annotate(f"{row['scale']:g}", at, xytext=(4, 4), textcoords="offset points", fontsize=7)
        axis.axhline(100 * data["plain"][name], color="grey", linestyle=":", label="no negative")
        axis.set(xlabel="removed, %", xlim=(-2, 102), ylim=(-2, 104))
    axes[0].set(ylabel="prompted attributes kept, %")
    axes[1].set(ylabel="clean image, %")
    axes[0].legend(loc="lower left")
    figure.suptitle(f"Shapes toy dataset, joint attention, {SAMPLING_STEPS} steps; the numbers are scales")
    figure.tight_layout()
    IMAGE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGE, dpi=110)


if __name__ == "__main__":
    main()
