"""The forward process of a text-to-image model, `x_t = alpha_t x0 + sigma_t eps`, and the decoding of its latents."""

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from nasa.parameterization import PREDICTION_TYPES
from nasa.schedulers import FLOW_STEPS, compute_flow_shift, compute_flow_sigmas, is_flow_matching

MIN_ALPHA = 1e-3  # an epsilon model's error is divided by alpha_T: below this it dominates the image


@dataclass(frozen=True)
class DiffusionProcess:
    """T noise levels, the denoiser's prediction type, and the timesteps at which a student of a few steps is called.

    A timestep is an index int64 of the levels, from 0, the least noise, to T - 1. Variance-preserving diffusion has
    `alpha_t^2 + sigma_t^2 = 1`, flow matching `alpha_t + sigma_t = 1` and `alpha_T = 0`.

    Attributes:
        alphas: float32 [T].
        sigmas: float32 [T].
        times: what the denoiser takes as each level's timestep, [T].
        prediction_type: what the denoiser predicts, one of `nasa.parameterization.PREDICTION_TYPES`.
        start_timestep: the timestep of the student's first step, below T; -1 means the last, T - 1.
        student_steps: the number of the student's steps.
        flow_shift: the factor by which flow matching shifts its levels.
    """

    alphas: Tensor
    sigmas: Tensor
    times: Tensor
    prediction_type: str
    start_timestep: int = -1
    student_steps: int = 1
    flow_shift: float = 1.0

    def __post_init__(self) -> None:
        if not -1 <= self.start_timestep < self.steps:
            raise ValueError(
                f"start_timestep: got {self.start_timestep}; expected 0 to {self.steps - 1}, or -1 for the last."
            )
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(f"prediction_type: got {self.prediction_type!r}; expected {', '.join(PREDICTION_TYPES)}.")
        alpha = float(self.alphas[self.start_timestep]) if not self.alphas.is_meta else 1.0
        if self.prediction_type == "epsilon" and alpha < MIN_ALPHA:
            raise ValueError(
                f"start_timestep: got {self.start_timestep}, where alpha is {alpha:g}; expected alpha of at least "
                f"{MIN_ALPHA:g}, by which an epsilon model's output is divided. Choose an earlier timestep."
            )

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, prediction_type: str, start_timestep: int = -1, **more: Any
    ) -> Self:
        """Return variance-preserving diffusion with `alpha_t = sqrt(abar_t)`; `alphas_cumprod` is abar, [T]."""
        times = torch.arange(len(alphas_cumprod), device=alphas_cumprod.device)
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), times, prediction_type, start_timestep, **more)

    @classmethod
    def flow_matching(cls, shift: float = 1.0, start_timestep: int = -1, **more: Any) -> Self:
        """Return flow matching, `x_t = (1 - s) x0 + s eps`, at 1000 shifted levels s in 0..1; the time is 1000 s."""
        sigmas = compute_flow_sigmas(shift)
        return cls(1 - sigmas, sigmas, FLOW_STEPS * sigmas, "flow", start_timestep, flow_shift=shift, **more)

    @property
    def steps(self) -> int:
        """T, the number of timesteps."""
        return int(self.alphas.shape[0])

    @property
    def student_timesteps(self) -> tuple[int, ...]:
        """The timesteps of the student's steps, evenly spaced down from the first (DMD2: 999, 749, 499, 249)."""
        start = self.start_timestep % self.steps
        return tuple(start - number * (start + 1) // self.student_steps for number in range(self.student_steps))

    @property
    def num_step_noises(self) -> int:
        """The number of noises that the student adds between its steps; none in flow matching, with the ODE's steps."""
        return 0 if self.prediction_type == "flow" else self.student_steps - 1

    @property
    def is_one_full_step(self) -> bool:
        """Tell whether the student makes an image in one step from T - 1."""
        return self.student_timesteps == (self.steps - 1,)

    def to(self, device: torch.device | str) -> Self:
        """Return the process on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("alphas", "sigmas", "times")}
        return replace(self, **moved)

    def alpha_sigma(self, timestep_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha_t and sigma_t of each image, in a shape that broadcasts with latents `like` [B, ...]."""
        shape = (-1, *[1] * (like.ndim - 1))
        return self.alphas[timestep_B].reshape(shape), self.sigmas[timestep_B].reshape(shape)


def read_diffusion(
    scheduler: Any,
    device: torch.device | str = "cpu",
    *,
    start_timestep: int = -1,
    student_steps: int = 1,
    flow_shift: float | None = None,
) -> DiffusionProcess:
    """Read the forward process of a diffusers scheduler.

    `flow_shift` is the shift of flow matching; None reads it from the scheduler, if it is the same at any resolution.

    Raises:
        ValueError: The scheduler has another process, or the start is not allowed.
    """
    student: dict[str, Any] = {"start_timestep": start_timestep, "student_steps": student_steps}
    if is_flow_matching(scheduler):
        shift = compute_flow_shift(scheduler.config) if flow_shift is None else flow_shift
        return DiffusionProcess.flow_matching(shift, **student).to(device)
    if not hasattr(scheduler, "alphas_cumprod") or not hasattr(scheduler.config, "prediction_type"):
        raise ValueError(
            f"scheduler: got {type(scheduler).__name__}; expected one of flow matching, or one with alphas_cumprod and "
            "a prediction_type, such as DDIMScheduler."
        )
    alphas_cumprod, prediction_type = scheduler.alphas_cumprod.float(), str(scheduler.config.prediction_type)
    return DiffusionProcess.from_alphas_cumprod(alphas_cumprod, prediction_type, **student).to(device)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents to images [B, 3, H, W] in about -1..1; differentiable."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    images: Tensor = vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0]
    return images
