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
from nasa.precision import autocast, run_in_float32
from nasa.rules import Scale

SMALLEST_ALPHA = 1e-3  # alpha_T below which an epsilon model's error, divided by it, drowns the image


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
        alpha = float(self.alphas_cumprod[self.start_timestep].sqrt()) if not self.alphas_cumprod.is_meta else 1.0
        if self.prediction_type == "epsilon" and alpha < SMALLEST_ALPHA:
            raise ValueError(
                f"start_timestep: got {self.start_timestep}, where alpha is {alpha:g}; an epsilon model starts where "
                f"alpha is at least {SMALLEST_ALPHA:g}, as its output is divided by it. Choose an earlier timestep."
            )

    @property
    def steps(self) -> int:
        return int(self.alphas_cumprod.shape[0])


class SteerableDenoiser(nn.Module):
    """A diffusers denoiser whose cross-attention can be given a negative prompt at each call.

    With a `compute_dtype` other than float32 it enters autocast in its own forward, all but its output layer, so that
    the output is float32. The caller converts frozen weights (`nasa.precision.cast_frozen`).
    """

    output_layer: str  # the name of the denoiser's last layer

    def __init__(self, model: Any, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self.steering = Steering()
        install(model, self.steering)
        if compute_dtype != torch.float32:
            run_in_float32(getattr(model, self.output_layer))

    def forward(
        self,
        latents: Tensor,
        timestep_B: Tensor,
        prompt: Embeds,
        away: Embeds | None = None,
        scale: Scale = 0.0,
    ) -> Tensor:
        """The denoiser's output, [B, C, H, W], steered by eqs. 7-9 where the negative prompt `away` is given."""
        with self._precision(latents.device.type):
            seen = None if away is None else Embeds(self._as_layers_see(away.states), away.mask)
            with negative(self.steering, seen, self._as_input(scale, latents.device)):
                return self._denoise(latents, timestep_B, prompt)

    def _as_input(self, scale: Scale, device: torch.device) -> Scale:
        """A compiled denoiser is given a tensor: a number is a constant to `torch.compile`, and another one another
        program. 0 stays a number, which is plain.
        """
        compiled = getattr(self.model, "_compiled_call_impl", None) is not None
        if not compiled or isinstance(scale, Tensor) or scale == 0:
            return scale
        return torch.full((1,), scale, device=device)

    def _precision(self, device_type: str) -> AbstractContextManager[Any]:
        """Leave the caller's autocast alone where no `compute_dtype` was asked for."""
        return nullcontext() if self.compute_dtype == torch.float32 else autocast(device_type, self.compute_dtype)

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

    output_layer = "conv_out"

    def _denoise(self, latents: Tensor, timestep_B: Tensor, prompt: Embeds) -> Tensor:
        output: Tensor = self.model(latents, timestep_B, prompt.states, return_dict=False)[0]
        return output


class SteerablePixArt(SteerableDenoiser):
    """PixArt-alpha at 512. It predicts a variance beside the noise, which is dropped."""

    output_layer = "proj_out"

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


def steerable(model: Any, compute_dtype: torch.dtype = torch.float32) -> SteerableDenoiser:
    """Wrap a denoiser of one of the families that can be trained, ready to be steered.

    Raises:
        ValueError: for a denoiser of another family.
    """
    return _steerable_class(model)(model, compute_dtype)


def output_layer(model: Any) -> nn.Module:
    """Return the last layer of a denoiser of one of the families that can be trained."""
    layer: nn.Module = getattr(model, _steerable_class(model).output_layer)
    return layer


def _steerable_class(model: Any) -> type[SteerableDenoiser]:
    name = type(model).__name__
    if name not in STEERABLE:
        raise ValueError(f"{name} cannot be trained; allowed: {', '.join(STEERABLE)}")
    return STEERABLE[name]


def diffusion_of(pipe: Any, device: torch.device | str = "cpu", *, start_timestep: int = -1) -> Diffusion:
    """Read the forward process from a pipeline's scheduler.

    Raises:
        ValueError: for a scheduler of another process, such as flow matching, or a start that is not allowed.
    """
    scheduler = pipe.scheduler
    if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler.config, "prediction_type"):
        raise ValueError(
            f"scheduler: got {type(scheduler).__name__}; expected one with alphas_cumprod and a prediction_type, "
            "such as DDIMScheduler."
        )
    prediction_type = str(scheduler.config.prediction_type)
    return Diffusion(scheduler.alphas_cumprod.float().to(device), prediction_type, start_timestep)


def tokenize(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Token ids int64 [B, T], padded and truncated to the tokenizer's length, as Stable Diffusion does."""
    ids: Tensor = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
    return ids


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images [B, 3, H, W] in about -1..1 from scaled latents; the gradient flows through."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    images: Tensor = vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0]
    return images
