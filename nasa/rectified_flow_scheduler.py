"""InstaFlow's scheduler: Euler steps along a velocity that points from noise to image.

The flow-matching schedulers of diffusers use the opposite sign and lack `scale_model_input`, which the Stable Diffusion
pipelines call.
"""

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor


class RectifiedFlowScheduler(SchedulerMixin, ConfigMixin):
    """Computes x_{t - dt} = x_t + dt v(x_t, t) with t from 1 to 0 and dt = 1 / steps; the timestep is 1000 t.

    Section 3 of arXiv 2309.06380 and the authors' `pipeline_rf.py`, whose time is 1 - t.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_train_timesteps: int = 1000) -> None:
        self.timesteps = torch.empty(0)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Set evenly spaced timesteps that decrease from 1000."""
        times = 1 - torch.arange(num_inference_steps, dtype=torch.float32) / num_inference_steps
        self.timesteps = (times * self.config.num_train_timesteps).to(device)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """Return the sample unchanged."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Tensor | float, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take one Euler step; `model_output` is the velocity [B, C, H, W]."""
        previous = sample + model_output / len(self.timesteps)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)
