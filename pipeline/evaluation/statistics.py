"""Estimates with intervals: shares, means, and differences of two systems on the same prompts and seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from typing import Any

import numpy as np
from pydantic import computed_field
from pydantic.dataclasses import dataclass

from pipeline.strict_model import StrictModel

Z95 = 1.959963984540054
NUM_RESAMPLES = 2000  # default number, and the number computed at once
MIN_PER_STRATUM = 5  # fewest values of either side


class Estimate(StrictModel):
    """A mean over images with its 95 % interval."""

    value: float
    low: float
    high: float
    images: int


class Difference(StrictModel):
    """A difference of two means with its interval. `count` is the number of values on the side that has fewer."""

    difference: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Share:
    """The share `hits` / `total` in 0..1, with Wilson's 95 % interval."""

    hits: int
    total: int

    @computed_field  # type: ignore[prop-decorator]  # mypy does not support decorated properties
    @property
    def value(self) -> float:
        """The share, or NaN if `total` is 0."""
        return self.hits / self.total if self.total else math.nan

    @computed_field  # type: ignore[prop-decorator]
    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.interval[0]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.interval[1]

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's score interval; 100 of 100 gives (0.963, 1)."""
        if not self.total:
            return 0.0, 1.0
        n, p, z = self.total, self.hits / self.total, Z95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def share(flags: Sequence[bool]) -> Share:
    """Count true flags."""
    return Share(sum(bool(flag) for flag in flags), len(flags))


def bootstrap_paired(
    a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95, num_resamples: int | None = None, seed: int = 0
) -> Difference:
    """Return the mean of a - b over pairs with its percentile bootstrap interval, (1 - confidence) / 2 on each side."""
    return bootstrap_clustered(
        dict(enumerate(a)), dict(enumerate(b)), confidence=confidence, num_resamples=num_resamples, seed=seed
    )


def bootstrap_clustered(
    a: Mapping[Any, float],
    b: Mapping[Any, float],
    *,
    confidence: float = 0.95,
    num_resamples: int | None = None,
    seed: int = 0,
    stratum: Callable[[Any], Any] = lambda key: None,
) -> Difference:
    """Return mean(a) - mean(b) with its percentile bootstrap interval, (1 - confidence) / 2 on each side.

    With a `stratum` of each key, the difference is taken within strata and weighted as Mantel and Haenszel do, by
    n_a n_b / (n_a + n_b). Strata with fewer than `MIN_PER_STRATUM` values on either side are left out; the difference
    is NaN if none is left.

    The bootstrap resamples the keys of either side, each with the values that it has. Keys that both sides have are
    pairs, so that an image that is hard for both counts once; if all keys are shared, this is the paired bootstrap.
    By default there are 2,000 resamples, or more if fewer than 20 would lie beyond each end.
    """
    rng = np.random.default_rng(seed)
    num_resamples = num_resamples or max(NUM_RESAMPLES, math.ceil(40 / (1 - confidence)))
    groups: dict[Any, list[Any]] = {}
    for key in sorted(a.keys() | b.keys()):
        groups.setdefault(stratum(key), []).append(key)
    strata = [_Stratum.from_keys(keys, a, b) for keys in groups.values()]
    if len(strata) > 1:
        strata = [part for part in strata if part.fewest >= MIN_PER_STRATUM]
    weight = sum(part.weight for part in strata)
    if not weight:
        return Difference(difference=math.nan, low=math.nan, high=math.nan, count=0)
    resampled = np.concatenate(
        [
            sum(part.weight * part.resample(rng, min(NUM_RESAMPLES, num_resamples - first)) for part in strata) / weight
            for first in range(0, num_resamples, NUM_RESAMPLES)
        ]
    )
    low, high = np.nanpercentile(resampled, [50 - 50 * confidence, 50 + 50 * confidence])
    difference = sum(part.weight * part.difference for part in strata) / weight
    fewest = sum(part.present.sum(axis=1) for part in strata).min()
    return Difference(difference=float(difference), low=float(low), high=float(high), count=int(fewest))


@plain_dataclass(frozen=True)
class _Stratum:
    """The keys of a stratum: each side's values, and whether it has them; [2, N]."""

    values: np.ndarray
    present: np.ndarray

    @staticmethod
    def from_keys(keys: Sequence[Any], a: Mapping[Any, float], b: Mapping[Any, float]) -> "_Stratum":
        return _Stratum(
            np.array([[side.get(key, 0.0) for key in keys] for side in (a, b)], dtype=np.float64),
            np.array([[key in side for key in keys] for side in (a, b)], dtype=np.float64),
        )

    @property
    def fewest(self) -> float:
        return float(self.present.sum(axis=1).min())

    @property
    def weight(self) -> float:
        a, b = self.present.sum(axis=1)
        return float(a * b / (a + b))

    @property
    def difference(self) -> float:
        a, b = self.values.sum(axis=1) / self.present.sum(axis=1)
        return float(a - b)

    def resample(self, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
        """Return the difference in each resample of the keys; NaN in one that lacks a side."""
        count = self.values.shape[1]
        keys = rng.integers(0, count, (num_resamples, count))
        with np.errstate(invalid="ignore"):
            a, b = (
                values[keys].sum(axis=1) / present[keys].sum(axis=1)
                for values, present in zip(self.values, self.present, strict=True)
            )
        difference: np.ndarray = a - b
        return difference


def compute_discordant_interval(a: Sequence[float], b: Sequence[float], confidence: float) -> tuple[float, float]:
    """Return the interval of mean(a) - mean(b) for pairs of zeros and ones, by the exact sign test.

    It is Clopper and Pearson's interval of the share of a among the pairs that differ (McNemar's exact test); their
    number is taken as given. If few pairs differ, a bootstrap interval is too narrow.
    """
    better = sum(one > other for one, other in zip(a, b, strict=True))
    worse = sum(one < other for one, other in zip(a, b, strict=True))
    if not better + worse:
        return 0.0, 0.0
    tail = (1 - confidence) / 2
    differing = better + worse
    low, high = (
        _compute_clopper_pearson_low(better, differing, tail),
        1 - _compute_clopper_pearson_low(worse, differing, tail),
    )
    return (2 * low - 1) * differing / len(a), (2 * high - 1) * differing / len(a)


def _compute_clopper_pearson_low(hits: int, total: int, tail: float) -> float:
    """Return Clopper and Pearson's lower end: the share at which `hits` or more have the probability `tail`."""
    counts = np.arange(hits, total + 1)
    log_binomials = np.array([math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in counts])
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        chance = (
            np.exp(log_binomials + counts * math.log(share) + (total - counts) * math.log1p(-share)).sum()
            if hits
            else 1.0
        )
        low, high = (share, high) if chance < tail else (low, share)
    return low if hits else 0.0


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean with its 95 % interval (Wilson's for zeros and ones, else 1.96 standard errors) and the count."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return Estimate(value=math.nan, low=math.nan, high=math.nan, images=0)
    if np.isin(numbers, (0.0, 1.0)).all():
        hits = share(numbers.astype(bool).tolist())
        return Estimate(value=hits.value, low=hits.low, high=hits.high, images=hits.total)
    value, half = float(numbers.mean()), Z95 * float(numbers.std(ddof=1)) / math.sqrt(len(numbers))
    return Estimate(value=value, low=value - half, high=value + half, images=len(numbers))
