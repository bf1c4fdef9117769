"""Preview images of a training run: fixed prompts and noise through the raw student, one contact sheet per prompt."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL.Image import Image

from nasa.student import generate
from pipeline.evaluation.contact_sheet import draw_contact_sheet, to_pixels
from pipeline.evaluation.suites import build_suite
from pipeline.recipe import Recipe
from pipeline.storage import Folder

if TYPE_CHECKING:
    from pipeline.training.distiller import Distiller

IMAGES_PER_PROMPT = 2
SCALE = 0.5
NEGATIVE = "low quality"
SEED = 7


def choose_preview_prompts(recipe: Recipe, prompt_folder: Folder) -> tuple[str, ...]:
    """Return the recipe's `evaluation.preview_prompts`, or those of its evaluation suite."""
    return recipe.evaluation.preview_prompts or tuple(build_suite(recipe).choose_preview_prompts(prompt_folder))


def list_preview_texts(prompts: Sequence[str]) -> tuple[str, ...]:
    """Return the texts that a worker without a text encoder needs: the null text, the negative and the prompts."""
    return tuple(dict.fromkeys(("", NEGATIVE, *prompts)))


@torch.no_grad()
def draw_previews(distiller: "Distiller", prompts: Sequence[str]) -> Iterator[tuple[str, Image]]:
    """Yield an MLflow key and a contact sheet for each prompt: without a negative prompt, and steered by NASA."""
    if not prompts:
        return
    model, device = distiller.model, distiller.null.embeds.device
    texts = [prompt for prompt in prompts for _ in range(IMAGES_PER_PROMPT)]
    generator, count = torch.Generator().manual_seed(SEED), 1 + model.diffusion.num_step_noises
    noise, *step_noise = (
        torch.randn((len(texts), *model.latent_shape), generator=generator).to(device) for _ in range(count)
    )
    embeds, negative = model.encode(texts).to(device), model.encode([NEGATIVE]).to(device)
    student = distiller.engines.student.module
    rows = []
    for label, scale in (("no negative", 0.0), (f"NASA {SCALE}: {NEGATIVE}", SCALE)):
        images = []
        with distiller.enter_precision():
            for image in range(len(texts)):  # one by one: training's memory is full
                one, added = slice(image, image + 1), [part[image : image + 1] for part in step_noise]
                x0 = generate(student, model.diffusion, noise[one], embeds[one], negative, scale, step_noise=added)
                images.append(to_pixels(model.decode(x0).float()))
        rows.append((label, np.concatenate(images)))
    for number, prompt in enumerate(prompts):
        part = slice(number * IMAGES_PER_PROMPT, (number + 1) * IMAGES_PER_PROMPT)
        sheet = draw_contact_sheet([(label, images[part]) for label, images in rows], [prompt] * IMAGES_PER_PROMPT)
        yield f"preview_{number:02d}_{_slugify(prompt)}", sheet


def _slugify(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
