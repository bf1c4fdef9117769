"""What judges images: the attribute classifier of the world of shapes, and a CLIP."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from nasa.prompt_embeds import tokenize
from pipeline.errors import UserError
from pipeline.evaluation.clip_features import load_folder
from pipeline.evaluation.clip_preprocess import Normalization
from pipeline.hub import local_folder
from pipeline.models import WEIGHTS
from pipeline.recipe import EMBEDDED
from pipeline.shapes.classifier import AttributeClassifier
from pipeline.shapes.samples import LABELS


def clip_folder(place: str) -> Path:
    """Where a CLIP lies: the embedded one, or one in transformers' layout, in a folder or on the hub."""
    folder = WEIGHTS / "clip" if place == EMBEDDED else local_folder(place, "train.clip_model")
    if not (folder / "config.json").is_file():
        raise UserError(
            f'train.clip_model: {place!r} is no CLIP folder (no config.json); allowed: a folder, a hub id, "{EMBEDDED}"'
        )
    return folder


def decoder_folder(place: str) -> Path:
    folder = local_folder(place, "train.clip_decoder")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"train.clip_decoder: {place!r} is no AutoencoderTiny (no config.json); allowed: a folder or id"
        )
    return folder


def load_decoder(place: str, device: torch.device | str) -> AutoencoderTiny:
    decoder: AutoencoderTiny = AutoencoderTiny.from_pretrained(decoder_folder(place), use_safetensors=True)
    return decoder.requires_grad_(False).eval().to(device)


@dataclass(frozen=True)
class Clip:
    """A CLIP in transformers' layout, frozen. Images are [B, 3, H, W] in -1..1, features [B, D].

    `normalization` is how this CLIP was trained to see pixels, from the preprocessor's file of its folder.
    """

    model: CLIPModel
    tokenizer: Any
    normalization: Normalization

    @staticmethod
    def load(place: str, device: torch.device | str = "cpu") -> "Clip":
        folder = clip_folder(place)
        return Clip(*load_folder(folder, device), Normalization.read(folder, "train.clip_model"))

    def image_features(self, images: Tensor) -> Tensor:
        """The gradient flows to the images."""
        side, images = self.model.config.vision_config.image_size, images.float()
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
        pooled = self.model.vision_model(pixel_values=self.normalization.from_signed(images)).pooler_output
        features: Tensor = self.model.visual_projection(pooled)
        return features

    @torch.no_grad()
    def text_features(self, texts: list[str]) -> Tensor:
        pooled = self.model.text_model(input_ids=tokenize(self.tokenizer, texts).to(self.model.device)).pooler_output
        features: Tensor = self.model.text_projection(pooled)
        return features

    @torch.no_grad()
    def scores(self, images: Tensor, texts: list[str]) -> Tensor:
        """Cosine of each image with its text, [B], in -1..1."""
        return F.cosine_similarity(self.image_features(images), self.text_features(texts), dim=-1)


@dataclass(frozen=True)
class AttributeJudge:
    """Says which attributes an image of the world of shapes shows."""

    model: AttributeClassifier

    @staticmethod
    def load() -> "AttributeJudge":
        model = AttributeClassifier()
        model.load_state_dict(load_file(WEIGHTS / "judge.safetensors"))
        return AttributeJudge(model.requires_grad_(False).eval())

    @torch.no_grad()
    def attributes(self, images: Tensor) -> list[dict[str, str]]:
        """The most likely value of every attribute of each image [B, 3, 64, 64] in -1..1."""
        indices = {name: logits.argmax(-1).tolist() for name, logits in self.model(images.clamp(-1, 1)).items()}
        return [{name: LABELS[name][indices[name][row]] for name in LABELS} for row in range(len(images))]
