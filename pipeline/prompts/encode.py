"""Text encoders in processes of their own: prompts and negatives reach the training encoded, and its GPUs hold none."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from nasa.prompt_embeds import PromptEmbeds, cat
from pipeline import models
from pipeline.prompts.negatives import NegativeSampler
from pipeline.recipe import Recipe
from pipeline.storage import Folder


@dataclass(frozen=True)
class EncoderConfig:
    """The configuration of an encoder process. `seed` is that of the sampled negatives."""

    teacher: str
    revision: str
    teacher_folder: str
    prompts_uri: str
    avoid_contradictions: bool
    bfloat16: bool
    batch_size: int
    seed: int


class TextEncoderWorker:
    """One text-encoding process, with the corpus of negatives."""

    def __init__(self, encoding: EncoderConfig) -> None:
        self.encoding, self.device = encoding, "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def model(self) -> models.TextEncoder:
        """The text encoder, loaded lazily: an exception in an actor's constructor is only an ActorDiedError."""
        own = self.encoding
        model = models.load_text_encoder(
            models.local_or_download(own.teacher_folder, own.teacher, revision=own.revision), self.device
        )
        if own.bfloat16:
            model.to(torch.bfloat16)
        return model

    @cached_property
    def negatives(self) -> NegativeSampler:
        """The sampler of negative prompts."""
        own = self.encoding
        return NegativeSampler.read(Folder.from_uri(own.prompts_uri), avoid_contradictions=own.avoid_contradictions)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add `embeds` [N, 2, T, D] and `attention_mask` [N, 2, T] of each prompt and its negative."""
        prompts = batch["prompt"].tolist()
        steps, indices = np.divmod(batch["position"], self.encoding.batch_size)
        negatives = [
            self.negatives.draw([prompt], self.encoding.seed, int(step), [int(index)])[0]
            for prompt, step, index in zip(prompts, steps, indices, strict=True)
        ]
        embeds = self.model.encode([*prompts, *negatives])
        parts = {name: to_bits(part) for name, part in _parts(embeds).items()}
        pairs = {name: np.stack(np.split(part, 2), axis=1) for name, part in parts.items()}
        return {"prompt": batch["prompt"], **pairs}


def _parts(encoded: PromptEmbeds) -> dict[str, Tensor]:
    mask = encoded.attention_mask
    return {"embeds": encoded.embeds} | ({} if mask is None else {"attention_mask": mask})


def to_bits(tensor: Tensor) -> np.ndarray:
    """Return a tensor as numpy; bfloat16, which numpy lacks, as int16 of the same bits."""
    own = tensor.cpu()
    array: np.ndarray = (own.view(torch.int16) if own.dtype == torch.bfloat16 else own).numpy()
    return array


def embeds_from_batch(batch: dict[str, np.ndarray], device: Any) -> PromptEmbeds:
    """Return the prompts, then the negatives, of a batch that an `Encoder` returned."""
    embeds, mask = (batch[name].swapaxes(0, 1) if name in batch else None for name in ("embeds", "attention_mask"))
    assert embeds is not None
    return PromptEmbeds(_tensor(embeds).to(device), None if mask is None else _tensor(mask).to(device))


def _tensor(pairs: np.ndarray) -> Tensor:
    """Return [2, N, ...] of `to_bits` as a tensor [2 N, ...]."""
    tensor = torch.from_numpy(np.ascontiguousarray(pairs.reshape(-1, *pairs.shape[2:])))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def encode_cached(encoding: EncoderConfig, texts: Sequence[str]) -> bytes:
    """Encode texts one by one, for `decode_cached`."""
    encoder = TextEncoderWorker(encoding)
    embeds = cat([encoder.model.encode([text]) for text in texts])
    return save({name: part.cpu().contiguous() for name, part in _parts(embeds).items()})


def decode_cached(texts: Sequence[str], content: bytes, device: Any) -> dict[str, PromptEmbeds]:
    """Return the embeddings of texts by text."""
    parts = {name: value.to(device) for name, value in load(content).items()}
    mask = parts.get("attention_mask")
    return {
        text: PromptEmbeds(parts["embeds"][i : i + 1], None if mask is None else mask[i : i + 1])
        for i, text in enumerate(texts)
    }


def encoder_config(recipe: Recipe, teacher_folder: str, prompts_uri: str, seed: int) -> EncoderConfig:
    """Return the encoder configuration of a recipe."""
    return EncoderConfig(
        recipe.teacher,
        recipe.revision,
        teacher_folder,
        prompts_uri,
        recipe.prompts.avoid_contradictions,
        recipe.train.precision == "bfloat16",
        recipe.train.batch_size,
        seed,
    )
