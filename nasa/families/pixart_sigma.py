"""PixArt-Sigma: PixArt-alpha's transformer with a longer text, and SDXL's autoencoder.

Unlike PixArt-alpha's, its pipeline has no special case for a single step, so its student needs a scheduler whose only
step ends at the image.
"""

from dataclasses import replace

from nasa.architectures import build_pixart_alpha
from nasa.families.family import PublishedModel
from nasa.families.pixart import DISTILLATION, PIXART, T5_XXL_PARAMETERS, build_t5_encoder
from nasa.schedulers import build_student_ddim

TEXT_LENGTH = 300  # the default of the pipeline's call

PIXART_SIGMA = replace(
    PIXART,
    name="pixart_sigma",
    pipeline_classes=("PixArtSigmaPipeline",),
    encode=build_t5_encoder(TEXT_LENGTH),
    distillation=replace(
        DISTILLATION,
        pipeline_classes=("PixArtSigmaPipeline",),
        build_scheduler=build_student_ddim,
        text_shape=lambda config: (TEXT_LENGTH, config.caption_channels),
        published={"PixArt-alpha/PixArt-Sigma-XL-2-512-MS": PublishedModel(build_pixart_alpha, T5_XXL_PARAMETERS)},
    ),
)
