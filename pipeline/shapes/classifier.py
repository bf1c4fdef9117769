"""The attribute judge: a small convolutional classifier of shape, colour, background, quality, size and position.

A quality of its own, `UNCLEAR`, is what no scene has: smeared, blended and noisy images.
"""

from itertools import pairwise

from torch import Tensor, nn

from pipeline.shapes.samples import LABELS

UNCLEAR = "unclear"
CLASSES: dict[str, tuple[str, ...]] = {**LABELS, "quality": (*LABELS["quality"], UNCLEAR)}
_WIDTHS = (16, 32, 64, 96)


class AttributeClassifier(nn.Module):
    """Images [B, 3, 64, 64] in -1..1 to logits [B, classes] for each attribute of `CLASSES`."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, *_WIDTHS)
        self.features = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(i, o, 3, stride=2, padding=1), nn.BatchNorm2d(o), nn.SiLU())
                for i, o in pairwise(channels)
            ],
            nn.Conv2d(_WIDTHS[-1], _WIDTHS[-1], 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        side = 64 // 2 ** len(_WIDTHS)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(_WIDTHS[-1] * side**2, len(values)) for name, values in CLASSES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits of each attribute."""
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}
