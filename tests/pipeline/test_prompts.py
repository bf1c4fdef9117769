from itertools import islice

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.negatives import NegativeSampler
from pipeline.prompts import batches

ROWS, GLOBAL_BATCH = 22, 4  # five batches an epoch, two rows left out


class Stream:
    """What `batches` needs of a Ray Data iterator."""

    def __init__(self, rows=ROWS):
        self.prompts = np.array([f"p{i}" for i in range(rows)], dtype=object)

    def iter_batches(self, *, batch_size, batch_format, drop_last):
        assert batch_format == "numpy"
        assert drop_last
        for first in range(0, len(self.prompts) - batch_size + 1, batch_size):
            yield {"prompt": self.prompts[first : first + batch_size]}


def global_order(workers, start, steps):
    """The prompts of all workers, step by step."""
    streams = [batches(Stream(), GLOBAL_BATCH, rank, workers, start) for rank in range(workers)]
    parts = zip(*(islice(stream, steps) for stream in streams), strict=True)
    return [[prompt for part in step for prompt in part] for step in parts]


def test_a_step_takes_the_next_rows_and_an_epoch_starts_over():
    order = global_order(1, 0, 6)
    assert order[:2] == [["p0", "p1", "p2", "p3"], ["p4", "p5", "p6", "p7"]]
    assert order[5] == order[0]
    assert "p20" not in {prompt for step in order for prompt in step}


@pytest.mark.parametrize("workers", [2, 4])
def test_the_order_is_the_same_for_any_number_of_workers(workers):
    assert global_order(workers, 0, 12) == global_order(1, 0, 12)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("start", range(13))
def test_a_run_that_continues_sees_the_tail(start, workers):
    assert global_order(workers, start, 13 - start) == global_order(1, 0, 13)[start:]


def test_fewer_rows_than_a_batch_are_refused():
    with pytest.raises(UserError, match="fewer than one batch of 4"):
        next(batches(Stream(3), GLOBAL_BATCH, 0, 1, 0))


def sampler(avoid=True, **weights):
    shares = np.array(list(weights.values()), dtype=float)
    return NegativeSampler(list(weights), np.cumsum(shares / shares.sum()), avoid)


def test_negatives_are_a_function_of_seed_step_and_place():
    negatives, prompts = sampler(red=1, blue=1, dark=1), ["a photo"] * 40
    drawn = negatives.draw(prompts, 0, 5, range(40))
    assert negatives.draw(prompts[20:], 0, 5, range(20, 40)) == drawn[20:]
    for other in [(1, 5, range(40)), (0, 6, range(40)), (0, 5, range(40, 80))]:
        assert negatives.draw(prompts, *other) != drawn


def test_one_negative_for_all_denies_none_of_them():
    negatives, prompts = sampler(red=1, blue=1, dark=1), ["a red star", "a blue star"]
    drawn = [negatives.draw(prompts, 0, step, range(2), one=True) for step in range(20)]
    assert drawn == [["dark", "dark"]] * 20


def test_negatives_are_drawn_by_weight():
    drawn = sampler(red=6, blue=3, dark=1).draw(["a photo"] * 5000, 0, 0, range(5000))
    shares = [drawn.count(text) / 5000 for text in ("red", "blue", "dark")]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize("avoid", [True, False])
def test_contradictions_are_avoided_where_asked(avoid):
    drawn = sampler(avoid, red=1, blue=1).draw(["a photo of a red star"] * 200, 0, 0, range(200))
    assert ("red" in drawn) is not avoid
    assert "blue" in drawn


def test_a_prompt_that_every_negative_contradicts_still_gets_one():
    assert sampler(red=1).draw(["a red star"], 0, 0, [0]) == ["red"]
