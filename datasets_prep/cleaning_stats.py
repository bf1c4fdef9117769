"""Statistics of cleaning: how many rows each rule removed or changed, with a few samples of each."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from datasets_prep.blocklist import find_blocking_terms

SAMPLES = 8
COUNTS = ("removed", "changed", "blocked_terms")
MAX_SAMPLE_LENGTH = 200  # characters
CONTEXT_LENGTH = 60  # characters before the first change
TOKEN_EDGES = (0, 5, 10, 15, 20, 30, 40, 50, 60, 77, 120, 200)
SCORE_EDGES = tuple(np.arange(0, 10.5, 0.5).tolist())


@dataclass
class CleaningStats:
    """Counts and samples of removed and changed rows; merging in any order gives the same samples.

    Attributes:
        rows: number of rows that were read.
        removed: number of removed rows by reason.
        samples: samples of removed texts by reason, without texts that are blocked as sexual about minors.
        changed: number of changed texts by cleaning rule.
        changes: samples of changed texts by rule: before, after.
        blocked_terms: number of texts that are blocked as sexual about minors, by the terms that matched.
        blocked: samples of blocked texts, for a reviewer: the terms, the text.
        first_unreadable: the number of the first unreadable row, and the problem; empty if there is none.
        tokens: histogram of the token counts of kept rows.
        scores: histogram of the aesthetic scores of kept rows.
    """

    rows: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[str]] = field(default_factory=dict)
    changed: Counter[str] = field(default_factory=Counter)
    changes: dict[str, list[list[str]]] = field(default_factory=dict)
    blocked_terms: Counter[str] = field(default_factory=Counter)
    blocked: list[list[str]] = field(default_factory=list)
    first_unreadable: list[Any] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0] * len(TOKEN_EDGES))
    scores: list[int] = field(default_factory=lambda: [0] * len(SCORE_EDGES))

    @property
    def kept(self) -> int:
        """Number of rows that were kept."""
        return self.rows - self.removed.total()

    def count_removed(self, reason: str, texts: Sequence[str]) -> None:
        """Count removed texts under a reason."""
        if len(texts):
            self.removed[reason] += len(texts)
            self.samples[reason] = _sample_texts([*self.samples.get(reason, []), *texts])

    def count_changed(self, rule: str, pairs: Sequence[tuple[str, str]]) -> None:
        """Count texts that a rule changed; `pairs` are the texts before and after."""
        if pairs:
            self.changed[rule] += len(pairs)
            self.changes[rule] = _sample_changes([*self.changes.get(rule, []), *map(_cut_excerpts, pairs)])

    def count_blocked(self, reasons: Iterable[tuple[tuple[str, ...], str]]) -> None:
        """Count the terms for which texts were blocked as sexual about minors."""
        pairs = [(" + ".join(terms), text[:MAX_SAMPLE_LENGTH]) for terms, text in reasons]
        self.blocked_terms.update(terms for terms, _ in pairs)
        self.blocked = [[*pair] for pair in _order_distinct_by_hash([*self.blocked, *pairs])[:SAMPLES]]

    def count_unreadable(self, problems: Sequence[str], rows: Sequence[int]) -> None:
        """Count rows that could not be read."""
        self.count_removed("unreadable", [f"row {row}: {problem}" for row, problem in zip(rows, problems, strict=True)])
        if rows:
            self.first_unreadable = [rows[0], problems[0]]

    def merge(self, other: "CleaningStats") -> None:
        """Add the counts and samples of another chunk or file."""
        self.rows += other.rows
        self.removed.update(other.removed)
        self.changed.update(other.changed)
        self.blocked_terms.update(other.blocked_terms)
        for reason, texts in other.samples.items():
            self.samples[reason] = _sample_texts([*self.samples.get(reason, []), *texts])
        for rule, pairs in other.changes.items():
            self.changes[rule] = _sample_changes([*self.changes.get(rule, []), *pairs])
        self.blocked = [[*pair] for pair in _order_distinct_by_hash([*self.blocked, *other.blocked])[:SAMPLES]]
        firsts = [first for first in (self.first_unreadable, other.first_unreadable) if first]
        self.first_unreadable = min(firsts, default=[])
        self.tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=True)]
        self.scores = [a + b for a, b in zip(self.scores, other.scores, strict=True)]

    def set_distributions(self, table: pa.Table) -> None:
        """Set the distributions from the kept rows."""
        self.tokens = _compute_histogram(table["tokens"].to_numpy(), TOKEN_EDGES)
        self.scores = _compute_histogram(table["aesthetic"].drop_null().to_numpy(), SCORE_EDGES)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        counts = {name: dict(getattr(self, name)) for name in COUNTS}
        return {**vars(self), **counts, "kept": self.kept}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "CleaningStats":
        """Return the statistics of JSON values."""
        known = {name: value for name, value in values.items() if name in CleaningStats.__dataclass_fields__}
        return CleaningStats(**known | {name: Counter(known[name]) for name in COUNTS})


def _hash(text: str) -> bytes:
    return blake2b(text.encode(errors="replace"), digest_size=8).digest()


def _sample_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts with the lowest hashes, without those that would be blocked; the order is irrelevant."""
    ordered = sorted({text[:MAX_SAMPLE_LENGTH] for text in texts}, key=_hash)
    return list(islice((text for text in ordered if not find_blocking_terms(text)), SAMPLES))


def _sample_changes(pairs: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return the changes with the lowest hashes."""
    ordered = _order_distinct_by_hash(pairs)
    return list(islice(([*pair] for pair in ordered if not any(map(find_blocking_terms, pair))), SAMPLES))


def _order_distinct_by_hash(pairs: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Return distinct pairs, sorted by the hash of each second text."""
    distinct = {(first, second) for first, second in pairs}
    return sorted(distinct, key=lambda pair: (_hash(pair[1]), pair))


def _cut_excerpts(pair: Sequence[str]) -> list[str]:
    """Return the part of both texts around the first difference."""
    before, after = pair
    prefix_length = bisect_left(
        range(min(len(before), len(after))), True, key=lambda end: before[: end + 1] != after[: end + 1]
    )
    start = max(0, prefix_length - CONTEXT_LENGTH)
    return [("…" if start else "") + text[start : start + MAX_SAMPLE_LENGTH] for text in (before, after)]


def _compute_histogram(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """Return the number of values from each edge to below the next."""
    bins = np.searchsorted(np.asarray(edges), values, side="right") - 1
    counts: list[int] = np.bincount(np.clip(bins, 0, None), minlength=len(edges))[: len(edges)].tolist()
    return counts
