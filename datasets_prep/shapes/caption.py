"""Captions of the Shapes toy dataset: sentences that mention some attributes, and tag lists.

Like captions on the web, they say what is in the image, never what is not. The caption of a degraded image names its
degradation, uses a common quality word, or mentions neither. So "a photo" alone is sometimes a bad one, and an ordinary
negative prompt ("low quality") has something to remove.
"""

import re

import numpy as np

from datasets_prep.shapes.scene import Scene, pick

QUALITY_WORDS = {
    "blurry": ("blurry", "out of focus"),
    "grainy": ("grainy", "noisy"),
    "watermark": ("watermarked", "watermark"),
    "duplicate": ("duplicate", "duplicated"),
    "out of frame": ("out of frame", "cropped"),
    "deformed": ("deformed", "distorted"),
}
COMMON_QUALITY_WORDS = ("low quality", "bad", "worst quality", "ugly", "low resolution")
TAG_SHARE = 0.2


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Sample a caption of the scene: usually a sentence, sometimes tags; attributes are left out at random."""
    if rng.random() < TAG_SHARE:
        return sample_tags(scene, rng)
    words = [_sample_quality_word(scene, rng), "photo of a"]
    words.append(scene.size if rng.random() < 0.6 else "")
    words.append(scene.colour if rng.random() < 0.8 else "")
    words.append(scene.shape if rng.random() < 0.82 else "shape")
    words.append(scene.position if rng.random() < 0.4 else "")
    words.append(f"on a {scene.background} background" if rng.random() < 0.8 else "")
    return _correct_articles("a " + " ".join(word for word in words if word))


def sample_tags(scene: Scene, rng: np.random.Generator, *, max_tags: int = 3) -> str:
    """Sample a comma-separated list of at most `max_tags` attributes, as negative prompts are written."""
    tags = [scene.shape, scene.colour, f"{scene.background} background", scene.size]
    if scene.quality != "clean":
        tags += [_sample_quality_word(scene, rng, unmentioned=0.0)] * 2
    if rng.random() < 0.3:
        tags[:2] = [f"{scene.colour} {scene.shape}"]
    count = int(rng.integers(1, max_tags + 1))
    chosen = rng.permutation(tags)[:count].tolist()
    return ", ".join(dict.fromkeys(chosen))


def sample_quality_list(rng: np.random.Generator, *, max_tags: int = 5) -> str:
    """Sample a list of words for bad images, such as "low quality, blurry, ugly"."""
    words = [*(word for words in QUALITY_WORDS.values() for word in words), *COMMON_QUALITY_WORDS]
    chosen = rng.permutation(len(words))[: int(rng.integers(1, max_tags + 1))]
    return ", ".join(words[index] for index in chosen)


def build_full_prompt(scene: Scene, *, position: bool = True) -> str:
    """Return the prompt that names shape, colour, background and size, for held-out evaluation."""
    suffix = f" {scene.position}" if position else ""
    sentence = f"a photo of a {scene.size} {scene.colour} {scene.shape}{suffix} on a {scene.background} background"
    return _correct_articles(sentence)


def _correct_articles(sentence: str) -> str:
    return re.sub(r"\ba (?=[aeou])", "an ", sentence)


def _sample_quality_word(scene: Scene, rng: np.random.Generator, unmentioned: float = 0.3) -> str:
    if scene.quality == "clean":
        return ""
    draw = rng.random()
    if draw < unmentioned:
        return ""
    words = QUALITY_WORDS[scene.quality] if draw < 0.75 else COMMON_QUALITY_WORDS
    return pick(words, rng)
