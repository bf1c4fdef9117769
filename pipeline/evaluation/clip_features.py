"""Features of images and texts from a CLIP: OpenAI's, LAION's or HPSv2's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from nasa.prompt_embeds import tokenize
from pipeline.errors import UserError
from pipeline.evaluation import clip_tokenizer, open_clip
from pipeline.evaluation.clip_preprocess import Normalization
from pipeline.evaluation.weights import read_tensors, require_layout, sha256, weights_file

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # of transformers' layout
VOCABULARIES = ("tokenizer.json", "vocab.json")
TEXTS = 64  # in one batch


@dataclass(frozen=True)
class ClipFeatures:
    """Features of length 1 in float32, on the model's device. A text's are computed once."""

    model: CLIPModel
    tokenize: Callable[[Sequence[str]], Tensor]
    normalization: Normalization
    cache: dict[str, Tensor] = field(default_factory=dict)

    @property
    def side(self) -> int:
        """Of the square image that the model takes, in pixels."""
        side: int = self.model.config.vision_config.image_size
        return side

    @torch.no_grad()
    def of_images(self, pixels: Tensor) -> Tensor:
        """[B, D] of normalised pixels [B, 3, side, side]."""
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """[B, D]."""
        new = [text for text in dict.fromkeys(texts) if text not in self.cache]
        for start in range(0, len(new), TEXTS):
            batch = new[start : start + TEXTS]
            tokens = without_filling(self.tokenize(batch))
            pooled = self.model.text_model(input_ids=tokens.to(self.model.device)).pooler_output
            self.cache.update(zip(batch, F.normalize(self.model.text_projection(pooled), dim=-1), strict=True))
        return torch.stack([self.cache[text] for text in texts])


def without_filling(tokens_BL: Tensor) -> Tensor:
    """Without the last columns in which no row says anything new: attention is causal, the end token sees none of them.

    Of a caption's 77 places about a quarter are filled.
    """
    differs_L = (tokens_BL != tokens_BL[:, -1:]).any(0)
    return tokens_BL[:, : int(differs_L.nonzero().max()) + 2]


def check(place: str, architecture: str, field: str, names: Sequence[str] = open_clip.NAMES) -> CLIPConfig:
    """Raises a UserError where `place` holds no CLIP; computes nothing."""
    if architecture not in open_clip.ARCHITECTURES:
        raise UserError(
            f"{field.rpartition('.')[0]}.architecture: {architecture!r} is not allowed; "
            f"allowed: {', '.join(open_clip.ARCHITECTURES)}"
        )
    file = clip_file(place, field, names)
    return _check_folder(file, field) if in_transformers_layout(file) else open_clip.check(file, architecture, field)


def load(
    place: str, architecture: str, field: str, device: torch.device | str, names: Sequence[str] = open_clip.NAMES
) -> tuple[ClipFeatures, dict[str, Any]]:
    """The features, and what to record of them."""
    file = clip_file(place, field, names)
    normalization = Normalization.read(file.parent, field)
    if in_transformers_layout(file):
        features, architecture = _of_folder(file.parent, normalization, device), CONFIG
    else:
        model = open_clip.load(file, architecture, field, device)
        features = ClipFeatures(model, clip_tokenizer.tokenize, normalization)
    record = {"weights": place, "sha256": sha256(file), "architecture": architecture}
    if normalization != Normalization():
        record |= {"image_mean": list(normalization.mean), "image_std": list(normalization.std)}
    return features, record


def clip_file(place: str, field: str, names: Sequence[str]) -> Path:
    """A checkpoint in open_clip's layout, or the weights beside the config.json of transformers' layout."""
    return weights_file(place, field, (*names, WEIGHTS))


def in_transformers_layout(file: Path) -> bool:
    return file.name == WEIGHTS and (file.parent / CONFIG).is_file()


def _check_folder(file: Path, field: str) -> CLIPConfig:
    config = json.loads((file.parent / CONFIG).read_text())
    if config.get("model_type") != "clip":
        raise UserError(f"{field}: {str(file.parent)!r} holds a {config.get('model_type')!r}; allowed: 'clip'")
    if not any((file.parent / name).is_file() for name in VOCABULARIES):
        raise UserError(
            f"{field}: {str(file.parent)!r} has no tokenizer; allowed: {' or '.join(VOCABULARIES)} beside it"
        )
    parsed = CLIPConfig(**config)
    with torch.device("meta"):
        wanted = CLIPModel(parsed).state_dict()
    found = {name: value for name, value in read_tensors(file, field).items() if not name.endswith("position_ids")}
    require_layout(found, wanted, file, field)
    return parsed


def load_folder(folder: Path, device: torch.device | str = "cpu") -> tuple[CLIPModel, CLIPTokenizer]:
    """Load a CLIP in transformers' layout, frozen and float32, with a tokenizer that fills its text tower exactly."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    longest = model.config.text_config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)  # unlimited where the folder does not say
    return model.requires_grad_(False).eval().to(device), tokenizer


def _of_folder(folder: Path, normalization: Normalization, device: torch.device | str) -> ClipFeatures:
    """Of transformers' layout, with the folder's own tokenizer."""
    model, tokenizer = load_folder(folder, device)
    return ClipFeatures(model, lambda texts: tokenize(tokenizer, list(texts)), normalization)
