"""Tiny pipelines of every class in `nasa.batch_layouts.PIPELINES`, built from their family's tiny pipeline.

pipe, call = build_variant("StableDiffusionImg2ImgPipeline")
images = pipe(**call, prompt="a cat").images
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from nasa.testing.tiny_pipelines import TINY_PIPELINES

Components = dict[str, Any]
SIDE = 32  # pixels, except for Wan and FLUX.2
DISABLED_COMPONENTS: Components = {
    "requires_safety_checker": False,
    "add_watermarker": False,
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "depth_estimator": None,
}


def build_variant(name: str) -> tuple[Any, dict[str, Any]]:
    """Return a tiny pipeline of a diffusers class, and the arguments of a call except the prompt: one step, latents."""
    cls = getattr(diffusers, name)
    parts = {**_get_components(_find_family(name)), **_build_specific_components(name)}
    known = inspect.signature(cls.__init__).parameters
    pipe = cls(**{part: value for part, value in {**DISABLED_COMPONENTS, **parts}.items() if part in known})
    pipe.set_progress_bar_config(disable=True)
    return pipe, _build_call(name, inspect.signature(cls.__call__).parameters)


def _find_family(name: str) -> str:
    beginnings = {
        "Flux2Klein": "flux2-klein",
        "Flux": "flux",
        "PixArtSigma": "pixart-sigma",
        "PixArt": "pixart",
        "QwenImage": "qwen-image",
        "Sana": "sana-sprint",
        "StableDiffusion3": "stable-diffusion-3",
        "StableDiffusionXL": "sdxl",
        "ZImage": "z-image",
        "Wan": "wan",
        "LucyEdit": "wan",
    }
    return next((family for beginning, family in beginnings.items() if name.startswith(beginning)), "stable-diffusion")


@cache
def _build_base(family: str) -> Any:
    return TINY_PIPELINES[family]()


def _get_components(family: str) -> Components:
    return dict(_build_base(family).components)


def _build_specific_components(name: str) -> Components:
    """Return the components that a class adds to its family's or replaces."""
    parts: Components = {}
    torch.manual_seed(0)
    for word, make in COMPONENTS.items():
        if word in name:
            parts.update(make(_find_family(name)))
    return parts


def _rebuild(model: Any, **changes: Any) -> Any:
    """Return a model of the same class with a changed config and new weights."""
    rebuilt: nn.Module = type(model)(**{**model.config, **changes})
    return rebuilt.eval()


def _change_denoiser(**changes: Any) -> Callable[[str], Components]:
    def make(family: str) -> Components:
        name = "unet" if "unet" in _get_components(family) else "transformer"
        return {name: _rebuild(_get_components(family)[name], **changes)}

    return make


def _build_latent_consistency(family: str) -> Components:
    return {**_change_denoiser(time_cond_proj_dim=8)(family), "scheduler": diffusers.LCMScheduler()}


def _build_upscaler(family: str) -> Components:
    unet = _change_denoiser(in_channels=7, num_class_embeds=1000, only_cross_attention=(True, False))(family)
    return {**unet, "low_res_scheduler": diffusers.DDPMScheduler()}


def _build_adapter(family: str) -> Components:
    kind = {"adapter_type": "full_adapter_xl", "downscale_factor": 16} if family == "sdxl" else {"downscale_factor": 8}
    channels = [16, 32, 32, 32] if family == "sdxl" else [16, 32]
    return {"adapter": diffusers.T2IAdapter(in_channels=3, channels=channels, num_res_blocks=1, **kind).eval()}


def _build_controlnet(family: str, **more: Any) -> Components:
    parts = _get_components(family)
    if "unet" in parts:
        kind: Any = diffusers.ControlNetModel
        return {"controlnet": kind.from_unet(parts["unet"], conditioning_channels=3).eval()}
    kinds = {
        "flux": diffusers.FluxControlNetModel,
        "qwen-image": diffusers.QwenImageControlNetModel,
        "sana-sprint": diffusers.SanaControlNetModel,
        "stable-diffusion-3": diffusers.SD3ControlNetModel,
    }
    known = inspect.signature(kinds[family].__init__).parameters
    config = {key: value for key, value in parts["transformer"].config.items() if key in known}
    return {"controlnet": kinds[family](**config, **more).eval()}


def _build_inpainting_controlnet(family: str) -> Components:
    """Return a ControlNet whose condition has extra channels for the mask or the masked image's latents."""
    if family == "stable-diffusion-3":
        return _build_controlnet(family, extra_conditioning_channels=1)
    more = {"extra_condition_channels": 4} if family == "qwen-image" else {}
    return _build_controlnet(family, **more)


