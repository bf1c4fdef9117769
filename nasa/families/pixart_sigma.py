"""PixArt-Sigma: PixArt-alpha's transformer with a longer text, and SDXL's autoencoder.

Unlike PixArt-alpha's, its pipeline has no special case for a single step, so its student needs a scheduler whose only
step ends at the image.
"""

from dataclasses import replace

from nasa.architectures import pixart_alpha
from nasa.families.base import PublishedModel
from nasa.families.pixart import DISTILLATION, PIXART, T5_XXL_PARAMETERS, encode_to
from nasa.schedulers import consistency, last_timestep

TEXT_LENGTH = 300  # the default of the pipeline's call

PIXART_SIGMA = replace(
    PIXART,
    name="pixart_sigma",
    pipeline_classes=("PixArtSigmaPipeline",),
    encode=encode_to(TEXT_LENGTH),
    distillation=replace(
        DISTILLATION,
        pipeline_classes=("PixArtSigmaPipeline",),
        one_step_scheduler=last_timestep,
        early_start_scheduler=consistency,
        text_shape=lambda config: (TEXT_LENGTH, config.caption_channels),
        published={"PixArt-alpha/PixArt-Sigma-XL-2-512-MS": PublishedModel(pixart_alpha, T5_XXL_PARAMETERS)},
    ),
)
