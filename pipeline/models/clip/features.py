"""Features of images and texts from a CLIP: OpenAI's, LAION's or HPSv2's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from nasa import prompt_embeds
from pipeline.errors import invalid
from pipeline.hashing import hash_file
from pipeline.models.clip import open_clip
from pipeline.models.clip.normalization import Normalization
from pipeline.models.clip.tokenizer import tokenize
from pipeline.models.weight_files import find_weights_file, read_tensors, require_layout

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # transformers' layout
VOCABULARIES = ("tokenizer.json", "vocab.json")
TEXT_BATCH = 64


@dataclass(frozen=True)
class ClipFeatures:
    """Features of length 1 in float32, on the model's device; a text's are computed once and cached."""

    model: CLIPModel
    tokenize: Callable[[Sequence[str]], Tensor]
    normalization: Normalization
    cache: dict[str, Tensor] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """Side of the square image that the model takes, in pixels."""
        side: int = self.model.config.vision_config.image_size
        return side

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return features [B, D] of normalized pixels [B, 3, image_size, image_size]."""
        pooled = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return features [B, D]."""
        new = [text for text in dict.fromkeys(texts) if text not in self.cache]
        for start in range(0, len(new), TEXT_BATCH):
            batch = new[start : start + TEXT_BATCH]
            tokens = trim_padding(self.tokenize(batch))
            pooled = self.model.text_model(input_ids=tokens.to(self.model.device)).pooler_output
            self.cache.update(zip(batch, F.normalize(self.model.text_projection(pooled), dim=-1), strict=True))
        return torch.stack([self.cache[text] for text in texts])


def trim_padding(tokens_BL: Tensor) -> Tensor:
    """Remove the trailing columns that are padding in every row.

    Attention is causal, so the end token sees none of them. A caption fills about a quarter of the 77 positions.
    """
    differs_L = (tokens_BL != tokens_BL[:, -1:]).any(0)
    return tokens_BL[:, : int(differs_L.nonzero().max()) + 2]


def check_clip(path_or_id: str, architecture: str, field: str, names: Sequence[str] = open_clip.NAMES) -> CLIPConfig:
    """Check names and shapes of a CLIP's weights and return its configuration; compute nothing.

    Raises:
        UserError: naming `field`, if `path_or_id` holds no CLIP.
    """
    if architecture not in open_clip.ARCHITECTURES:
        raise invalid(
            f"{field.rpartition('.')[0]}.architecture",
            architecture,
            f"one of {', '.join(open_clip.ARCHITECTURES)}",
        )
    file = find_clip_file(path_or_id, field, names)
    if is_transformers_layout(file):
        return _check_transformers_clip(file, field)
    return open_clip.check(file, architecture, field)


def load_clip_features(
    path_or_id: str, architecture: str, field: str, device: torch.device | str, names: Sequence[str] = open_clip.NAMES
) -> tuple[ClipFeatures, dict[str, JsonValue]]:
    """Load a CLIP of either layout; return its features and what to record of its weights."""
    file = find_clip_file(path_or_id, field, names)
    normalization = Normalization.read(file.parent, field)
    if is_transformers_layout(file):
        model, tokenizer = load_transformers_clip(file.parent, device)
        features = ClipFeatures(model, lambda texts: prompt_embeds.tokenize(tokenizer, list(texts)), normalization)
        architecture = CONFIG
    else:
        features = ClipFeatures(open_clip.load(file, architecture, field, device), tokenize, normalization)
    record: dict[str, JsonValue] = {"weights": path_or_id, "sha256": hash_file(file), "architecture": architecture}
    if normalization != Normalization():
        record |= {"image_mean": list(normalization.mean), "image_std": list(normalization.std)}
    return features, record


def find_clip_file(path_or_id: str, field: str, names: Sequence[str]) -> Path:
    """Return a checkpoint in open_clip's layout, or the weights beside the config.json of transformers' layout."""
    return find_weights_file(path_or_id, field, (*names, WEIGHTS))


def is_transformers_layout(file: Path) -> bool:
    """Tell whether the file lies in a folder of transformers' layout."""
    return file.name == WEIGHTS and (file.parent / CONFIG).is_file()


def _check_transformers_clip(file: Path, field: str) -> CLIPConfig:
    config = json.loads((file.parent / CONFIG).read_text())
    if config.get("model_type") != "clip":
        raise invalid(field, str(file.parent), f"a model of type 'clip', not {config.get('model_type')!r}")
    if not any((file.parent / name).is_file() for name in VOCABULARIES):
        raise invalid(field, str(file.parent), f"a tokenizer ({' or '.join(VOCABULARIES)}) beside the weights")
    parsed = CLIPConfig(**config)
    with torch.device("meta"):
        expected = CLIPModel(parsed).state_dict()
    tensors = {name: value for name, value in read_tensors(file, field).items() if not name.endswith("position_ids")}
    require_layout(tensors, expected, file, field)
    return parsed


def load_transformers_clip(folder: Path, device: torch.device | str = "cpu") -> tuple[CLIPModel, CLIPTokenizer]:
    """Load a CLIP in transformers' layout, frozen, float32, with a tokenizer that pads to its text length."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    longest = model.config.text_config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, longest)  # unlimited if the folder does not set it
    return model.requires_grad_(False).eval().to(device), tokenizer