def _build_union_controlnet(family: str) -> Components:
    unet = _get_components(family)["unet"]
    known = inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
    config = {key: value for key, value in unet.config.items() if key in known}
    rebuilt = diffusers.ControlNetUnionModel(**config, num_trans_channel=16, num_trans_head=2, num_proj_channel=16)
    return {"controlnet": rebuilt.eval()}


def _build_sixteen_channels(family: str) -> Components:
    vae = _rebuild(_get_components(family)["vae"], latent_channels=16)
    return {**_change_denoiser(in_channels=16, out_channels=16)(family), "vae": vae}


def _build_many_step_sana(_: str) -> Components:
    """Return the components of SANA before its distillation to a few steps."""
    return {
        "transformer": _rebuild(_build_base("sana-sprint").transformer, guidance_embeds=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _build_image_to_video(family: str) -> Components:
    vision = CLIPVisionConfig(
        hidden_size=8,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=16,
    )
    transformer = _change_denoiser(in_channels=36, image_dim=8, added_kv_proj_dim=24)(family)
    return {
        **transformer,
        "image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "image_processor": CLIPImageProcessorPil(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}),
    }


def _build_two_denoisers(family: str) -> Components:
    return {"transformer_2": _change_denoiser()(family)["transformer"], "boundary_ratio": 0.9}


def _build_video_scheduler(_: str) -> Components:
    scheduler = diffusers.UniPCMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    return {"scheduler": scheduler}


# By a word of the class's name; components of a later word replace those of an earlier one.
COMPONENTS: dict[str, Callable[[str], Components]] = {
    "PAG": _change_denoiser(),  # a copy, since these pipelines change its processors
    "ControlNet": _build_controlnet,
    "ControlNetInpaint": _build_inpainting_controlnet,
    "StableDiffusion3Inpaint": _build_sixteen_channels,
    "ControlNetUnion": _build_union_controlnet,
    "StableDiffusionAdapter": _build_adapter,
    "XLAdapter": _build_adapter,
    "InstructPix2Pix": _change_denoiser(in_channels=8),
    "Depth2Img": _change_denoiser(in_channels=5),
    "StableDiffusionUpscale": _build_upscaler,
    "LatentConsistency": _build_latent_consistency,
    "FluxControlP": _change_denoiser(in_channels=32, out_channels=16),
    "FluxControlI": _change_denoiser(in_channels=32, out_channels=16),
    "FluxFill": _change_denoiser(in_channels=16 + 16 + 256, out_channels=16),
    "SanaPAG": _build_many_step_sana,
    "SanaP": _build_many_step_sana,
    "SanaControlNet": _build_many_step_sana,
    "WanImageToVideo": _build_image_to_video,
    "WanVideoToVideo": _build_video_scheduler,
    "LucyEdit": lambda family: {**_build_video_scheduler(family), **_change_denoiser(in_channels=32)(family)},
}


def _build_call(name: str, known: Any) -> dict[str, Any]:
    wan = _find_family(name) == "wan"
    side = 16 if wan else 64 if name.startswith("Flux2") else SIDE
    image = Image.effect_noise((side, side), 60).convert("RGB")
    options = {
        "height": side,
        "width": side,
        "num_frames": 5,
        "num_inference_steps": 1,
        "output_type": "latent",
        "max_sequence_length": 512 if name == "WanImageToVideoPipeline" else 16,
        "use_resolution_binning": False,
        "clean_caption": False,
        "complex_human_instruction": None,
        "intermediate_timesteps": None,
        "image": image,
        "control_image": image,
        "mask_image": image.convert("L"),
        "control_mask": image.convert("L"),
        "video": [image] * 5,
        "depth_map": torch.linspace(0, 1, SIDE * SIDE).view(1, SIDE, SIDE),
        "strength": 1.0,
        "control_mode": 0,
        "max_area": SIDE * SIDE,
        "_auto_resize": False,
        "pag_scale": 3.0,
    }
    if "Upscale" in name:
        options["image"] = image.resize((8, 8))
    if "ControlNetUnion" not in name:
        del options["control_mode"]
    return {option: value for option, value in options.items() if option in known}


GUIDED = {"guidance_scale": 4.0}
GUIDED_BY_SECOND_CALL = {"true_cfg_scale": 3.0, "negative_prompt": "dog"}
