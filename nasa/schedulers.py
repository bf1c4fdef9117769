"""Schedulers of few-step models, built from the config of the scheduler that they replace."""

import math
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from nasa.rectified_flow_scheduler import RectifiedFlowScheduler


def build_one_step_ddim(config: Any) -> DDIMScheduler:
    """Return a DDIM scheduler whose single step leads from t = T - 1 to the predicted image."""
    return DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)


def build_one_step_ddpm(config: Any) -> DDPMScheduler:
    """Return a DDPM scheduler; PixArt's pipeline uses the predicted image of its single step."""
    return DDPMScheduler.from_config(
        config, variance_type="fixed_small", timestep_spacing="trailing", clip_sample=False
    )


def build_lcm(config: Any) -> LCMScheduler:
    """Return the LCM scheduler, which can start at any timestep."""
    return LCMScheduler.from_config(config)


def build_v_prediction_lcm(config: Any) -> LCMScheduler:
    """Return the LCM scheduler for v-prediction."""
    return LCMScheduler.from_config(config, prediction_type="v_prediction")


def build_shift_3_flow_match(config: Any) -> FlowMatchEulerDiscreteScheduler:
    """Return a scheduler with noise levels 3 s / (1 + 2 s) at every resolution, as for Qwen-Image-Lightning."""
    return FlowMatchEulerDiscreteScheduler.from_config(
        config,
        use_dynamic_shifting=True,
        time_shift_type="exponential",
        base_shift=math.log(3),
        max_shift=math.log(3),
        shift=1.0,
        shift_terminal=None,
    )


def build_rectified_flow(_: Any) -> Any:
    """Return InstaFlow's scheduler."""
    return RectifiedFlowScheduler()
