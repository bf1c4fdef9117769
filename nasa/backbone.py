"""What the method needs to know of a text-to-image model, and the Stable Diffusion UNet's answer to it."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from nasa.attention import Steering, install, negative
from nasa.parameterization import PREDICTION_TYPES
from nasa.rules import Scale


@dataclass(frozen=True)
class Diffusion:
    """The forward process, what the denoiser predicts, and where a one-step student starts.

    `alphas_cumprod` is float32 [T]; `start_timestep` is below T, and -1 is the last, T - 1.
    """

    alphas_cumprod: Tensor
    prediction_type: str
    start_timestep: int = -1

    def __post_init__(self) -> None:
        if not -1 <= self.start_timestep < self.steps:
            raise ValueError(
                f"start_timestep: {self.start_timestep} is not allowed; allowed: 0 to {self.steps - 1}, or -1, the last"
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type: {self.prediction_type!r} is not known; allowed: {', '.join(PREDICTION_TYPES)}"
            )

    @property
    def steps(self) -> int:
        return int(self.alphas_cumprod.shape[0])


class SteerableUNet(nn.Module):
    """A diffusers UNet whose cross-attention can be given a negative prompt at each call."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        self.steering = Steering()
        install(unet, self.steering)

    def forward(
        self,
        latents: Tensor,
        timestep_B: Tensor,
        prompt_embeds: Tensor,
        negative_embeds: Tensor | None = None,
        scale: Scale = 0.0,
    ) -> Tensor:
        """The denoiser's output, [B, C, H, W], steered by eqs. 7-9 where `negative_embeds` is given."""
        with negative(self.steering, negative_embeds, scale):
            output: Tensor = self.unet(latents, timestep_B, prompt_embeds, return_dict=False)[0]
        return output


def diffusion_of(
    pipe: StableDiffusionPipeline, device: torch.device | str = "cpu", *, start_timestep: int = -1
) -> Diffusion:
    config = pipe.scheduler.config
    return Diffusion(pipe.scheduler.alphas_cumprod.float().to(device), str(config.prediction_type), start_timestep)


@torch.no_grad()
def encode_tokens(text_encoder: Any, input_ids: Tensor) -> Tensor:
    """Prompt embeddings [B, T, D] of token ids [B, T], as Stable Diffusion takes them."""
    embeds: Tensor = text_encoder(input_ids)[0]
    return embeds


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids int64 [B, T], padded and truncated to the tokenizer's length, as Stable Diffusion does."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in about -1..1 from scaled latents; the gradient flows through."""
    images: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    return images
