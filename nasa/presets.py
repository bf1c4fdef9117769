"""Sampling options and scale of published few-step models.

    preset = nasa.PRESETS["sdxl-dmd2"]
    preset.configure(pipe)
    with nasa.steer(pipe, "blurry", scale=preset.scale):
        image = pipe("a photo of a person", **preset.options).images[0]

None of them was run on the real weights. The samplers are tested against the formulas of the models' inference code, on
their architectures at small width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from nasa.schedulers import (
    SID_LSG_TIMESTEP,
    build_lcm,
    build_one_step_ddim,
    build_one_step_ddpm,
    build_rectified_flow,
    build_shift_3_flow_match,
    build_sid_lsg,
    build_v_prediction_lcm,
    build_wadi_ddpm,
)

NOT_PUBLISHED = "no scale is published for this model; a starting point, not tuned"
IN_THE_PAPER = "arXiv 2412.02687"


@dataclass(frozen=True)
class Preset:
    """A model, its sampler and its scale.

    Attributes:
        model: the weights' id on the hub, or a description if there is none.
        family: name of the model's module in `nasa.families`.
        options: options of the pipeline's call: steps, guidance, start timestep.
        scale: alpha of eq. 9.
        scale_source: source of the scale.
        scheduler: builds the model's scheduler from the pipeline's scheduler config; None keeps the pipeline's.
    """

    model: str
    family: str
    options: Mapping[str, Any]
    scale: float
    scale_source: str
    scheduler: Callable[[Any], Any] | None = field(default=None, repr=False)

    def configure(self, pipe: Any) -> Any:
        """Set the pipeline's scheduler to this model's, and return the pipeline."""
        if self.scheduler:
            pipe.scheduler = self.scheduler(pipe.scheduler.config)
        return pipe


def _options(steps: int, guidance_scale: float = 0.0, **more: Any) -> Mapping[str, Any]:
    return MappingProxyType({"num_inference_steps": steps, "guidance_scale": guidance_scale, **more})


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "sd15-swiftbrush": Preset(
            "a student of Stable Diffusion 1.5", "stable_diffusion", _options(1), 0.1, IN_THE_PAPER, build_one_step_ddim
        ),
        "sd21-swiftbrush": Preset(
            "a student of Stable Diffusion 2.1", "stable_diffusion", _options(1), 0.2, IN_THE_PAPER, build_one_step_ddim
        ),
        "instaflow": Preset(
            "XCLiu/instaflow_0_9B_from_sd_1_5",
            "stable_diffusion",
            _options(1),
            0.19,
            f"{IN_THE_PAPER} v1",
            build_rectified_flow,
        ),
        "sd15-dmd2": Preset(
            "tianweiy/DMD2 (SDv1.5)", "stable_diffusion", _options(1), 0.04, f"{IN_THE_PAPER} v1", build_one_step_ddim
        ),
        "sd15-wadi": Preset(
            "gudaochangsheng/WaDi (SD1.5)", "stable_diffusion", _options(1), 0.1, NOT_PUBLISHED, build_one_step_ddim
        ),
        "sd21-wadi": Preset(
            "gudaochangsheng/WaDi (SD2.1)", "stable_diffusion", _options(1), 0.2, NOT_PUBLISHED, build_one_step_ddim
        ),
        "sd15-sid-lsg": Preset(
            "SiD-LSG (SD1.5)",
            "stable_diffusion",
            _options(1, timesteps=[SID_LSG_TIMESTEP]),
            0.1,
            NOT_PUBLISHED,
            build_sid_lsg,
        ),
        "sd21-sid-lsg": Preset(
            "SiD-LSG (SD2.1-base)",
            "stable_diffusion",
            _options(1, timesteps=[SID_LSG_TIMESTEP]),
            0.2,
            NOT_PUBLISHED,
            build_sid_lsg,
        ),
        "sdxl-dmd2": Preset(
            "tianweiy/DMD2 (SDXL, 4 steps)",
            "stable_diffusion_xl",
            _options(4),
            0.5,
            f"{IN_THE_PAPER}, which shows 0 to 1",
            build_lcm,
        ),
        "sdxl-dmd2-1step": Preset(
            "tianweiy/DMD2 (SDXL, 1 step)",
            "stable_diffusion_xl",
            _options(1, timesteps=[399]),
            0.5,
            f"{IN_THE_PAPER}, which shows 0 to 1",
            build_lcm,
        ),
        "sdxl-lcm": Preset(
            "latent-consistency/lcm-sdxl", "stable_diffusion_xl", _options(4, 8.0), 0.5, NOT_PUBLISHED, build_lcm
        ),
        "pixart-swiftbrush": Preset(
            "a student of PixArt-alpha", "pixart", _options(1), 0.5, IN_THE_PAPER, build_one_step_ddpm
        ),
        "pixart-wadi": Preset(
            "gudaochangsheng/WaDi (PixArt-alpha, 256 pixels)",
            "pixart",
            _options(1),
            0.5,
            NOT_PUBLISHED,
            build_wadi_ddpm,
        ),
        "pixart-yoso": Preset(
            "Luo-Yihong/yoso_pixart512", "pixart", _options(1), 0.2, f"{IN_THE_PAPER} v1", build_v_prediction_lcm
        ),
        "pixart-dmd": Preset(
            "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512",
            "pixart",
            _options(1, timesteps=[400]),
            0.45,
            f"{IN_THE_PAPER} v1",
            build_one_step_ddpm,
        ),
        "flux-schnell": Preset("black-forest-labs/FLUX.1-schnell", "flux", _options(4), 0.5, NOT_PUBLISHED),
        "flux-schnell-1step": Preset("black-forest-labs/FLUX.1-schnell", "flux", _options(1), 0.5, NOT_PUBLISHED),
        "flux2-klein": Preset("black-forest-labs/FLUX.2-klein-4B", "flux2", _options(4, 1.0), 0.5, NOT_PUBLISHED),
        "z-image-turbo": Preset("Tongyi-MAI/Z-Image-Turbo", "z_image", _options(8), 0.5, NOT_PUBLISHED),
        "sd35-turbo": Preset(
            "stabilityai/stable-diffusion-3.5-large-turbo", "stable_diffusion_3", _options(4), 0.5, NOT_PUBLISHED
        ),
        "sana-sprint": Preset(
            "Efficient-Large-Model/Sana_Sprint_1.6B_1024px_diffusers", "sana", _options(2, 4.5), 0.5, NOT_PUBLISHED
        ),
        "qwen-image-lightning": Preset(
            "Qwen/Qwen-Image with lightx2v/Qwen-Image-Lightning (8 steps)",
            "qwen_image",
            MappingProxyType({"num_inference_steps": 8, "true_cfg_scale": 1.0}),
            0.5,
            NOT_PUBLISHED,
            build_shift_3_flow_match,
        ),
    }
)
