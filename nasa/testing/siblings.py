"""A small pipeline of every class in `nasa.conditional.PIPELINES`, made of its family's small pipeline.

pipe, call = tiny_sibling("StableDiffusionImg2ImgPipeline")
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

from nasa.testing.pipelines import TINY_PIPELINES

Parts = dict[str, Any]
SIDE = 32  # pixels, but for Wan
WITHOUT: Parts = {
    "requires_safety_checker": False,
    "add_watermarker": False,
    "safety_checker": None,
    "feature_extractor": None,
    "image_encoder": None,
    "depth_estimator": None,
}


def tiny_sibling(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the pipeline of a class of diffusers, and a call's arguments but for the prompt: one step, latents."""
    cls = getattr(diffusers, name)
    parts = {**_components(_family(name)), **_own_parts(name)}
    known = inspect.signature(cls.__init__).parameters
    pipe = cls(**{part: value for part, value in {**WITHOUT, **parts}.items() if part in known})
    pipe.set_progress_bar_config(disable=True)
    return pipe, _call(name, inspect.signature(cls.__call__).parameters)


def _family(name: str) -> str:
    beginnings = {
        "Flux": "flux",
        "PixArtSigma": "pixart-sigma",
        "PixArt": "pixart",
        "QwenImage": "qwen-image",
        "Sana": "sana-sprint",
        "StableDiffusion3": "stable-diffusion-3",
        "StableDiffusionXL": "sdxl",
        "Wan": "wan",
        "LucyEdit": "wan",
    }
    return next((family for beginning, family in beginnings.items() if name.startswith(beginning)), "stable-diffusion")


@cache
def _base(family: str) -> Any:
    return TINY_PIPELINES[family]()


def _components(family: str) -> Parts:
    return dict(_base(family).components)


def _own_parts(name: str) -> Parts:
    """Return the parts that a class has beside its family's, or in their place."""
    parts: Parts = {}
    torch.manual_seed(0)
    for word, make in PARTS.items():
        if word in name:
            parts.update(make(_family(name)))
    return parts


def _again(model: Any, **changes: Any) -> Any:
    """Return the model with another configuration and its own weights."""
    made: nn.Module = type(model)(**{**model.config, **changes})
    return made.eval()


def _denoiser(**changes: Any) -> Callable[[str], Parts]:
    def make(family: str) -> Parts:
        name = "unet" if "unet" in _components(family) else "transformer"
        return {name: _again(_components(family)[name], **changes)}

    return make


def _latent_consistency(family: str) -> Parts:
    return {**_denoiser(time_cond_proj_dim=8)(family), "scheduler": diffusers.LCMScheduler()}


def _upscaler(family: str) -> Parts:
    unet = _denoiser(in_channels=7, num_class_embeds=1000, only_cross_attention=(True, False))(family)
    return {**unet, "low_res_scheduler": diffusers.DDPMScheduler()}


def _adapter(family: str) -> Parts:
    kind = {"adapter_type": "full_adapter_xl", "downscale_factor": 16} if family == "sdxl" else {"downscale_factor": 8}
    channels = [16, 32, 32, 32] if family == "sdxl" else [16, 32]
    return {"adapter": diffusers.T2IAdapter(in_channels=3, channels=channels, num_res_blocks=1, **kind).eval()}


def _controlnet(family: str, **more: Any) -> Parts:
    parts = _components(family)
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


def _controlnet_inpainting(family: str) -> Parts:
    """Its condition has the mask as one more channel, or the masked image's latents as well."""
    if family == "stable-diffusion-3":
        return _controlnet(family, extra_conditioning_channels=1)
    return _controlnet(family, extra_condition_channels=4) if family == "qwen-image" else _controlnet(family)


def _union(family: str) -> Parts:
    unet = _components(family)["unet"]
    known = inspect.signature(diffusers.ControlNetUnionModel.__init__).parameters
    config = {key: value for key, value in unet.config.items() if key in known}
    made = diffusers.ControlNetUnionModel(**config, num_trans_channel=16, num_trans_head=2, num_proj_channel=16)
    return {"controlnet": made.eval()}


def _sixteen_channels(family: str) -> Parts:
    vae = _again(_components(family)["vae"], latent_channels=16)
    return {**_denoiser(in_channels=16, out_channels=16)(family), "vae": vae}


def _many_steps(_: str) -> Parts:
    """SANA before it was distilled to a few steps."""
    return {
        "transformer": _again(_base("sana-sprint").transformer, guidance_embeds=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }


def _image_to_video(family: str) -> Parts:
    vision = CLIPVisionConfig(
        hidden_size=8,
        projection_dim=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        intermediate_size=16,
        patch_size=16,
    )
    transformer = _denoiser(in_channels=36, image_dim=8, added_kv_proj_dim=24)(family)
    return {
        **transformer,
        "image_encoder": CLIPVisionModelWithProjection(vision).eval(),
        "image_processor": CLIPImageProcessorPil(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 32}),
    }


def _two_denoisers(family: str) -> Parts:
    return {"transformer_2": _denoiser()(family)["transformer"], "boundary_ratio": 0.9}


def _video_scheduler(_: str) -> Parts:
    scheduler = diffusers.UniPCMultistepScheduler(
        flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    return {"scheduler": scheduler}


PARTS: dict[
    str, Callable[[str], Parts]
] = {  # by a word of the class's name; a later one replaces an earlier one's parts
    "PAG": _denoiser(),  # of its own, as these pipelines change its processors
    "ControlNet": _controlnet,
    "ControlNetInpaint": _controlnet_inpainting,
    "StableDiffusion3Inpaint": _sixteen_channels,
    "ControlNetUnion": _union,
    "StableDiffusionAdapter": _adapter,
    "XLAdapter": _adapter,
    "InstructPix2Pix": _denoiser(in_channels=8),
    "Depth2Img": _denoiser(in_channels=5),
    "StableDiffusionUpscale": _upscaler,
    "LatentConsistency": _latent_consistency,
    "FluxControlP": _denoiser(in_channels=32, out_channels=16),
    "FluxControlI": _denoiser(in_channels=32, out_channels=16),
    "FluxFill": _denoiser(in_channels=16 + 16 + 256, out_channels=16),
    "SanaPAG": _many_steps,
    "SanaP": _many_steps,
    "SanaControlNet": _many_steps,
    "WanImageToVideo": _image_to_video,
    "WanVideoToVideo": _video_scheduler,
    "LucyEdit": lambda family: {**_video_scheduler(family), **_denoiser(in_channels=32)(family)},
}


def _call(name: str, known: Any) -> dict[str, Any]:
    wan = _family(name) == "wan"
    side = 16 if wan else SIDE
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
GUIDED_BY_A_SECOND_CALL = {"true_cfg_scale": 3.0, "negative_prompt": "dog"}
