"""Preview images of a training run: fixed prompts and noise through the student, by raw and by averaged weights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
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


@dataclass(frozen=True)
class PreviewRow:
    """The same prompts and noises, sampled one way; `key` names it in MLflow, `label` in the contact sheet."""

    key: str
    label: str
    images: np.ndarray


@torch.no_grad()
def draw_previews(distiller: "Distiller", prompts: Sequence[str]) -> Iterator[tuple[str, Image]]:
    """Yield MLflow keys and images, for each prompt a contact sheet, then one image of each of its rows.

    The rows are the raw student without a negative prompt and steered by NASA; then the same of the EMA weights, which
    the first rank alone has, unless the student is sharded.
    """
    if not prompts:
        return
    rows = list(_draw_rows(distiller, prompts, "raw"))
    if distiller.ema and not distiller.is_sharded:
        with _use_ema_weights(distiller):
            rows += _draw_rows(distiller, prompts, "ema")
    for number, prompt in enumerate(prompts):
        part = slice(number * IMAGES_PER_PROMPT, (number + 1) * IMAGES_PER_PROMPT)
        key = f"preview_{number:02d}_{_slugify(prompt)}"
        yield key, draw_contact_sheet([(row.label, row.images[part]) for row in rows], [prompt] * IMAGES_PER_PROMPT)
        for row in rows:
            yield f"{key}/{row.key}", PIL.Image.fromarray(row.images[part][0])


def _draw_rows(distiller: "Distiller", prompts: Sequence[str], weights: str) -> Iterator[PreviewRow]:
    """Yield the prompts' images without and with the negative prompt, from noise that is always the same."""
    model, device = distiller.model, distiller.null.embeds.device
    texts = [prompt for prompt in prompts for _ in range(IMAGES_PER_PROMPT)]
    generator, count = torch.Generator().manual_seed(SEED), 1 + model.diffusion.num_step_noises
    noise, *step_noise = (
        torch.randn((len(texts), *model.latent_shape), generator=generator).to(device) for _ in range(count)
    )
    embeds, negative = model.encode(texts).to(device), model.encode([NEGATIVE]).to(device)
    student = distiller.engines.student.module
    for name, label, scale in (("plain", "no negative", 0.0), ("negative", f"NASA {SCALE}: {NEGATIVE}", SCALE)):
        images = []
        with distiller.enter_precision():
            for image in range(len(texts)):  # one by one: training's memory is full
                one, added = slice(image, image + 1), [part[image : image + 1] for part in step_noise]
                x0 = generate(student, model.diffusion, noise[one], embeds[one], negative, scale, step_noise=added)
                images.append(to_pixels(model.decode(x0).float()))
        yield PreviewRow(f"{weights}_{name}", f"{weights}, {label}", np.concatenate(images))


@contextmanager
def _use_ema_weights(distiller: "Distiller") -> Iterator[None]:
    """Exchange the student's trained weights with their moving average, without a copy of either."""
    trained = dict(distiller.list_trained())
    own = {name: parameter.data for name, parameter in trained.items()}
    try:
        for name, parameter in trained.items():
            parameter.data = distiller.ema[name].to(parameter)
        yield
    finally:
        for name, parameter in trained.items():
            parameter.data = own[name]


def _slugify(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40]
