import math

import numpy as np
import pytest

from pipeline.evaluation.statistics import (
    Z95,
    Share,
    bootstrap_clustered,
    bootstrap_paired,
    compute_discordant_interval,
    share,
)


def test_a_hundred_of_a_hundred_means_at_least_96_3_percent():
    low, high = Share(100, 100).interval
    assert low == pytest.approx(0.963, abs=5e-4)
    assert high == 1.0


@pytest.mark.parametrize(("hits", "total"), [(0, 20), (7, 20), (50, 100), (384, 384), (1, 1)])
def test_the_ends_of_the_interval_solve_wilson_s_equation(hits, total):
    """Each end p satisfies |hits / total - p| = z sqrt(p (1 - p) / total)."""
    for end in Share(hits, total).interval:
        assert (hits / total - end) ** 2 == pytest.approx(Z95**2 * end * (1 - end) / total, abs=1e-12)
    assert Share(hits, total).interval[0] < Share(hits, total).interval[1]


def test_a_share_of_nothing_has_the_widest_interval():
    assert share([]).interval == (0.0, 1.0)
    assert math.isnan(share([]).value)


def test_shares_count_true_flags():
    assert share([True, False, True, np.True_]) == Share(3, 4)
    assert share([True, False]).value == 0.5


def test_the_bootstrap_covers_the_true_difference():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        b = rng.normal(size=80)
        interval = bootstrap_paired(b + rng.normal(0.5, 1, size=80), b, num_resamples=400)
        covered += interval.low <= 0.5 <= interval.high
    assert 88 <= covered <= 99


def test_the_bootstrap_depends_only_on_its_seed():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert bootstrap_paired(a, b) == bootstrap_paired(a, b) != bootstrap_paired(a, b, seed=1)


def test_the_bootstrap_keeps_pairs_together():
    b = np.random.default_rng(0).normal(scale=100, size=50)
    interval = bootstrap_paired(b + 1, b)
    assert (interval.difference, interval.low, interval.high) == pytest.approx((1, 1, 1))
    assert bootstrap_paired(b, b + 1).difference == pytest.approx(-1)


@pytest.mark.parametrize(("better", "worse"), [(7, 0), (0, 7), (12, 5), (40, 30)])
@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_the_exact_interval_of_pairs_is_clopper_pearson(better, worse, confidence):
    """scipy's Beta quantiles give the ends independently."""
    beta = pytest.importorskip("scipy.stats").beta
    pairs = 100
    a = [1.0] * better + [0.0] * worse + [1.0] * (pairs - better - worse)
    b = [0.0] * better + [1.0] * worse + [1.0] * (pairs - better - worse)
    low, high = compute_discordant_interval(a, b, confidence)
    tail, total = (1 - confidence) / 2, better + worse
    expected_low = beta.ppf(tail, better, worse + 1) if better else 0.0
    expected_high = beta.ppf(1 - tail, better + 1, worse) if worse else 1.0
    assert low == pytest.approx((2 * expected_low - 1) * total / pairs, abs=1e-9)
    assert high == pytest.approx((2 * expected_high - 1) * total / pairs, abs=1e-9)


def test_a_stratified_difference_compares_within_strata():
    """`a` has mostly easy samples and `b` mostly hard ones; within each stratum they are equal."""
    a = {("easy", i): 1.0 for i in range(80)} | {("hard", i): 0.0 for i in range(20)}
    b = {("easy", i): 1.0 for i in range(20)} | {("hard", i): 0.0 for i in range(80)}
    assert bootstrap_clustered(a, b).difference == pytest.approx(0.6)
    assert bootstrap_clustered(a, b, stratum=lambda key: key[0]).difference == 0.0
