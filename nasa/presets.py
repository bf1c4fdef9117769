"""How each published few-step model is sampled, and the scale that suits it: one `Preset` a model.

    preset = nasa.PRESETS["sdxl-dmd2"]
    preset.configure(pipe)
    with nasa.steer(pipe, "blurry", scale=preset.scale):
        image = pipe("a photo of a person", **preset.options).images[0]

None of them was run on the real weights. The samplers are tested against the formulas of the models' own
inference code, on their architectures at small width.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from nasa.rectified_flow import RectifiedFlowScheduler

NOT_PUBLISHED = "not published for this model: a place to start"
IN_THE_PAPER = "arXiv 2412.02687"


@dataclass(frozen=True)
class Preset:
    """A model, its sampler and its scale.

    Attributes:
        model: the weights on the Hugging Face hub that it is for.
        family: the file in `nasa.backbones` that steers it.
        options: of the pipeline's call: steps, guidance, start timestep.
        scale: alpha of eq. 9.
        scale_source: where the scale is from.
        scheduler: from the present scheduler's configuration to the one to use; None keeps the present one.
    """

    model: str
    family: str
    options: Mapping[str, Any]
    scale: float
    scale_source: str
    scheduler: Callable[[Any], Any] | None = field(default=None, repr=False)

    def configure(self, pipe: Any) -> Any:
        """Give the pipeline this model's sampler; returns the pipeline."""
        if self.scheduler:
            pipe.scheduler = self.scheduler(pipe.scheduler.config)
        return pipe


def _options(steps: int, guidance_scale: float = 0.0, **more: Any) -> Mapping[str, Any]:
    return MappingProxyType({"num_inference_steps": steps, "guidance_scale": guidance_scale, **more})


def last_timestep(config: Any) -> DDIMScheduler:
    """One step from t = T - 1 to the predicted image, by the model's own prediction type."""
    return DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False)


def predicted_image(config: Any) -> DDPMScheduler:
    """PixArt's pipeline takes the predicted image of a single DDPM step, and has dropped the variance before."""
    return DDPMScheduler.from_config(
        config, variance_type="fixed_small", timestep_spacing="trailing", clip_sample=False
    )


def velocity_consistency(config: Any) -> LCMScheduler:
    return LCMScheduler.from_config(config, prediction_type="v_prediction")


def shift_3(config: Any) -> FlowMatchEulerDiscreteScheduler:
    """Noise levels 3 s / (1 + 2 s) at every image size, as Qwen-Image-Lightning was distilled."""
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
    return RectifiedFlowScheduler()


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "sd15-swiftbrush": Preset(
            "a student of Stable Diffusion 1.5", "unet", _options(1), 0.1, IN_THE_PAPER, last_timestep
        ),
        "sd21-swiftbrush": Preset(
            "a student of Stable Diffusion 2.1", "unet", _options(1), 0.2, IN_THE_PAPER, last_timestep
        ),
        "instaflow": Preset(
            "XCLiu/instaflow_0_9B_from_sd_1_5", "unet", _options(1), 0.19, f"{IN_THE_PAPER} v1", rectified_flow
        ),
        "sd15-dmd2": Preset("tianweiy/DMD2 (SDv1.5)", "unet", _options(1), 0.04, f"{IN_THE_PAPER} v1", last_timestep),
        "sdxl-dmd2": Preset(
            "tianweiy/DMD2 (SDXL, 4 steps)",
            "unet",
            _options(4),
            0.5,
            f"{IN_THE_PAPER}, shown for 0 to 1",
            LCMScheduler.from_config,
        ),
        "sdxl-dmd2-1step": Preset(
            "tianweiy/DMD2 (SDXL, 1 step)",
            "unet",
            _options(1, timesteps=[399]),
            0.5,
            f"{IN_THE_PAPER}, shown for 0 to 1",
            LCMScheduler.from_config,
        ),
        "sdxl-lcm": Preset(
            "latent-consistency/lcm-sdxl", "unet", _options(4, 8.0), 0.5, NOT_PUBLISHED, LCMScheduler.from_config
        ),
        "pixart-swiftbrush": Preset(
            "a student of PixArt-alpha", "pixart", _options(1), 0.5, IN_THE_PAPER, predicted_image
        ),
        "pixart-yoso": Preset(
            "Luo-Yihong/yoso_pixart512", "pixart", _options(1), 0.2, f"{IN_THE_PAPER} v1", velocity_consistency
        ),
        "pixart-dmd": Preset(
            "PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512",
            "pixart",
            _options(1, timesteps=[400]),
            0.45,
            f"{IN_THE_PAPER} v1",
            predicted_image,
        ),
        "flux-schnell": Preset("black-forest-labs/FLUX.1-schnell", "flux", _options(4), 0.5, NOT_PUBLISHED),
        "flux-schnell-1step": Preset("black-forest-labs/FLUX.1-schnell", "flux", _options(1), 0.5, NOT_PUBLISHED),
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
            shift_3,
        ),
    }
)
