"""The judge of the Shapes toy dataset: an attribute classifier."""

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.shapes import WEIGHTS
from pipeline.shapes.classifier import CLASSES, AttributeClassifier


@dataclass(frozen=True)
class AttributeJudge:
    """Predicts the attributes that an image of the Shapes toy dataset shows."""

    model: AttributeClassifier

    @staticmethod
    def load() -> "AttributeJudge":
        """Load the bundled classifier."""
        model = AttributeClassifier()
        model.load_state_dict(load_file(WEIGHTS / "judge.safetensors"))
        return AttributeJudge(model.requires_grad_(False).eval())

    @torch.no_grad()
    def classify_attributes(self, images: Tensor) -> list[dict[str, str]]:
        """Return the most likely value of every attribute of each image [B, 3, 64, 64] in -1..1."""
        indices = {name: logits.argmax(-1).tolist() for name, logits in self.model(images.clamp(-1, 1)).items()}
        return [{name: CLASSES[name][indices[name][row]] for name in CLASSES} for row in range(len(images))]
