"""Sampling methods: a student's few steps, with or without a negative prompt, and a teacher's many."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from nasa.attention_rules import RULES
from nasa.classifier_free_guidance import classifier_free_guidance
from nasa.prompt_embeds import PromptEmbeds, cat
from nasa.random_numbers import draw_seeded_noise, mix_seeds
from nasa.steerable_denoiser import make_steerable
from nasa.student import generate, generate_with_cfg
from pipeline.models import TextToImage

BATCH_SIZE = 64
DECODED_LATENTS = 32 * 32  # of an image, up to which a whole batch is decoded at once


@dataclass(frozen=True)
class SamplingMethod:
    """A sampling method. `kind` is "plain", "cfg" or an attention rule for one step, or "steps" for many."""

    kind: str = "plain"
    scale: float = 0.0
    steps: int = 1

    @property
    def label(self) -> str:
        """The name in results, such as "NASA 0.5"."""
        if self.kind == "plain":
            return "no negative"
        if self.kind == "steps":
            return f"{self.steps} steps, guidance {self.scale:g}"
        return f"{self.kind.upper()} {self.scale:g}"


class Sampler:
    """Samples one model; a prompt and seed start from the same noise by every sampling method.

    A `denoiser` has the dtype of the model's own.
    """

    def __init__(self, model: TextToImage, *, denoiser: Any = None) -> None:
        self.model = model
        denoiser = model.denoiser if denoiser is None else denoiser
        self.denoiser = make_steerable(denoiser, model.compute_dtype, model.family).eval()
        self.device = next(self.denoiser.parameters()).device

    @torch.no_grad()
    def sample(
        self,
        sampling: SamplingMethod,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negatives: Sequence[str] | None = None,
    ) -> Tensor:
        """Return images [B, 3, H, W] in about -1..1."""
        latents = self.sample_latents(sampling, prompts, seeds, negatives)
        return torch.cat([self.model.decode(part).cpu() for part in latents.split(self._count_decoded_images())])

    def _count_decoded_images(self) -> int:
        """Return the images that are decoded at once: fewer if they are large."""
        *_, height, width = self.model.latent_shape
        return max(1, min(BATCH_SIZE, BATCH_SIZE * DECODED_LATENTS // (height * width)))

    @torch.no_grad()
    def sample_latents(
        self,
        sampling: SamplingMethod,
        prompts: Sequence[str],
        seeds: Sequence[int],
        negatives: Sequence[str] | None = None,
    ) -> Tensor:
        """Return scaled latents [B, C, H, W]."""
        chunks = []
        for first in range(0, len(prompts), BATCH_SIZE):
            part = slice(first, first + BATCH_SIZE)
            negative = None if negatives is None else self.model.encode(list(negatives[part]))
            chunks.append(self._sample_batch(sampling, list(prompts[part]), seeds[part], negative))
        return torch.cat(chunks)

    def _sample_batch(
        self, sampling: SamplingMethod, prompts: list[str], seeds: Sequence[int], negative: PromptEmbeds | None
    ) -> Tensor:
        noise = draw_seeded_noise(seeds, self.model.latent_shape).to(self.device)
        prompt = self.model.encode(prompts)
        diffusion = self.model.diffusion
        if sampling.kind == "steps":
            negative = self.model.encode([""] * len(prompts)) if negative is None else negative
            return self._sample_many_steps(sampling, noise, prompt, negative)
        step_noise = [
            draw_seeded_noise([mix_seeds(seed, step) for seed in seeds], self.model.latent_shape).to(self.device)
            for step in range(1, diffusion.num_step_noises + 1)
        ]
        if sampling.kind == "plain":
            return generate(self.denoiser, diffusion, noise, prompt, step_noise=step_noise)
        assert negative is not None, f"{sampling.label} needs a negative prompt"
        if sampling.kind == "cfg":
            return generate_with_cfg(
                self.denoiser, diffusion, noise, prompt, negative, sampling.scale, step_noise=step_noise
            )
        self.denoiser.steering.rule = RULES[sampling.kind]
        return generate(self.denoiser, diffusion, noise, prompt, negative, sampling.scale, step_noise=step_noise)

    def _sample_many_steps(
        self, sampling: SamplingMethod, noise: Tensor, prompt: PromptEmbeds, negative: PromptEmbeds
    ) -> Tensor:
        """Sample by deterministic DDIM, or Euler of flow matching, with guidance: eq. 4, or eq. 5 with a negative."""
        scheduler = self._build_scheduler(sampling.steps)
        latents, both = noise, cat([negative, prompt])
        for timestep in scheduler.timesteps:
            output = self.denoiser(torch.cat([latents, latents]), timestep.expand(2 * len(noise)), both)
            pred_uncond, pred_cond = output.chunk(2)
            guided = classifier_free_guidance(pred_uncond, pred_cond, sampling.scale)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        return latents

    def _build_scheduler(self, steps: int) -> Any:
        """Return the teacher's scheduler.

        Latents are never clipped to -1..1, which is DDIM's default for a scheduler of a class without that option.
        """
        if self.model.diffusion.prediction_type == "flow":
            scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=self.model.diffusion.flow_shift)
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), device=self.device)
            return scheduler
        scheduler = DDIMScheduler.from_pretrained(
            self.model.folder / "scheduler", timestep_spacing="trailing", clip_sample=False, thresholding=False
        )
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler
