"""A fixed pool of rendered scenes with their captions, from which all networks are trained."""

import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from datasets_prep import shapes
from nasa.prompt_embeds import tokenize
from pipeline.shapes.samples import LABELS, draw_samples

SCENES, CAPTIONS_PER_SCENE = 65_536, 8
CHUNK = 512  # scenes that one process renders at a time
SEED = 3


@dataclass(frozen=True)
class Pool:
    """Images uint8 [N, 3, 64, 64], token ids int64 [N, C, L] of C captions each, and class indices int64 [N]."""

    images: Tensor
    captions: Tensor
    labels: dict[str, Tensor]
    null_caption: Tensor

    def __len__(self) -> int:
        """Return the number of scenes."""
        return len(self.images)

    def draw_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the indices of random scenes, int64 [count]."""
        return torch.randint(len(self), (count,), generator=generator, device=self.images.device)

    def get_images(self, rows: Tensor) -> Tensor:
        """Return images float32 [B, 3, 64, 64] in -1..1."""
        return self.images[rows].float() / 127.5 - 1

    def draw_captions(self, rows: Tensor, generator: torch.Generator, null_share: float = 0.0) -> Tensor:
        """Return the token ids [B, L] of a caption of each scene, or of the empty text with this probability."""
        device = self.images.device
        column = torch.randint(self.captions.shape[1], rows.shape, generator=generator, device=device)
        dropped = torch.rand(rows.shape, generator=generator, device=device) < null_share
        return torch.where(dropped[:, None], self.null_caption, self.captions[rows, column])


def build_pool(tokenizer: CLIPTokenizer, cache: Path, device: torch.device, scenes: int = SCENES) -> Pool:
    """Render the pool in all processor cores, or read it from its cache."""
    if cache.exists():
        images, captions, labels = torch.load(cache, weights_only=True)
    else:
        processes = min(os.cpu_count() or 1, -(-scenes // CHUNK))
        render = partial(_render_chunk, tokenizer)
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            chunks = pool.map(render, range(-(-scenes // CHUNK)), chunksize=1)
        images, captions = torch.cat([chunk[0] for chunk in chunks]), torch.cat([chunk[1] for chunk in chunks])
        labels = {name: torch.cat([chunk[2][name] for chunk in chunks]) for name in LABELS}
        torch.save((images, captions, labels), cache)
    null_caption = tokenize(tokenizer, [""])[0]
    return Pool(
        images.to(device),
        captions.long().to(device),
        {name: values.to(device) for name, values in labels.items()},
        null_caption.to(device),
    )


def _render_chunk(tokenizer: CLIPTokenizer, index: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.set_num_threads(1)
    samples = draw_samples(CHUNK, (SEED, 0, index))
    rng = np.random.default_rng((SEED, 1, index))
    texts = [shapes.sample_caption(scene, rng) for scene in samples.scenes for _ in range(CAPTIONS_PER_SCENE)]
    captions = tokenize(tokenizer, texts).reshape(CHUNK, CAPTIONS_PER_SCENE, -1).to(torch.int16)
    images = ((samples.images + 1) * 127.5).round().to(torch.uint8)
    return images, captions, samples.get_labels()
