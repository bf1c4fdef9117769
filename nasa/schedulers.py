"""Schedulers of few-step models, each from the configuration of the scheduler that it replaces."""

import math
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from nasa.rectified_flow import RectifiedFlowScheduler


def last_timestep(config: Any) -> DDIMScheduler:
    """Return a scheduler of one step from t = T - 1 to the predicted image, by the model's own prediction type."""
    return DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)


def predicted_image(config: Any) -> DDPMScheduler:
    """Return a DDPM scheduler, of whose single step PixArt's pipeline takes the predicted image."""
    return DDPMScheduler.from_config(
        config, variance_type="fixed_small", timestep_spacing="trailing", clip_sample=False
    )


def consistency(config: Any) -> LCMScheduler:
    """Return the scheduler of a consistency model, which may start at any timestep."""
    return LCMScheduler.from_config(config)


def velocity_consistency(config: Any) -> LCMScheduler:
    """Return the scheduler of a consistency model that predicts v."""
    return LCMScheduler.from_config(config, prediction_type="v_prediction")


def shift_3(config: Any) -> FlowMatchEulerDiscreteScheduler:
    """Return a scheduler with noise levels 3 s / (1 + 2 s) at every size, as Qwen-Image-Lightning was distilled."""
    return FlowMatchEulerDiscreteScheduler.from_config(
        config,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=math.log(3),
        max_shift=math.log(3),
        shift=1.0,
        shift_terminal=None,
    )


def rectified_flow(_: Any) -> Any:
    """Return InstaFlow's scheduler."""
    return RectifiedFlowScheduler()
