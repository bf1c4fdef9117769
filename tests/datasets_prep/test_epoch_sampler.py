from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep.epoch_sampler import EpochSampler, SamplerSource, epoch_quotas

ORDERS = st.builds(
    lambda rows, weights, seed: EpochSampler(
        tuple(
            SamplerSource(f"s{i}", tuple(own), share)
            for i, (own, share) in enumerate(
                zip(rows, epoch_quotas([sum(own) for own in rows], weights[: len(rows)]), strict=True)
            )
        ),
        seed,
    ),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 1.0, 1.3, 2.0]), min_size=3, max_size=3),
    st.integers(0, 5),
)


def sequence(order, first, last, size=7):
    """The prompts at these positions as (source, file, row)."""
    found = []
    for span in order.ranges(first, last, size):
        assert span.first == first + len(found)
        rows = order.locate(span)
        found += zip(rows.source_N.tolist(), rows.file_N.tolist(), rows.row_N.tolist(), strict=True)
    return found


@settings(deadline=None, max_examples=60)
@given(ORDERS, st.integers(1, 50))
def test_every_source_is_gone_through_once_before_any_prompt_comes_again(order, size):
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
def test_a_late_start_sees_the_tail(order, first, count, size):
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
    assert epoch_quotas(totals, weights) == expected


def test_a_source_with_a_small_share_comes_whole_over_the_epochs():
    order = EpochSampler((SamplerSource("a", (6, 4), 10), SamplerSource("b", (15,), 5)), 3)
    seen = Counter(item for item in sequence(order, 0, 45) if item[0] == 1)
    assert len(seen) == 15
    assert set(seen.values()) == {1}
