"""Intervals for shares and for differences between two systems on the same prompts and seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Z95 = 1.959963984540054
DRAWS = 2000  # of a bootstrap, and at once


@dataclass(frozen=True)
class Share:
    """How many of how many, with Wilson's 95 % interval; all in 0..1."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        return self.hits / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval; 100 of 100 gives (0.963, 1)."""
        if not self.total:
            return 0.0, 1.0
        n, p, z = self.total, self.hits / self.total, Z95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_dict(self) -> dict[str, float]:
        low, high = self.interval
        return {"hits": self.hits, "total": self.total, "value": self.value, "low": low, "high": high}


def share(flags: Sequence[bool]) -> Share:
    return Share(sum(bool(flag) for flag in flags), len(flags))


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, draws: int | None = None, seed: int = 0
) -> dict[str, float]:
    """Return the mean of a - b over pairs with its percentile bootstrap interval, (1 - confidence) / 2 on each side."""
    return clustered_bootstrap(dict(enumerate(a)), dict(enumerate(b)), confidence=confidence, draws=draws, seed=seed)


def clustered_bootstrap(
    a: Mapping[Any, float],
    b: Mapping[Any, float],
    *,
    confidence: float = 0.95,
    draws: int | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return mean(a) - mean(b) with its percentile bootstrap interval, (1 - confidence) / 2 on each side.

    What is drawn again are the keys of either, each with the values that it has: keys that both have are pairs, so
    that what makes an image hard for both counts once. Where all keys are shared this is the paired bootstrap. There
    are 2,000 `draws`, or more where the confidence is so high that fewer than 20 would lie beyond each end.
    """
    keys = sorted(a.keys() | b.keys())
    values = [np.array([each.get(key, 0.0) for key in keys], dtype=np.float64) for each in (a, b)]
    present = [np.array([key in each for key in keys], dtype=np.float64) for each in (a, b)]
    rng = np.random.default_rng(seed)
    draws = draws or max(DRAWS, math.ceil(40 / (1 - confidence)))
    found = []
    for first in range(0, draws, DRAWS):
        drawn = rng.integers(0, len(keys), (min(DRAWS, draws - first), len(keys)))
        with np.errstate(invalid="ignore"):  # a draw without any of one side's
            means = [
                own[drawn].sum(axis=1) / there[drawn].sum(axis=1) for own, there in zip(values, present, strict=True)
            ]
        found.append(means[0] - means[1])
    low, high = np.nanpercentile(np.concatenate(found), [50 - 50 * confidence, 50 + 50 * confidence])
    difference = values[0].sum() / present[0].sum() - values[1].sum() / present[1].sum()
    return {"difference": float(difference), "low": float(low), "high": float(high)}


def mean(values: Sequence[float]) -> dict[str, float]:
    """The mean with its 95 % interval, and of how many: Wilson's where all are 0 or 1, else 1.96 standard errors."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return {"value": math.nan, "low": math.nan, "high": math.nan, "images": 0}
    if np.isin(numbers, (0.0, 1.0)).all():
        of = share(numbers.astype(bool).tolist())
        return {"value": of.value, "low": of.interval[0], "high": of.interval[1], "images": of.total}
    value, half = float(numbers.mean()), Z95 * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return {"value": value, "low": value - half, "high": value + half, "images": len(numbers)}
