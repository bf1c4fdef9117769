"""What training needs of a text-to-image model: its diffusion process, and a denoiser that takes a negative prompt."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nasa.attention import Steering, install, negative
from nasa.embeds import Embeds
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


class SteerableDenoiser(nn.Module):
    """A diffusers denoiser whose cross-attention can be given a negative prompt at each call."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.steering = Steering()
        install(model, self.steering)

    def forward(
        self,
        latents: Tensor,
        timestep_B: Tensor,
        prompt: Embeds,
        away: Embeds | None = None,
        scale: Scale = 0.0,
    ) -> Tensor:
        """The denoiser's output, [B, C, H, W], steered by eqs. 7-9 where the negative prompt `away` is given."""
        seen = None if away is None else Embeds(self._as_layers_see(away.states), away.mask)
        with negative(self.steering, seen, scale):
            return self._denoise(latents, timestep_B, prompt)

    def enable_gradient_checkpointing(self) -> None:
        """Blocks are computed again in the backward pass, steered as they were though the call is over."""

        def checkpointed(module: nn.Module, *args: Any) -> Any:
            then = replace(self.steering)

            def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
                return nullcontext(), negative(self.steering, then.text, then.scale)

            return checkpoint(module.__call__, *args, use_reentrant=False, context_fn=contexts)

        self.model.enable_gradient_checkpointing(checkpointed)

    def _as_layers_see(self, states: Tensor) -> Tensor:
        return states

    def _denoise(self, latents: Tensor, timestep_B: Tensor, prompt: Embeds) -> Tensor:
        raise NotImplementedError


class SteerableUNet(SteerableDenoiser):
    """Stable Diffusion 1.5 and 2.1. Their text is not masked."""

    def _denoise(self, latents: Tensor, timestep_B: Tensor, prompt: Embeds) -> Tensor:
        output: Tensor = self.model(latents, timestep_B, prompt.states, return_dict=False)[0]
        return output


class SteerablePixArt(SteerableDenoiser):
    """PixArt-alpha at 512. It predicts a variance beside the noise, which is dropped."""

    def _as_layers_see(self, states: Tensor) -> Tensor:
        projected: Tensor = self.model.caption_projection(states)
        return projected

    def _denoise(self, latents: Tensor, timestep_B: Tensor, prompt: Embeds) -> Tensor:
        both: Tensor = self.model(
            latents,
            encoder_hidden_states=prompt.states,
            encoder_attention_mask=prompt.mask,
            timestep=timestep_B,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return both[:, : latents.shape[1]]


STEERABLE: Mapping[str, type[SteerableDenoiser]] = MappingProxyType(
    {"UNet2DConditionModel": SteerableUNet, "PixArtTransformer2DModel": SteerablePixArt}
)


def steerable(model: Any) -> SteerableDenoiser:
    """A denoiser of one of the families that can be trained, ready to be steered."""
    name = type(model).__name__
    if name not in STEERABLE:
        raise ValueError(f"{name} cannot be trained; allowed: {', '.join(STEERABLE)}")
    return STEERABLE[name](model)


def diffusion_of(pipe: Any, device: torch.device | str = "cpu", *, start_timestep: int = -1) -> Diffusion:
    config = pipe.scheduler.config
    return Diffusion(pipe.scheduler.alphas_cumprod.float().to(device), str(config.prediction_type), start_timestep)


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids int64 [B, T], padded and truncated to the tokenizer's length, as Stable Diffusion does."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in about -1..1 from scaled latents; the gradient flows through."""
    images: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    return images
