from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_prep.epoch_sampler import EpochSampler, SamplerSource, compute_epoch_quotas

SAMPLERS = st.builds(
    lambda rows, weights, seed: EpochSampler(
        tuple(
            SamplerSource(f"s{i}", tuple(file_rows), quota)
            for i, (file_rows, quota) in enumerate(
                zip(
                    rows,
                    compute_epoch_quotas([sum(file_rows) for file_rows in rows], weights[: len(rows)]),
                    strict=True,
                )
            )
        ),
        seed,
    ),
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 1.0, 1.3, 2.0]), min_size=3, max_size=3),
    st.integers(0, 5),
)


def read_positions(sampler, first, last, size=7):
    """Return the prompts at these positions as (source, file, row)."""
    actual = []
    for span in sampler.iter_ranges(first, last, size):
        assert span.first == first + len(actual)
        rows = sampler.locate_rows(span)
        actual += zip(rows.source_N.tolist(), rows.file_N.tolist(), rows.row_N.tolist(), strict=True)
    return actual


@settings(deadline=None, max_examples=60)
@given(SAMPLERS, st.integers(1, 50))
def test_no_prompt_repeats_before_its_source_is_exhausted(sampler, size):
    epochs = 3
    prompts = read_positions(sampler, 0, epochs * sampler.epoch_size, size)
    assert len(prompts) == epochs * sampler.epoch_size
    for number, source in enumerate(sampler.sources):
        source_prompts = [item for item in prompts if item[0] == number]
        all_rows = {(number, file, row) for file, rows in enumerate(source.rows) for row in range(rows)}
        for start in range(0, len(source_prompts), source.total):
            one_pass = source_prompts[start : start + source.total]
            assert len(set(one_pass)) == len(one_pass)
            assert set(one_pass) == all_rows or len(one_pass) < source.total
        for epoch in range(epochs):
            part = prompts[epoch * sampler.epoch_size : (epoch + 1) * sampler.epoch_size]
            assert sum(item[0] == number for item in part) == source.per_epoch


@settings(deadline=None, max_examples=60)
@given(SAMPLERS, st.integers(0, 80), st.integers(0, 80), st.integers(1, 50))
def test_a_late_start_yields_the_tail(sampler, first, count, size):
    assert read_positions(sampler, first, first + count, size) == read_positions(sampler, 0, first + count)[first:]


def test_epochs_and_seeds_differ_and_files_are_mixed():
    sampler = EpochSampler((SamplerSource("a", (50, 50), 100),), 0)
    epoch = read_positions(sampler, 0, 100)
    assert epoch != read_positions(sampler, 100, 200)
    assert epoch != read_positions(EpochSampler(sampler.sources, 1), 0, 100)
    assert [row for _, _, row in epoch[:50]] != sorted(row for _, _, row in epoch[:50])


def test_sources_are_interleaved_in_their_proportion_throughout():
    sampler = EpochSampler((SamplerSource("journeydb", (1300,), 1300), SamplerSource("laion", (1000, 1000), 2000)), 0)
    source_numbers = np.array([source for source, _, _ in read_positions(sampler, 0, 3300, 500)])
    for part in np.array_split(source_numbers, 10):
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
def test_epoch_quotas_follow_the_weights(totals, weights, expected):
    assert compute_epoch_quotas(totals, weights) == expected


def test_a_source_with_a_small_quota_is_exhausted_over_several_epochs():
    sampler = EpochSampler((SamplerSource("a", (6, 4), 10), SamplerSource("b", (15,), 5)), 3)
    counts = Counter(item for item in read_positions(sampler, 0, 45) if item[0] == 1)
    assert len(counts) == 15
    assert set(counts.values()) == {1}
