"""Contrastive training of the small CLIP."""

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from pipeline.shapes.clip import build_clip
from pipeline.shapes_training.pool import Pool
from pipeline.shapes_training.training_loop import Batch, fit

STEPS, BATCH, LEARNING_RATE = 1500, 128, 2e-3


def train(
    work: Path, pool: Pool, tokenizer: CLIPTokenizer, *, steps: int = STEPS, max_seconds: float = math.inf
) -> CLIPModel:
    """Train on images and their captions."""
    torch.manual_seed(0)
    clip = build_clip(tokenizer).to(pool.images.device)

    def draw_batch(step: int) -> Batch:
        generator = torch.Generator(pool.images.device).manual_seed(step)
        rows = pool.draw_rows(BATCH, generator)
        return {"images": pool.get_images(rows), "captions": pool.draw_captions(rows, generator)}

    fit(
        clip,
        draw_batch,
        lambda batch: _compute_loss(clip, batch),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "clip.pt",
        max_seconds=max_seconds,
    )
    return clip


def _compute_loss(clip: CLIPModel, batch: Batch) -> Tensor:
    output = clip(input_ids=batch["captions"], pixel_values=batch["images"], return_loss=True)
    loss: Tensor = output.loss
    return loss
