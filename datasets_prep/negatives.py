"""The negative-prompt corpus: distinct texts with the weight to draw them by."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from datasets_prep.cleaning import collapse

SCHEMA = pa.schema([("negative_prompt", pa.string()), ("weight", pa.int64())])
COMMON_TERMS = (
    # arXiv 2412.02687, section 5.1
    "bad photo",
    "duplicate",
    "low resolution",
    "low quality",
    # the negative prompts of HPSv2's and CausVid's evaluations
    "worst quality",
    "ugly",
    "out of frame",
    "deformed",
    "blurry",
    "bad anatomy",
    "watermark",
    "distortion",
    "unclear details",
    # what else people write
    "grainy",
    "dark",
    "noise",
    "jpeg artifacts",
    "oversaturated",
    "overexposed",
    "underexposed",
    "cropped",
    "text",
    "signature",
    "logo",
    "extra limbs",
    "extra fingers",
    "mutated hands",
    "poorly drawn face",
    "disfigured",
    "asymmetrical",
    "monochrome",
    "cartoon",
)
_VOCABULARY = 2_000  # terms
_MOST_TERMS = 8  # of a combination
_FUNCTION_WORDS = {"a", "an", "the", "of", "on", "in", "at", "and", "with", "photo", "background", "shape"}


def corpus(texts: Iterable[str]) -> pa.Table:
    """Distinct texts, most frequent first (ties in alphabetical order), weighted by frequency."""
    counts = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    return pa.table({"negative_prompt": [t for t, _ in counts], "weight": [n for _, n in counts]}, schema=SCHEMA)


def build(count: int, seed: int, observed: Mapping[str, int] = MappingProxyType({})) -> pa.Table:
    """Exactly `count` distinct negative prompts: those most often observed, at most half, and combinations of terms.

    A combination is of up to eight terms, drawn without repetition by how often each was observed; the common terms are
    drawn too. No two have the same terms. An observed prompt weighs as often as it was observed, another once.
    """
    whole = sorted(observed.items(), key=lambda item: (-item[1], item[0]))[: count // 2]
    chosen = {frozenset(terms(text)): (text, weight) for text, weight in reversed(whole)}
    frequency = Counter(dict.fromkeys(COMMON_TERMS, 1))
    for text, times in observed.items():
        for term in terms(text):
            frequency[term] += times
    vocabulary = [term for term, _ in frequency.most_common(_VOCABULARY)]
    shares = np.array([frequency[term] for term in vocabulary]) ** 0.5  # the root: rare terms are seen as well
    rng = np.random.default_rng((seed, 30))
    for term in vocabulary[: count - len(chosen)]:
        chosen.setdefault(frozenset([term]), (term, 1))
    while len(chosen) < count:
        size = int(rng.integers(2, _MOST_TERMS + 1))
        drawn = rng.choice(len(vocabulary), size, replace=False, p=shares / shares.sum())
        own = [vocabulary[number] for number in drawn]
        chosen.setdefault(frozenset(own), (", ".join(own), 1))
    texts = sorted(chosen.values(), key=lambda item: (-item[1], item[0]))
    return pa.table({"negative_prompt": [t for t, _ in texts], "weight": [n for _, n in texts]}, schema=SCHEMA)


def terms(text: str) -> list[str]:
    """Return the distinct comma-separated terms of a negative prompt, in lower case."""
    own = (collapse(re.sub(r"[()\[\]{}<>]|:\s*[\d.]+", " ", term)).casefold() for term in text.split(","))
    return list(dict.fromkeys(term for term in own if term))


def content_words(text: str) -> frozenset[str]:
    """Return the words of a prompt that name something, in lower case."""
    return frozenset(re.findall(r"[^\W\d_]+", text.lower())) - _FUNCTION_WORDS


def contradicts(prompt: str, negative_prompt: str) -> bool:
    """Whether the negative names a thing that the prompt asks for."""
    return not content_words(prompt).isdisjoint(content_words(negative_prompt))
