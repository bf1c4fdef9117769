"""Contrastive training of the small CLIP."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from nasa.prompt_embeds import tokenize
from pipeline.shapes.clip import build_clip
from pipeline.shapes.samples import draw_samples
from pipeline.shapes_training.training_loop import fit

STEPS, BATCH, LEARNING_RATE = 800, 128, 2e-3


def train(work: Path, tokenizer: CLIPTokenizer, *, steps: int = STEPS) -> CLIPModel:
    """Train on fresh renders and their captions."""
    torch.manual_seed(0)
    clip = build_clip(tokenizer)
    fit(
        clip,
        lambda step: _compute_loss(clip, tokenizer, step),
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_file=work / "clip.pt",
    )
    return clip


def _compute_loss(clip: CLIPModel, tokenizer: CLIPTokenizer, step: int) -> Tensor:
    batch = draw_samples(BATCH, (2, step))
    output = clip(input_ids=tokenize(tokenizer, batch.captions), pixel_values=batch.images, return_loss=True)
    loss: Tensor = output.loss
    return loss
