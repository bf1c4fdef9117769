"""Prompts, negative prompts and evaluation pairs of the Shapes toy dataset."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets_prep.shapes.caption import (
    COMMON_QUALITY_WORDS,
    build_full_prompt,
    sample_caption,
    sample_quality_list,
    sample_tags,
)
from datasets_prep.shapes.scene import QUALITIES, Scene, sample_scene

NEVER_NEGATIVE = ("purple", "ring")  # never in training's negatives; reported separately
QUALITY_LIST_SHARE = 0.35
BAD_PHOTO = ", ".join(COMMON_QUALITY_WORDS)  # a common negative prompt for quality
DEGRADATIONS = ", ".join(QUALITIES[1:])  # names each degradation


@dataclass(frozen=True)
class ExclusionPair:
    """A prompt, its attributes (`prompted`), and a negative prompt that names the `value` of an `attribute`."""

    prompt: str
    negative_prompt: str
    attribute: str
    value: str
    prompted: tuple[tuple[str, str], ...]

    @property
    def trained(self) -> bool:
        """Tell whether training's negatives name this value."""
        return self.value not in NEVER_NEGATIVE


PAIRS = (
    ExclusionPair("a photo of a shape", "red", "colour", "red", ()),
    ExclusionPair("a photo of a star", "blue", "colour", "blue", (("shape", "star"),)),
    ExclusionPair("a photo of a square on a white background", "green", "colour", "green",
         (("shape", "square"), ("background", "white"))),
    ExclusionPair("a photo of a yellow shape", "circle", "shape", "circle", (("colour", "yellow"),)),
    ExclusionPair("a photo of a red shape on a blue background", "star", "shape", "star",
         (("colour", "red"), ("background", "blue"))),
    ExclusionPair("a photo of a green cross", "white background", "background", "white",
         (("colour", "green"), ("shape", "cross"))),
    ExclusionPair("a photo of a shape", "purple", "colour", "purple", ()),
    ExclusionPair("a photo of a white shape", "ring", "shape", "ring", (("colour", "white"),)),
)  # fmt: skip

MAX_REPEATS = 3000  # consecutive repeats after which all held-out prompts are assumed found


def sample_prompts(count: int, seed: int) -> Iterator[str]:
    """Return captions of random training scenes."""
    rng = np.random.default_rng((seed, 10))
    return (sample_caption(sample_scene(rng), rng) for _ in range(count))


def sample_negatives(count: int, seed: int) -> Iterator[str]:
    """Yield tag lists of training scenes and lists of quality words, without the words of `NEVER_NEGATIVE`."""
    rng = np.random.default_rng((seed, 11))
    sampled = 0
    while sampled < count:
        quality = rng.random() < QUALITY_LIST_SHARE
        text = sample_quality_list(rng) if quality else sample_tags(sample_scene(rng), rng, max_tags=2)
        if not any(word in text for word in NEVER_NEGATIVE):
            sampled += 1
            yield text


def sample_held_out_prompts(count: int, seed: int) -> list[tuple[str, Scene]]:
    """Return distinct full prompts of held-out scenes.

    Raises:
        ValueError: if there are fewer.
    """
    rng = np.random.default_rng((seed, 12))
    chosen: dict[str, Scene] = {}
    repeats = 0  # consecutive samples that are known
    while len(chosen) < count:
        scene = sample_scene(rng, held_out=True)
        text = build_full_prompt(scene, position=rng.random() < 0.7)
        repeats = repeats + 1 if text in chosen else 0
        chosen.setdefault(text, scene)
        if repeats > MAX_REPEATS:
            raise ValueError(f"got {count}; expected at most {len(chosen)}, the number of held-out prompts.")
    return list(chosen.items())
