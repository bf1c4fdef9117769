from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep.epoch_sampler import EpochSampler, SamplerSource, compute_epoch_quotas

ORDERS = st.builds(
    lambda rows, weights, seed: EpochSampler(
        tuple(
            SamplerSource(f"s{i}", tuple(own), share)
            for i, (own, share) in enumerate(
                zip(rows, compute_epoch_quotas([sum(own) for own in rows], weights[: len(rows)]), strict=True)
            )
        ),
        seed,
    ),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 1.0, 1.3, 2.0]), min_size=3, max_size=3),
    st.integers(0, 5),
)


def sequence(order, first, last, size=7):
    """Return the prompts at these positions as (source, file, row)."""
    actual = []
    for span in order.iter_ranges(first, last, size):
        assert span.first == first + len(actual)
        rows = order.locate_rows(span)
        actual += zip(rows.source_N.tolist(), rows.file_N.tolist(), rows.row_N.tolist(), strict=True)
    return actual


@settings(deadline=None, max_examples=60)
@given(ORDERS, st.integers(1, 50))
def test_no_prompt_repeats_before_its_source_is_exhausted(order, size):
    epochs = 3
    every = sequence(order, 0, epochs * order.epoch_size, size)
    assert len(every) == epochs * order.epoch_size
    for number, source in enumerate(order.sources):
        own = [item for item in every if item[0] == number]
        whole = {(number, file, row) for file, rows in enumerate(source.rows) for row in range(rows)}
        for start in range(0, len(own), source.total):
            turn = own[start : start + source.total]
            assert len(set(turn)) == len(turn)
            assert set(turn) == whole or len(turn) < source.total
        for epoch in range(epochs):
            part = every[epoch * order.epoch_size : (epoch + 1) * order.epoch_size]
            assert sum(item[0] == number for item in part) == source.per_epoch


@settings(deadline=None, max_examples=60)
@given(ORDERS, st.integers(0, 80), st.integers(0, 80), st.integers(1, 50))
def test_a_late_start_yields_the_tail(order, first, count, size):
    assert sequence(order, first, first + count, size) == sequence(order, 0, first + count)[first:]


def test_epochs_and_seeds_differ_and_files_are_mixed():
    order = EpochSampler((SamplerSource("a", (50, 50), 100),), 0)
    epoch = sequence(order, 0, 100)
    assert epoch != sequence(order, 100, 200)
    assert epoch != sequence(EpochSampler(order.sources, 1), 0, 100)
    assert [row for _, _, row in epoch[:50]] != sorted(row for _, _, row in epoch[:50])


def test_sources_are_interleaved_in_their_proportion_throughout():
    order = EpochSampler((SamplerSource("journeydb", (1300,), 1300), SamplerSource("laion", (1000, 1000), 2000)), 0)
    which = np.array([source for source, _, _ in sequence(order, 0, 3300, 500)])
    for part in np.array_split(which, 10):
        assert 0.5 < part.mean() < 0.7  # 2000 / 3300


@pytest.mark.parametrize(
    ("totals", "weights", "expected"),
    [
        ([1300, 2000], [0, 0], [1300, 2000]),
        ([1300, 9000], [1.3, 2.0], [1300, 2000]),
        ([5000, 2000], [1.3, 2.0], [1300, 2000]),
        ([10, 20, 30], [1, 1, 0], [10, 10, 30]),
        ([1, 1000], [1, 0.0001], [1, 1]),
    ],
)
def test_shares(totals, weights, expected):
    assert compute_epoch_quotas(totals, weights) == expected


def test_a_source_with_a_small_quota_is_exhausted_over_several_epochs():
    order = EpochSampler((SamplerSource("a", (6, 4), 10), SamplerSource("b", (15,), 5)), 3)
    seen = Counter(item for item in sequence(order, 0, 45) if item[0] == 1)
    assert len(seen) == 15
    assert set(seen.values()) == {1}
