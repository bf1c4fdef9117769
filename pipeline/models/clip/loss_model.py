"""A CLIP whose image features are differentiable, for the training loss, and the tiny decoder of that loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor
from transformers import CLIPModel

from nasa.prompt_embeds import tokenize
from pipeline.errors import invalid
from pipeline.model_download import download_folder
from pipeline.models.clip.features import load_transformers_clip
from pipeline.models.clip.normalization import Normalization
from pipeline.recipe import BUNDLED
from pipeline.shapes import WEIGHTS


def find_clip_folder(path_or_id: str) -> Path:
    """Return the local folder of a CLIP in transformers' layout: the bundled one, a folder or a hub id."""
    folder = WEIGHTS / "clip" if path_or_id == BUNDLED else download_folder(path_or_id, "train.clip_model")
    if not (folder / "config.json").is_file():
        raise invalid("train.clip_model", path_or_id, f'a folder or a hub id with a config.json, or "{BUNDLED}"')
    return folder


def find_decoder_folder(path_or_id: str) -> Path:
    """Return the local folder of an AutoencoderTiny."""
    folder = download_folder(path_or_id, "train.clip_decoder")
    if not (folder / "config.json").is_file():
        raise invalid("train.clip_decoder", path_or_id, "a folder or a hub id of an AutoencoderTiny with a config.json")
    return folder


def load_decoder(path_or_id: str, device: torch.device | str) -> AutoencoderTiny:
    """Load the decoder of the CLIP loss, frozen."""
    decoder: AutoencoderTiny = AutoencoderTiny.from_pretrained(find_decoder_folder(path_or_id), use_safetensors=True)
    return decoder.requires_grad_(False).eval().to(device)


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP in transformers' layout. Images are [B, 3, H, W] in -1..1, features [B, D].

    Attributes:
        normalization: mean and deviation of the pixels that this CLIP was trained on, read from beside its weights.
    """

    model: CLIPModel
    tokenizer: Any
    normalization: Normalization

    @staticmethod
    def load(path_or_id: str, device: torch.device | str = "cpu") -> "Clip":
        """Load a CLIP: the bundled one, a folder's, or one from the hub."""
        folder = find_clip_folder(path_or_id)
        return Clip(*load_transformers_clip(folder, device), Normalization.read(folder, "train.clip_model"))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return the features of images, resized to the model's input; the gradient flows to the images."""
        side, images = self.model.config.vision_config.image_size, images.float()
        if images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True)
        pooled = self.model.vision_model(pixel_values=self.normalization.from_signed(images)).pooler_output
        features: Tensor = self.model.visual_projection(pooled)
        return features

    @torch.no_grad()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return the features of texts, padded to the tokenizer's full length."""
        pooled = self.model.text_model(input_ids=tokenize(self.tokenizer, texts).to(self.model.device)).pooler_output
        features: Tensor = self.model.text_projection(pooled)
        return features

    @torch.no_grad()
    def score_pairs(self, images: Tensor, texts: list[str]) -> Tensor:
        """Return the cosine of each image with its text, [B], in -1..1."""
        return F.cosine_similarity(self.encode_images(images), self.encode_texts(texts), dim=-1)
