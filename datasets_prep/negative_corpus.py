"""The negative-prompt corpus: distinct texts with their sampling weights."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from datasets_prep.cleaning import normalise_term

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
    # other terms that people write
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
_MAX_TERMS = 8  # most terms in a combination
_FUNCTION_WORDS = {"a", "an", "the", "of", "on", "in", "at", "and", "with", "photo", "background", "shape"}


def build_weighted_corpus(texts: Iterable[str]) -> pa.Table:
    """Return distinct texts, most frequent first (ties in alphabetical order), weighted by frequency."""
    counts = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    return pa.table({"negative_prompt": [t for t, _ in counts], "weight": [n for _, n in counts]}, schema=SCHEMA)


def build_corpus(count: int, seed: int, observed: Mapping[str, int] = MappingProxyType({})) -> pa.Table:
    """Return exactly `count` distinct negative prompts: the most frequently observed and combinations of terms.

    At most half are observed prompts, weighted by their frequency. A combination has weight 1 and up to eight terms,
    sampled without replacement by how often each was observed; the common terms are included. No two negative prompts
    have the same set of terms.
    """
    frequent = sorted(observed.items(), key=lambda item: (-item[1], item[0]))[: count // 2]
    chosen = {frozenset(split_terms(text)): (text, weight) for text, weight in reversed(frequent)}
    frequency = Counter(dict.fromkeys(COMMON_TERMS, 1))
    for text, times in observed.items():
        for term in split_terms(text):
            frequency[term] += times
    vocabulary = [term for term, _ in frequency.most_common(_VOCABULARY)]
    shares = (
        np.array([frequency[term] for term in vocabulary]) ** 0.5
    )  # the root, so that rare terms are sampled as well
    rng = np.random.default_rng((seed, 30))
    for term in vocabulary[: count - len(chosen)]:
        chosen.setdefault(frozenset([term]), (term, 1))
    while len(chosen) < count:
        size = int(rng.integers(2, _MAX_TERMS + 1))
        drawn = rng.choice(len(vocabulary), size, replace=False, p=shares / shares.sum())
        combination = [vocabulary[number] for number in drawn]
        chosen.setdefault(frozenset(combination), (", ".join(combination), 1))
    texts = sorted(chosen.values(), key=lambda item: (-item[1], item[0]))
    return pa.table({"negative_prompt": [t for t, _ in texts], "weight": [n for _, n in texts]}, schema=SCHEMA)


def split_terms(text: str) -> list[str]:
    """Return the distinct comma-separated terms of a negative prompt, in lower case."""
    parts = (normalise_term(re.sub(r"[()\[\]{}<>]|:\s*[\d.]+", " ", term)).casefold() for term in text.split(","))
    return list(dict.fromkeys(term for term in parts if term))


def extract_content_words(text: str) -> frozenset[str]:
    """Return the words of a prompt that name something, in lower case."""
    return frozenset(re.findall(r"[^\W\d_]+", text.lower())) - _FUNCTION_WORDS


def contradicts(prompt: str, negative_prompt: str) -> bool:
    """Tell whether the negative prompt names a thing that the prompt asks for."""
    return not extract_content_words(prompt).isdisjoint(extract_content_words(negative_prompt))
