"""Images from a model by each of the ways that are compared: one step, one step with a negative, many steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from nasa.denoiser import steerable
from nasa.diffusion import decode
from nasa.guidance import classifier_free_guidance
from nasa.prompt_embeds import PromptEmbeds, cat
from nasa.rules import RULES
from nasa.student import generate, generate_with_cfg
from pipeline.models import TextToImage

BATCH = 64


@dataclass(frozen=True)
class Way:
    """How images are made. `kind` is "plain", "cfg" or an attention rule in one step, or "steps" for many."""

    kind: str = "plain"
    scale: float = 0.0
    steps: int = 1

    @property
    def label(self) -> str:
        if self.kind == "plain":
            return "no negative"
        if self.kind == "steps":
            return f"{self.steps} steps, guidance {self.scale:g}"
        return f"{self.kind.upper()} {self.scale:g}"


class Sampler:
    """Generates with one model; the same prompt and seed start from the same noise in every way."""

    def __init__(self, model: TextToImage, *, denoiser: Any = None) -> None:
        self.model = model
        self.denoiser = steerable(model.denoiser if denoiser is None else denoiser, family=model.family).eval()
        self.device = next(self.denoiser.parameters()).device

    @torch.no_grad()
    def images(
        self, way: Way, prompts: Sequence[str], seeds: Sequence[int], negatives: Sequence[str] | None = None
    ) -> Tensor:
        """Images [B, 3, H, W] in about -1..1."""
        chunks = []
        for first in range(0, len(prompts), BATCH):
            part = slice(first, first + BATCH)
            away = None if negatives is None else self.model.encode(list(negatives[part]))
            latents = self._latents(way, list(prompts[part]), seeds[part], away)
            chunks.append(decode(self.model.vae, latents).cpu())
        return torch.cat(chunks)

    def _latents(self, way: Way, prompts: list[str], seeds: Sequence[int], away: PromptEmbeds | None) -> Tensor:
        noise = noise_of(seeds, self.model.latent_shape).to(self.device)
        embeds = self.model.encode(prompts)
        diffusion = self.model.diffusion
        if way.kind == "steps":
            away = self.model.encode([""] * len(prompts)) if away is None else away
            return self._many_steps(way, noise, embeds, away)
        if way.kind == "plain":
            return generate(self.denoiser, diffusion, noise, embeds)
        assert away is not None, f"{way.label} needs a negative prompt"
        if way.kind == "cfg":
            return generate_with_cfg(self.denoiser, diffusion, noise, embeds, away, way.scale)
        self.denoiser.steering.rule = RULES[way.kind]
        return generate(self.denoiser, diffusion, noise, embeds, away, way.scale)

    def _many_steps(self, way: Way, noise: Tensor, embeds: PromptEmbeds, away: PromptEmbeds) -> Tensor:
        """Deterministic DDIM with guidance in output space: eq. 4, or eq. 5 where `away` is a negative prompt.

        Latents are not pixels: they are never clipped to -1..1, as DDIM's defaults would where a teacher's own
        scheduler is of a class that has no such option.
        """
        scheduler = DDIMScheduler.from_pretrained(
            self.model.folder / "scheduler", timestep_spacing="trailing", clip_sample=False, thresholding=False
        )
        scheduler.set_timesteps(way.steps)
        latents, both = noise, cat([away, embeds])
        for timestep in scheduler.timesteps:
            output = self.denoiser(torch.cat([latents, latents]), timestep.expand(2 * len(noise)), both)
            guided = classifier_free_guidance(*output.chunk(2), way.scale)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        return latents


def noise_of(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents, one generator a seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])
