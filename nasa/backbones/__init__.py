"""The families of models that can be steered, one file each."""

from typing import Any

from nasa.backbones.base import Backbone
from nasa.backbones.flux import FLUX
from nasa.backbones.pixart import PIXART
from nasa.backbones.qwen_image import QWEN_IMAGE
from nasa.backbones.sana import SANA
from nasa.backbones.stable_diffusion_3 import STABLE_DIFFUSION_3
from nasa.backbones.unet import UNET
from nasa.backbones.wan import WAN

BACKBONES = {
    backbone.model_class: backbone for backbone in (UNET, PIXART, SANA, WAN, FLUX, STABLE_DIFFUSION_3, QWEN_IMAGE)
}


def denoisers(pipe: Any) -> list[Any]:
    """The pipeline's denoisers; Wan 2.2 has a second one for the later steps."""
    found = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    return [model for model in found if model is not None]


def backbone_of(pipe: Any) -> tuple[Backbone, Any]:
    """The pipeline's family and its first denoiser.

    Raises:
        ValueError: for a pipeline whose denoiser is not in `BACKBONES`.
    """
    model = next(iter(denoisers(pipe)), None)
    name = type(getattr(model, "_orig_mod", model)).__name__
    if name not in BACKBONES:
        raise ValueError(
            f"{type(pipe).__name__}: its denoiser {name} cannot be steered; "
            f"allowed: pipelines with {', '.join(BACKBONES)}"
        )
    return BACKBONES[name], model


__all__ = ["BACKBONES", "Backbone", "backbone_of", "denoisers"]
