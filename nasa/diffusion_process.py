"""The diffusion process of a text-to-image model, and the decoding of its latents."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nasa.parameterization import PREDICTION_TYPES

MIN_ALPHA = 1e-3  # an epsilon model's error is divided by alpha_T: below this it dominates the image


@dataclass(frozen=True)
class DiffusionProcess:
    """The forward process, the denoiser's prediction type, and the timestep at which a one-step student starts.

    `alphas_cumprod` is float32 [T]; `start_timestep` is below T, and -1 means the last, T - 1.
    """

    alphas_cumprod: Tensor
    prediction_type: str
    start_timestep: int = -1

    def __post_init__(self) -> None:
        if not -1 <= self.start_timestep < self.steps:
            raise ValueError(
                f"start_timestep: got {self.start_timestep}; expected 0 to {self.steps - 1}, or -1 for the last."
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type: got {self.prediction_type!r}; expected {', '.join(PREDICTION_TYPES)}.")
        alpha = float(self.alphas_cumprod[self.start_timestep].sqrt()) if not self.alphas_cumprod.is_meta else 1.0
        if self.prediction_type == "epsilon" and alpha < MIN_ALPHA:
            raise ValueError(
                f"start_timestep: got {self.start_timestep}, where alpha is {alpha:g}; expected alpha of at least "
                f"{MIN_ALPHA:g}, by which an epsilon model's output is divided. Choose an earlier timestep."
            )

    @property
    def steps(self) -> int:
        """T, the number of timesteps."""
        return int(self.alphas_cumprod.shape[0])


def read_diffusion(pipe: Any, device: torch.device | str = "cpu", *, start_timestep: int = -1) -> DiffusionProcess:
    """Read the forward process from a pipeline's scheduler.

    Raises:
        ValueError: The scheduler has another process, such as flow matching, or the start is not allowed.
    """
    scheduler = pipe.scheduler
    if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler.config, "prediction_type"):
        raise ValueError(
            f"scheduler: got {type(scheduler).__name__}; expected one with alphas_cumprod and a prediction_type, "
            "such as DDIMScheduler."
        )
    prediction_type = str(scheduler.config.prediction_type)
    return DiffusionProcess(scheduler.alphas_cumprod.float().to(device), prediction_type, start_timestep)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents to images [B, 3, H, W] in about -1..1; differentiable."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    images: Tensor = vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0]
    return images
