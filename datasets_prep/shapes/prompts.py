"""Prompts, negative prompts and evaluation pairs of the world of shapes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets_prep.shapes.caption import (
    COMMON_QUALITY_WORDS,
    full_prompt,
    sample_caption,
    sample_quality_list,
    sample_tags,
)
from datasets_prep.shapes.scene import QUALITIES, Scene, sample_scene

NEVER_NEGATIVE = ("purple", "ring")  # kept out of training's negatives, to be reported apart
QUALITY_LIST_SHARE = 0.35
BAD_PHOTO = ", ".join(COMMON_QUALITY_WORDS)  # an ordinary negative prompt for quality
DEGRADATIONS = ", ".join(QUALITIES[1:])  # one that names each degradation


@dataclass(frozen=True)
class Pair:
    """A prompt, a negative prompt, the attribute value that it names, and what the prompt asks for."""

    prompt: str
    negative_prompt: str
    attribute: str
    value: str
    asked: tuple[tuple[str, str], ...]

    @property
    def trained(self) -> bool:
        """Whether training's negatives name this attribute."""
        return self.value not in NEVER_NEGATIVE


PAIRS = (
    Pair("a photo of a shape", "red", "colour", "red", ()),
    Pair("a photo of a star", "blue", "colour", "blue", (("shape", "star"),)),
    Pair("a photo of a square on a white background", "green", "colour", "green",
         (("shape", "square"), ("background", "white"))),
    Pair("a photo of a yellow shape", "circle", "shape", "circle", (("colour", "yellow"),)),
    Pair("a photo of a red shape on a blue background", "star", "shape", "star",
         (("colour", "red"), ("background", "blue"))),
    Pair("a photo of a green cross", "white background", "background", "white",
         (("colour", "green"), ("shape", "cross"))),
    Pair("a photo of a shape", "purple", "colour", "purple", ()),
    Pair("a photo of a white shape", "ring", "shape", "ring", (("colour", "white"),)),
)  # fmt: skip

KNOWN_IN_A_ROW = 3000  # draws of held-out prompts after which none is left


def sample_prompts(count: int, seed: int) -> Iterator[str]:
    """Captions of random training scenes."""
    rng = np.random.default_rng((seed, 10))
    return (sample_caption(sample_scene(rng), rng) for _ in range(count))


def sample_negatives(count: int, seed: int) -> Iterator[str]:
    """Tag lists of random training scenes and lists of quality words, without the words of `NEVER_NEGATIVE`."""
    rng = np.random.default_rng((seed, 11))
    made = 0
    while made < count:
        quality = rng.random() < QUALITY_LIST_SHARE
        text = sample_quality_list(rng) if quality else sample_tags(sample_scene(rng), rng, most=2)
        if not any(word in text for word in NEVER_NEGATIVE):
            made += 1
            yield text


def held_out_prompts(count: int, seed: int) -> list[tuple[str, Scene]]:
    """Return distinct full prompts of held-out scenes.

    Raises:
        ValueError: where there are not so many of them.
    """
    rng = np.random.default_rng((seed, 12))
    chosen: dict[str, Scene] = {}
    known = 0  # draws in a row that gave nothing new
    while len(chosen) < count:
        scene = sample_scene(rng, held_out=True)
        text = full_prompt(scene, position=rng.random() < 0.7)
        known = known + 1 if text in chosen else 0
        chosen.setdefault(text, scene)
        if known > KNOWN_IN_A_ROW:
            raise ValueError(f"got {count}; expected at most {len(chosen)}: the world of shapes has no more prompts.")
    return list(chosen.items())
