"""Text encoding in separate processes, so that the workers' GPUs hold no text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from nasa.prompt_embeds import PromptEmbeds, cat
from pipeline import models
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.prompts.teacher_pairs import TeacherPairs, open_pairs_folder
from pipeline.recipe import Recipe
from pipeline.storage import Folder

EMBEDS = tuple(field.name for field in fields(PromptEmbeds))


@dataclass(frozen=True)
class EncoderConfig:
    """The configuration of an encoder actor. `seed` seeds the sampling of negatives and pairs.

    `num_pairs` of the folder `pairs_uri` are the regression's; without one, `pairs_uri` is empty.
    """

    teacher: str
    revision: str
    teacher_folder: str
    prompts_uri: str
    avoid_contradictions: bool
    bfloat16: bool
    batch_size: int
    seed: int
    pairs_uri: str = ""
    num_pairs: int = 0


class TextEncoderActor:
    """A Ray Data actor that encodes prompts, the negatives that it samples for them, and the regression's prompts."""

    def __init__(self, config: EncoderConfig) -> None:
        self.config, self.device = config, "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def model(self) -> models.TextEncoder:
        """The text encoder, loaded on the first batch: an exception in a constructor is only an ActorDiedError."""
        config = self.config
        model = models.load_text_encoder(
            models.local_or_download(config.teacher_folder, config.teacher, revision=config.revision), self.device
        )
        if config.bfloat16:
            model.to(torch.bfloat16)
        return model

    @cached_property
    def negatives(self) -> NegativeSampler:
        """The sampler of negative prompts."""
        config = self.config
        return NegativeSampler.read(
            Folder.from_uri(config.prompts_uri), avoid_contradictions=config.avoid_contradictions
        )

    @cached_property
    def pairs(self) -> TeacherPairs | None:
        """The pairs of the regression."""
        config = self.config
        return TeacherPairs.read(open_pairs_folder(config.pairs_uri), config.num_pairs) if config.pairs_uri else None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the tensors of `PromptEmbeds` of K texts for each prompt, such as `embeds` [N, K, T, D].

        They are the prompt, its negative and, with a regression, the prompt of a pair.
        """
        prompts = batch["prompt"].tolist()
        steps, indices = np.divmod(batch["position"], self.config.batch_size)
        negatives = [
            self.negatives.sample([prompt], self.config.seed, int(step), [int(index)])[0]
            for prompt, step, index in zip(prompts, steps, indices, strict=True)
        ]
        texts = [*prompts, *negatives]
        if self.pairs:
            rows = (
                self.pairs.draw_rows(self.config.seed, int(step), [int(index)])[0]
                for step, index in zip(steps, indices, strict=True)
            )
            texts += [self.pairs.prompts[row] for row in rows]
        encoded = self.model.encode(texts).pad(self.model.num_tokens).get_tensors()
        parts = {name: convert_to_numpy(part) for name, part in encoded.items()}
        groups = len(texts) // len(prompts)
        return {
            "prompt": batch["prompt"],
            **{name: np.stack(np.split(part, groups), axis=1) for name, part in parts.items()},
        }


def convert_to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a tensor as a numpy array; bfloat16, which numpy lacks, as int16 with the same bits."""
    tensor = tensor.cpu()
    array: np.ndarray = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def build_prompt_embeds(batch: dict[str, np.ndarray], device: Any) -> PromptEmbeds:
    """Return the embeddings of a `TextEncoderActor`'s batch: all prompts, all negatives, then all pairs' prompts."""
    parts = {name: batch[name].swapaxes(0, 1) for name in EMBEDS if name in batch}
    return PromptEmbeds(**{name: _convert_to_tensor(part).to(device) for name, part in parts.items()})


def _convert_to_tensor(groups: np.ndarray) -> Tensor:
    """Return an array [K, N, ...] of `convert_to_numpy` as a tensor [K N, ...]."""
    tensor = torch.from_numpy(np.ascontiguousarray(groups.reshape(-1, *groups.shape[2:])))
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.int16 else tensor


def encode_cached(config: EncoderConfig, texts: Sequence[str]) -> bytes:
    """Encode texts one by one and serialise the embeddings, for `decode_cached`."""
    encoder = TextEncoderActor(config)
    embeds = cat([encoder.model.encode([text]) for text in texts])
    return save({name: part.cpu().contiguous() for name, part in embeds.get_tensors().items()})


def decode_cached(texts: Sequence[str], content: bytes, device: Any) -> dict[str, PromptEmbeds]:
    """Return the embeddings that `encode_cached` wrote, by text."""
    embeds = PromptEmbeds(**load(content)).to(device)
    return {text: embeds[i : i + 1] for i, text in enumerate(texts)}


def build_encoder_config(
    recipe: Recipe, teacher_folder: str, prompts_uri: str, seed: int, pairs_uri: str = ""
) -> EncoderConfig:
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
        pairs_uri,
        recipe.regression.num_pairs,
    )
