"""The request of one image."""

from dataclasses import dataclass

METHODS = ("nasa", "nag", "vsf", "cfg")
"""The attention rules, and classifier-free guidance, the baseline that fails for few-step students."""
MAX_SEED = 2**53 - 1  # JSON's numbers are exact up to here


@dataclass(frozen=True)
class ImageRequest:
    """One image. Without a negative prompt, or with a `scale` of 0, the student is sampled plain.

    `scale` is alpha of the attention rule, or the guidance scale of "cfg"; None is the student's own scale.
    """

    prompt: str
    seed: int = 0
    negative_prompt: str = ""
    scale: float | None = 0.0
    method: str = "nasa"

    @property
    def is_plain(self) -> bool:
        """Tell whether the negative prompt has no effect."""
        return not self.negative_prompt or self.scale == 0
