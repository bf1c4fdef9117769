"""The rows of a denoiser's batch that belong to the positive prompt: a table of diffusers' pipelines.

Guidance gives the denoiser rows that must stay plain: the unconditional half of a batch, perturbed copies, or a second
call in the same step. Where they stand is a convention of each pipeline, written down nowhere, so it is never guessed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

Rows = slice | Sequence[int]
Conditional = (
    Rows | Callable[[int, int], Rows]
)  # rows, or how to tell them from the batch size and the call in the step


@dataclass(frozen=True)
class DenoiserCall:
    """One call of the denoiser, the `index`-th of its step; whether the pipeline guides and perturbs."""

    batch: int
    index: int = 0
    guided: bool = False
    perturbed: bool = False


def every_row(call: DenoiserCall) -> Rows:
    """No guidance, or one that is embedded in the denoiser."""
    return slice(None)


def second_half(call: DenoiserCall) -> Rows:
    """[unconditional; conditional]; Stable Diffusion 3.5 calls once more with layers skipped, which is guidance too."""
    if call.index:
        return slice(0)
    return slice(call.batch // 2, None) if call.guided else slice(None)


def before_the_perturbed(call: DenoiserCall) -> Rows:
    """[unconditional; conditional; perturbed], each part only where it is asked for."""
    if not call.perturbed:
        return second_half(call)
    size = call.batch // (2 + call.guided)
    return slice(size, 2 * size) if call.guided else slice(size)


def first_third(call: DenoiserCall) -> Rows:
    """[text and image; image; neither]."""
    return slice(call.batch // 3) if call.guided else slice(None)


def first_call(call: DenoiserCall) -> Rows:
    """Guidance is a second call of the denoiser in the same step."""
    return slice(0) if call.index else slice(None)


Layout = Callable[[DenoiserCall], Rows]

PIPELINES: dict[str, Layout] = {
    "FluxControlImg2ImgPipeline": every_row,
    "FluxControlInpaintPipeline": every_row,
    "FluxControlNetImg2ImgPipeline": every_row,
    "FluxControlNetInpaintPipeline": every_row,
    "FluxControlNetPipeline": first_call,
    "FluxControlPipeline": every_row,
    "FluxFillPipeline": every_row,
    "FluxImg2ImgPipeline": first_call,
    "FluxInpaintPipeline": first_call,
    "FluxKontextInpaintPipeline": first_call,
    "FluxKontextPipeline": first_call,
    "FluxPipeline": first_call,
    "LatentConsistencyModelImg2ImgPipeline": every_row,
    "LatentConsistencyModelPipeline": every_row,
    "LucyEditPipeline": first_call,
    "PixArtAlphaPipeline": second_half,
    "PixArtSigmaPAGPipeline": before_the_perturbed,
    "PixArtSigmaPipeline": second_half,
    "QwenImageControlNetInpaintPipeline": first_call,
    "QwenImageControlNetPipeline": first_call,
    "QwenImageImg2ImgPipeline": first_call,
    "QwenImageInpaintPipeline": first_call,
    "QwenImagePipeline": first_call,
    "SanaControlNetPipeline": second_half,
    "SanaPAGPipeline": before_the_perturbed,
    "SanaPipeline": second_half,
    "SanaSprintImg2ImgPipeline": every_row,
    "SanaSprintPipeline": every_row,
    "StableDiffusion3ControlNetInpaintingPipeline": second_half,
    "StableDiffusion3ControlNetPipeline": second_half,
    "StableDiffusion3Img2ImgPipeline": second_half,
    "StableDiffusion3InpaintPipeline": second_half,
    "StableDiffusion3Pipeline": second_half,
    "StableDiffusionAdapterPipeline": second_half,
    "StableDiffusionControlNetImg2ImgPipeline": second_half,
    "StableDiffusionControlNetInpaintPipeline": second_half,
    "StableDiffusionControlNetPAGInpaintPipeline": before_the_perturbed,
    "StableDiffusionControlNetPAGPipeline": before_the_perturbed,
    "StableDiffusionControlNetPipeline": second_half,
    "StableDiffusionDepth2ImgPipeline": second_half,
    "StableDiffusionImg2ImgPipeline": second_half,
    "StableDiffusionInpaintPipeline": second_half,
    "StableDiffusionInstructPix2PixPipeline": first_third,
    "StableDiffusionPAGImg2ImgPipeline": before_the_perturbed,
    "StableDiffusionPAGInpaintPipeline": before_the_perturbed,
    "StableDiffusionPAGPipeline": before_the_perturbed,
    "StableDiffusionPipeline": second_half,
    "StableDiffusionUpscalePipeline": second_half,
    "StableDiffusionXLAdapterPipeline": second_half,
    "StableDiffusionXLControlNetImg2ImgPipeline": second_half,
    "StableDiffusionXLControlNetInpaintPipeline": second_half,
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": before_the_perturbed,
    "StableDiffusionXLControlNetPAGPipeline": before_the_perturbed,
    "StableDiffusionXLControlNetPipeline": second_half,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": second_half,
    "StableDiffusionXLControlNetUnionInpaintPipeline": second_half,
    "StableDiffusionXLControlNetUnionPipeline": second_half,
    "StableDiffusionXLImg2ImgPipeline": second_half,
    "StableDiffusionXLInpaintPipeline": second_half,
    "StableDiffusionXLInstructPix2PixPipeline": first_third,
    "StableDiffusionXLPAGImg2ImgPipeline": before_the_perturbed,
    "StableDiffusionXLPAGInpaintPipeline": before_the_perturbed,
    "StableDiffusionXLPAGPipeline": before_the_perturbed,
    "StableDiffusionXLPipeline": second_half,
    "WanImageToVideoPipeline": first_call,
    "WanPipeline": first_call,
    "WanVideoToVideoPipeline": first_call,
}


def layout_of(pipe: Any, conditional: Conditional | None = None) -> Layout:
    """Return how the pipeline's batches are laid out: as the caller says, or as the table does.

    An object that is no pipeline of diffusers has no guidance of its own: all rows are conditional. A subclass is known
    by the class that defines its `__call__`.

    Raises:
        ValueError: for a pipeline that is not in the table, without `conditional`.
    """
    if conditional is not None:
        return _as_told(conditional)
    if isinstance(pipe, ModularPipeline):
        raise ValueError(
            f"pipe: got {type(pipe).__name__}; expected one that is not modular. Make nasa.NasaGuidance its guider."
        )
    if not isinstance(pipe, DiffusionPipeline):
        return every_row
    caller = next(cls for cls in type(pipe).__mro__ if "__call__" in vars(cls))
    if caller.__module__.startswith("diffusers.") and caller.__name__ in PIPELINES:
        return PIPELINES[caller.__name__]
    raise ValueError(
        f"pipe: got {type(pipe).__name__}; expected a pipeline of nasa.conditional.PIPELINES. Pass conditional=, which "
        "rows are of the positive prompt, such as lambda rows, call: slice(rows // 2, None) for [negative; positive]."
    )


def _as_told(conditional: Conditional) -> Layout:
    if callable(conditional):
        return lambda call: conditional(call.batch, call.index)
    return lambda call: conditional


@dataclass(frozen=True)
class Split:
    """A batch in two: the conditional rows and the others; `order` puts [others; conditional] back into a batch."""

    conditional: Tensor
    others: Tensor
    order: Tensor

    def take(self, rows: Tensor, parts: Sequence[Tensor | None]) -> Any:
        """Return some rows of a tensor, or of each tensor in a tuple."""
        return tuple(None if part is None else part[rows] for part in parts)

    def join(self, others: Tensor, conditional: Tensor) -> Tensor:
        """Return all rows, the conditional ones in their places."""
        return torch.cat([others, conditional])[self.order]


def split(rows: Rows, batch: int, device: torch.device) -> Split | None:
    """Return the batch in two, or None where every row is conditional.

    Raises:
        ValueError: for a row that the batch does not have.
    """
    if not isinstance(rows, slice) and not all(0 <= row < batch for row in rows):
        raise ValueError(f"conditional: got rows {list(rows)}; expected rows of a batch of {batch}.")
    chosen = range(batch)[rows] if isinstance(rows, slice) else sorted(set(rows))
    return None if len(chosen) == batch else _split(tuple(chosen), batch, device)


@lru_cache(maxsize=64)
def _split(chosen: tuple[int, ...], batch: int, device: torch.device) -> Split:
    others = [row for row in range(batch) if row not in chosen]
    with torch.inference_mode(False):  # it outlives the call
        conditional, rest = (torch.tensor(part, dtype=torch.long, device="cpu") for part in (list(chosen), others))
        order = torch.cat([rest, conditional]).argsort()
        return Split(conditional.to(device), rest.to(device), order.to(device))
