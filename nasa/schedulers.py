"""Schedulers of few-step models, built from the config of the scheduler that they replace."""

import inspect
import math
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler
from torch import Tensor

from nasa.rectified_flow_scheduler import RectifiedFlowScheduler

SID_LSG_TIMESTEP = 625
FLOW_STEPS = 1000  # noise levels of flow matching; a denoiser's time is 1000 s


def is_flow_matching(scheduler: Any) -> bool:
    """Tell whether a scheduler's process is flow matching, x_t = (1 - s) x0 + s eps."""
    config = scheduler.config
    return isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or config.get("prediction_type") == "flow_prediction"


def compute_flow_sigmas(shift: float) -> Tensor:
    """Return the levels s of flow matching, increasing float32 [1000]: shift u / (1 + (shift - 1) u), u from 0.001."""
    uniform = torch.arange(1, FLOW_STEPS + 1, dtype=torch.float64) / FLOW_STEPS
    return (shift * uniform / (1 + (shift - 1) * uniform)).float()


def compute_flow_shift(config: Any, image_tokens: int | None = None) -> float:
    """Return the factor by which a flow-matching scheduler shifts its levels.

    One that depends on the resolution is exp(mu), with mu linear in the number of image tokens (FLUX's sampler).

    Raises:
        ValueError: The shift depends on the resolution, and `image_tokens` is None.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    if image_tokens is None:
        raise ValueError("image_tokens: got None; expected a number, as the scheduler's shift depends on it.")
    first, last = config["base_image_seq_len"], config["max_image_seq_len"]
    share = (image_tokens - first) / (last - first)
    mu = config["base_shift"] + share * (config["max_shift"] - config["base_shift"])
    return math.exp(mu) if config["time_shift_type"] == "exponential" else float(mu)


def build_student_flow(config: Any, diffusion: Any) -> Any:
    """Return Euler's scheduler of flow matching with the shift that the student was trained with, at any resolution."""
    shift = {"shift": diffusion.flow_shift, "use_dynamic_shifting": False, "shift_terminal": None}
    return _build(FlowMatchEulerDiscreteScheduler, config, **shift)


def _build(cls: Any, config: Any, **changes: Any) -> Any:
    """Return a scheduler of a class from another's config, without the options that the class does not have."""
    known = inspect.signature(cls.__init__).parameters
    kept = {name: value for name, value in dict(config).items() if name in known or name.startswith("_")}
    return cls.from_config(kept, **changes)


def build_student_ddim(config: Any, diffusion: Any) -> Any:
    """Return DDIM for a student of one step from T - 1, and LCM, which takes any timesteps, for another."""
    return build_one_step_ddim(config) if diffusion.is_one_full_step else build_lcm(config)


def build_student_ddpm(config: Any, diffusion: Any) -> Any:
    """Return DDPM for a student of one step, from any timestep, and LCM for one of several."""
    return build_one_step_ddpm(config) if diffusion.student_steps == 1 else build_lcm(config)


def build_one_step_ddim(config: Any) -> Any:
    """Return a DDIM scheduler whose single step leads from t = T - 1 to the predicted image."""
    return _build(DDIMScheduler, config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)


def build_one_step_ddpm(config: Any, **changes: Any) -> Any:
    """Return a DDPM scheduler; PixArt's pipeline uses the predicted image of its single step."""
    single = {"variance_type": "fixed_small", "timestep_spacing": "trailing", "clip_sample": False}
    return _build(DDPMScheduler, config, **single, **changes)


def build_lcm(config: Any) -> Any:
    """Return the LCM scheduler, which takes any timesteps, and never clips latents to -1..1."""
    return _build(LCMScheduler, config, clip_sample=False, thresholding=False)


def build_sid_lsg(config: Any) -> Any:
    """Return SiD-LSG's scheduler: it starts at t = 625 from sigma_t z, where others start from z."""
    scheduler = build_lcm(config)
    scheduler.init_noise_sigma = float((1 - scheduler.alphas_cumprod[SID_LSG_TIMESTEP]).sqrt())
    return scheduler


def build_wadi_ddpm(config: Any) -> Any:
    """Return WaDi's scheduler for PixArt: a single step from t = T - 1 with Stable Diffusion's alpha_T."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    return build_one_step_ddpm(config, **betas)


def build_v_prediction_lcm(config: Any) -> Any:
    """Return the LCM scheduler for v-prediction."""
    return _build(LCMScheduler, config, prediction_type="v_prediction")


def build_shift_3_flow_match(config: Any) -> Any:
    """Return a scheduler with noise levels 3 s / (1 + 2 s) at every resolution, as for Qwen-Image-Lightning."""
    return _build(
        FlowMatchEulerDiscreteScheduler,
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
