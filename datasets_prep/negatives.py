"""The negative-prompt corpus: distinct texts with the weight to draw them by."""

import re
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

SCHEMA = pa.schema([("negative_prompt", pa.string()), ("weight", pa.int64())])
COMMON_TERMS = (
    "bad photo",
    "duplicate",
    "low resolution",
    "low quality",
    "worst quality",
    "ugly",
    "blurry",
    "grainy",
    "dark",
    "out of frame",
    "deformed",
    "watermark",
)
_FUNCTION_WORDS = {"a", "an", "the", "of", "on", "in", "at", "and", "with", "photo", "background", "shape"}


def corpus(texts: Iterable[str]) -> pa.Table:
    """Distinct texts, most frequent first (ties in alphabetical order), weighted by frequency."""
    counts = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    return pa.table({"negative_prompt": [t for t, _ in counts], "weight": [n for _, n in counts]}, schema=SCHEMA)


def content_words(text: str) -> frozenset[str]:
    """The words of a prompt that name something, in lower case."""
    return frozenset(re.findall(r"[^\W\d_]+", text.lower())) - _FUNCTION_WORDS


def contradicts(prompt: str, negative_prompt: str) -> bool:
    """Whether the negative names a thing that the prompt asks for."""
    return not content_words(prompt).isdisjoint(content_words(negative_prompt))
