"""The model families that can be steered or distilled, one module each."""

from typing import Any

from nasa.compat import unwrap_compiled
from nasa.families.family import Distillation, Family, PublishedModel
from nasa.families.flux import FLUX
from nasa.families.flux2 import FLUX2
from nasa.families.pixart import PIXART
from nasa.families.pixart_sigma import PIXART_SIGMA
from nasa.families.qwen_image import QWEN_IMAGE
from nasa.families.sana import SANA
from nasa.families.stable_diffusion import STABLE_DIFFUSION
from nasa.families.stable_diffusion_3 import STABLE_DIFFUSION_3
from nasa.families.stable_diffusion_xl import STABLE_DIFFUSION_XL
from nasa.families.wan import WAN
from nasa.families.z_image import Z_IMAGE

FAMILIES = (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    PIXART,
    PIXART_SIGMA,
    SANA,
    WAN,
    FLUX,
    FLUX2,
    STABLE_DIFFUSION_3,
    QWEN_IMAGE,
    Z_IMAGE,
)
_BY_PIPELINE = {name: family for family in FAMILIES for name in family.pipeline_classes}
_BY_DENOISER = {family.denoiser_class: family for family in reversed(FAMILIES)}


def get_denoisers(pipe: Any) -> list[Any]:
    """Return the pipeline's denoisers; Wan 2.2 has a second one for the later steps."""
    models = (getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2"))
    return [model for model in models if model is not None]


def find_family(pipe: Any) -> tuple[Family, Any]:
    """Return the pipeline's family and its first denoiser.

    Raises:
        ValueError: The pipeline's denoiser belongs to no family.
    """
    model = next(iter(get_denoisers(pipe)), None)
    named = _BY_PIPELINE.get(type(pipe).__name__)
    try:
        return named or find_denoiser_family(model), model
    except ValueError as error:
        raise ValueError(f"{type(pipe).__name__}: {error}") from None


def find_denoiser_family(model: Any) -> Family:
    """Return the family of a denoiser, or the first of several that share its class.

    Raises:
        ValueError: The denoiser belongs to no family.
    """
    name = type(unwrap_compiled(model)).__name__
    if name not in _BY_DENOISER:
        raise ValueError(f"denoiser: got {name}; expected {', '.join(_BY_DENOISER)}.")
    return _BY_DENOISER[name]


def find_distillable_family(pipeline_class: str) -> Family | None:
    """Return the family that can distil pipelines of this class, or None."""
    return next((f for f in FAMILIES if f.distillation and pipeline_class in f.distillation.pipeline_classes), None)


def find_published_model(hub_id: str) -> tuple[Family, PublishedModel] | None:
    """Return a Hub model whose architecture is known without its weights, or None."""
    for family in FAMILIES:
        if family.distillation and hub_id in family.distillation.published:
            return family, family.distillation.published[hub_id]
    return None


def list_distillable_pipelines() -> list[str]:
    """Return the class names of the pipelines that can be distilled."""
    return [name for family in FAMILIES if family.distillation for name in family.distillation.pipeline_classes]


__all__ = [
    "FAMILIES",
    "Distillation",
    "Family",
    "find_denoiser_family",
    "find_distillable_family",
    "find_family",
    "find_published_model",
    "get_denoisers",
    "list_distillable_pipelines",
]
