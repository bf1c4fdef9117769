"""The batch layout of diffusers' pipelines: which rows of the denoiser's batch belong to the positive prompt.

Guidance adds rows that must stay plain: the unconditional half of a batch, perturbed copies, or a second call in the
same step. Each pipeline has its own undocumented convention, so a layout is never guessed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline
from torch import Tensor

Rows = slice | Sequence[int]
Conditional = Rows | Callable[[int, int], Rows]  # rows, or a function of the batch size and the call within the step


@dataclass(frozen=True)
class DenoiserCall:
    """The `index`-th call of the denoiser within a step, and whether the pipeline uses guidance and perturbation.

    `images` is the number of images that the pipeline's call makes, 0 if it is not known.
    """

    batch: int
    index: int = 0
    guided: bool = False
    perturbed: bool = False
    images: int = 0


def select_all_rows(call: DenoiserCall) -> Rows:
    """Return all rows: there is no guidance, or it is embedded in the denoiser."""
    return slice(None)


def select_second_half(call: DenoiserCall) -> Rows:
    """Return the second half of [unconditional; conditional]; Stable Diffusion 3.5's second call skips layers."""
    if call.index:
        return slice(0)
    return slice(call.batch // 2, None) if call.guided else slice(None)


def select_before_perturbed(call: DenoiserCall) -> Rows:
    """Return the conditional part of [unconditional; conditional; perturbed]; the other parts are optional."""
    if not call.perturbed:
        return select_second_half(call)
    size = call.batch // (2 + call.guided)
    return slice(size, 2 * size) if call.guided else slice(size)


def select_first_third(call: DenoiserCall) -> Rows:
    """Return the first third of [text and image; image; neither]."""
    return slice(call.batch // 3) if call.guided else slice(None)


def select_first_call(call: DenoiserCall) -> Rows:
    """Return all rows of a step's first call; guidance is a second call."""
    return slice(0) if call.index else slice(None)


def select_first_images(call: DenoiserCall) -> Rows:
    """Return a row per image, which come first, as Z-Image may leave out the unconditional rows in later steps."""
    return slice(call.images or None)


Layout = Callable[[DenoiserCall], Rows]

PIPELINES: dict[str, Layout] = {
    "Flux2KleinInpaintPipeline": select_first_call,
    "Flux2KleinPipeline": select_first_call,
    "FluxControlImg2ImgPipeline": select_all_rows,
    "FluxControlInpaintPipeline": select_all_rows,
    "FluxControlNetImg2ImgPipeline": select_all_rows,
    "FluxControlNetInpaintPipeline": select_all_rows,
    "FluxControlNetPipeline": select_first_call,
    "FluxControlPipeline": select_all_rows,
    "FluxFillPipeline": select_all_rows,
    "FluxImg2ImgPipeline": select_first_call,
    "FluxInpaintPipeline": select_first_call,
    "FluxKontextInpaintPipeline": select_first_call,
    "FluxKontextPipeline": select_first_call,
    "FluxPipeline": select_first_call,
    "LatentConsistencyModelImg2ImgPipeline": select_all_rows,
    "LatentConsistencyModelPipeline": select_all_rows,
    "LucyEditPipeline": select_first_call,
    "PixArtAlphaPipeline": select_second_half,
    "PixArtSigmaPAGPipeline": select_before_perturbed,
    "PixArtSigmaPipeline": select_second_half,
    "QwenImageControlNetInpaintPipeline": select_first_call,
    "QwenImageControlNetPipeline": select_first_call,
    "QwenImageImg2ImgPipeline": select_first_call,
    "QwenImageInpaintPipeline": select_first_call,
    "QwenImagePipeline": select_first_call,
    "SanaControlNetPipeline": select_second_half,
    "SanaPAGPipeline": select_before_perturbed,
    "SanaPipeline": select_second_half,
    "SanaSprintImg2ImgPipeline": select_all_rows,
    "SanaSprintPipeline": select_all_rows,
    "StableDiffusion3ControlNetInpaintingPipeline": select_second_half,
    "StableDiffusion3ControlNetPipeline": select_second_half,
    "StableDiffusion3Img2ImgPipeline": select_second_half,
    "StableDiffusion3InpaintPipeline": select_second_half,
    "StableDiffusion3Pipeline": select_second_half,
    "StableDiffusionAdapterPipeline": select_second_half,
    "StableDiffusionControlNetImg2ImgPipeline": select_second_half,
    "StableDiffusionControlNetInpaintPipeline": select_second_half,
    "StableDiffusionControlNetPAGInpaintPipeline": select_before_perturbed,
    "StableDiffusionControlNetPAGPipeline": select_before_perturbed,
    "StableDiffusionControlNetPipeline": select_second_half,
    "StableDiffusionDepth2ImgPipeline": select_second_half,
    "StableDiffusionImg2ImgPipeline": select_second_half,
    "StableDiffusionInpaintPipeline": select_second_half,
    "StableDiffusionInstructPix2PixPipeline": select_first_third,
    "StableDiffusionPAGImg2ImgPipeline": select_before_perturbed,
    "StableDiffusionPAGInpaintPipeline": select_before_perturbed,
    "StableDiffusionPAGPipeline": select_before_perturbed,
    "StableDiffusionPipeline": select_second_half,
    "StableDiffusionUpscalePipeline": select_second_half,
    "StableDiffusionXLAdapterPipeline": select_second_half,
    "StableDiffusionXLControlNetImg2ImgPipeline": select_second_half,
    "StableDiffusionXLControlNetInpaintPipeline": select_second_half,
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": select_before_perturbed,
    "StableDiffusionXLControlNetPAGPipeline": select_before_perturbed,
    "StableDiffusionXLControlNetPipeline": select_second_half,
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": select_second_half,
    "StableDiffusionXLControlNetUnionInpaintPipeline": select_second_half,
    "StableDiffusionXLControlNetUnionPipeline": select_second_half,
    "StableDiffusionXLImg2ImgPipeline": select_second_half,
    "StableDiffusionXLInpaintPipeline": select_second_half,
    "StableDiffusionXLInstructPix2PixPipeline": select_first_third,
    "StableDiffusionXLPAGImg2ImgPipeline": select_before_perturbed,
    "StableDiffusionXLPAGInpaintPipeline": select_before_perturbed,
    "StableDiffusionXLPAGPipeline": select_before_perturbed,
    "StableDiffusionXLPipeline": select_second_half,
    "WanImageToVideoPipeline": select_first_call,
    "WanPipeline": select_first_call,
    "WanVideoToVideoPipeline": select_first_call,
    "ZImageImg2ImgPipeline": select_first_images,
    "ZImageInpaintPipeline": select_first_images,
    "ZImagePipeline": select_first_images,
}


def find_layout(pipe: Any, conditional: Conditional | None = None) -> Layout:
    """Return the layout of a pipeline's batches: `conditional` if given, else the one in the table.

    All rows are conditional for an object that is not a diffusers pipeline. A subclass has the layout of the class that
    defines its `__call__`.

    Raises:
        ValueError: The pipeline is not in the table and `conditional` is None.
    """
    if conditional is not None:
        return _build_custom_layout(conditional)
    if isinstance(pipe, ModularPipeline):
        raise ValueError(
            f"pipe: got {type(pipe).__name__}; expected one that is not modular. Make nasa.NasaGuidance its guider."
        )
    if not isinstance(pipe, DiffusionPipeline):
        return select_all_rows
    caller = next(cls for cls in type(pipe).__mro__ if "__call__" in vars(cls))
    if caller.__module__.startswith("diffusers.") and caller.__name__ in PIPELINES:
        return PIPELINES[caller.__name__]
    raise ValueError(
        f"pipe: got {type(pipe).__name__}; expected a pipeline of nasa.batch_layouts.PIPELINES. Pass "
        "conditional=, the rows of the positive prompt, such as lambda rows, call: slice(rows // 2, None)."
    )


def _build_custom_layout(conditional: Conditional) -> Layout:
    if callable(conditional):
        return lambda call: conditional(call.batch, call.index)
    return lambda call: conditional


@dataclass(frozen=True)
class BatchSplit:
    """Indices of a batch's conditional and other rows; `order` restores the batch from [others; conditional]."""

    conditional: Tensor
    others: Tensor
    order: Tensor

    def take(self, rows: Tensor, parts: Sequence[Tensor | None]) -> Any:
        """Return these rows of each tensor."""
        return tuple(None if part is None else part[rows] for part in parts)

    def join(self, others: Tensor, conditional: Tensor) -> Tensor:
        """Return the whole batch in its original order."""
        return torch.cat([others, conditional])[self.order]


def split_batch(rows: Rows, batch: int, device: torch.device) -> BatchSplit | None:
    """Split a batch into conditional and other rows; None if every row is conditional.

    Raises:
        ValueError: The batch does not have one of the rows.
    """
    if not isinstance(rows, slice) and not all(0 <= row < batch for row in rows):
        raise ValueError(f"conditional: got rows {list(rows)}; expected rows of a batch of {batch}.")
    chosen = range(batch)[rows] if isinstance(rows, slice) else sorted(set(rows))
    return None if len(chosen) == batch else _split(tuple(chosen), batch, device)


@lru_cache(maxsize=64)
def _split(chosen: tuple[int, ...], batch: int, device: torch.device) -> BatchSplit:
    others = [row for row in range(batch) if row not in chosen]
    with torch.inference_mode(False):  # the cached tensors outlive the call
        conditional, unconditional = (torch.tensor(rows, dtype=torch.long, device="cpu") for rows in (chosen, others))
        order = torch.cat([unconditional, conditional]).argsort()
        return BatchSplit(conditional.to(device), unconditional.to(device), order.to(device))
