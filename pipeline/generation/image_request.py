"""The request of one image, and the constraints of its fields."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import Field, StringConstraints

Method = Literal["nasa", "nag", "vsf", "cfg"]
"""The attention rules, and classifier-free guidance, the baseline that fails for few-step students."""
METHODS: tuple[str, ...] = get_args(Method)
DEFAULT_SCALES = {"nag": 4.0, "vsf": 0.5, "cfg": 2.0}  # of docs/choose-a-scale.md; NASA's is the version's own
MAX_TEXT = 4000  # characters of a prompt, as in OpenAI's API
MAX_SCALE = 100.0
MAX_SEED = 2**53 - 1  # JSON's numbers are exact up to here
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Prompt = Annotated[Text, StringConstraints(min_length=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Scale = Annotated[float, Field(ge=0, le=MAX_SCALE, allow_inf_nan=False)]


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


def choose_scale(method: str, scale: float | None) -> float | None:
    """Return a request's scale, or its method's default; None is left to the version, whose evaluation chose it."""
    return DEFAULT_SCALES.get(method) if scale is None else scale


def offset_seed(seed: int, number: int) -> int:
    """Return the seed of the image `number` of a request for several; seeds begin again after the largest."""
    return (seed + number) % (MAX_SEED + 1)
