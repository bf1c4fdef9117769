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

from datasets_prep.terms import evidence

SAMPLES = 8
COUNTS = ("removed", "changed", "blocked_terms")
SHOWN = 200  # characters of a sample
BEFORE = 60  # of them before what a rule changed
TOKEN_EDGES = (0, 5, 10, 15, 20, 30, 40, 50, 60, 77, 120, 200)
SCORE_EDGES = tuple(np.arange(0, 10.5, 0.5).tolist())


@dataclass
class CleaningStats:
    """Counts and samples of removed and changed rows; the samples do not depend on the order of addition.

    Attributes:
        removed, samples: rows and texts by the reason for which they were removed.
        changed, changes: texts by the rule of cleaning that changed them, and samples: before, after.
        blocked_terms, blocked: of the block on sexual terms about minors, how often each pair of terms was the reason,
            and samples: the terms, the text. They are for a reviewer alone: no other sample would be blocked.
        first_unreadable: the first row of a file that could not be read, and why.
        tokens, scores: the distributions of what was kept.
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

    def remove(self, reason: str, texts: Sequence[str]) -> None:
        """Count removed texts under a reason."""
        if len(texts):
            self.removed[reason] += len(texts)
            self.samples[reason] = _fewest_texts([*self.samples.get(reason, []), *texts])

    def change(self, rule: str, pairs: Sequence[tuple[str, str]]) -> None:
        """Count texts that a rule changed, from what they were before to what they were after."""
        if pairs:
            self.changed[rule] += len(pairs)
            self.changes[rule] = _fewest_changes([*self.changes.get(rule, []), *map(_excerpts, pairs)])

    def block(self, reasons: Iterable[tuple[tuple[str, ...], str]]) -> None:
        """Note the terms for which texts were blocked as sexual about minors."""
        pairs = [(" + ".join(found), text[:SHOWN]) for found, text in reasons]
        self.blocked_terms.update(terms for terms, _ in pairs)
        self.blocked = [[*pair] for pair in _ordered([*self.blocked, *pairs])[:SAMPLES]]

    def refuse(self, problems: Sequence[str], rows: Sequence[int]) -> None:
        """Count rows that could not be read."""
        self.remove("unreadable", [f"row {row}: {problem}" for row, problem in zip(rows, problems, strict=True)])
        if rows:
            self.first_unreadable = [rows[0], problems[0]]

    def add(self, other: "CleaningStats") -> None:
        """Add another's counts and samples."""
        self.rows += other.rows
        self.removed.update(other.removed)
        self.changed.update(other.changed)
        self.blocked_terms.update(other.blocked_terms)
        for reason, texts in other.samples.items():
            self.samples[reason] = _fewest_texts([*self.samples.get(reason, []), *texts])
        for rule, pairs in other.changes.items():
            self.changes[rule] = _fewest_changes([*self.changes.get(rule, []), *pairs])
        self.blocked = [[*pair] for pair in _ordered([*self.blocked, *other.blocked])[:SAMPLES]]
        firsts = [each for each in (self.first_unreadable, other.first_unreadable) if each]
        self.first_unreadable = min(firsts, default=[])
        self.tokens = [a + b for a, b in zip(self.tokens, other.tokens, strict=True)]
        self.scores = [a + b for a, b in zip(self.scores, other.scores, strict=True)]

    def measure(self, table: pa.Table) -> None:
        """Record the distributions of what was kept."""
        self.tokens = _histogram(table["tokens"].to_numpy(), TOKEN_EDGES)
        self.scores = _histogram(table["aesthetic"].drop_null().to_numpy(), SCORE_EDGES)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        counts = {name: dict(getattr(self, name)) for name in COUNTS}
        return {**vars(self), **counts, "kept": self.kept}

    @staticmethod
    def of(record: dict[str, Any]) -> "CleaningStats":
        """Return the statistics of JSON values."""
        own = {name: value for name, value in record.items() if name in CleaningStats.__dataclass_fields__}
        return CleaningStats(**own | {name: Counter(own[name]) for name in COUNTS})


def _hash(text: str) -> bytes:
    return blake2b(text.encode(errors="replace"), digest_size=8).digest()


def _fewest_texts(texts: Sequence[str]) -> list[str]:
    """Return the texts with the lowest hashes, in any order the same, without those that would be blocked."""
    ordered = sorted({text[:SHOWN] for text in texts}, key=_hash)
    return list(islice((text for text in ordered if not evidence(text)), SAMPLES))


def _fewest_changes(pairs: Iterable[Sequence[str]]) -> list[list[str]]:
    """Return the changes with the lowest hashes."""
    ordered = _ordered(pairs)
    return list(islice(([*pair] for pair in ordered if not any(map(evidence, pair))), SAMPLES))


def _ordered(pairs: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Distinct pairs, by the hash of the second of each."""
    distinct = {(first, second) for first, second in pairs}
    return sorted(distinct, key=lambda pair: (_hash(pair[1]), pair))


def _excerpts(pair: Sequence[str]) -> list[str]:
    """Return the part of both texts around the first difference."""
    before, after = pair
    same = bisect_left(range(min(len(before), len(after))), True, key=lambda end: before[: end + 1] != after[: end + 1])
    start = max(0, same - BEFORE)
    return [("…" if start else "") + text[start : start + SHOWN] for text in (before, after)]


def _histogram(values: np.ndarray, edges: Sequence[float]) -> list[int]:
    """Return the number of values from each edge to below the next."""
    places = np.searchsorted(np.asarray(edges), values, side="right") - 1
    counts: list[int] = np.bincount(np.clip(places, 0, None), minlength=len(edges))[: len(edges)].tolist()
    return counts
