import numpy as np
import pytest

from pipeline.prompts.negative_sampler import NegativeSampler


def build_sampler(avoid=True, **weights):
    shares = np.array(list(weights.values()), dtype=float)
    return NegativeSampler(list(weights), np.cumsum(shares / shares.sum()), avoid)


def test_negatives_are_a_function_of_seed_step_and_index():
    negatives, prompts = build_sampler(red=1, blue=1, dark=1), ["a photo"] * 40
    drawn = negatives.sample(prompts, 0, 5, range(40))
    assert negatives.sample(prompts[20:], 0, 5, range(20, 40)) == drawn[20:]
    for other in [(1, 5, range(40)), (0, 6, range(40)), (0, 5, range(40, 80))]:
        assert negatives.sample(prompts, *other) != drawn


def test_a_negative_per_batch_contradicts_no_prompt():
    negatives, prompts = build_sampler(red=1, blue=1, dark=1), ["a red star", "a blue star"]
    drawn = [negatives.sample(prompts, 0, step, range(2), per_batch=True) for step in range(20)]
    assert drawn == [["dark", "dark"]] * 20


def test_negatives_are_drawn_by_weight():
    drawn = build_sampler(red=6, blue=3, dark=1).sample(["a photo"] * 5000, 0, 0, range(5000))
    shares = [drawn.count(text) / 5000 for text in ("red", "blue", "dark")]
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


@pytest.mark.parametrize("avoid", [True, False])
def test_contradictions_are_avoided_if_requested(avoid):
    drawn = build_sampler(avoid, red=1, blue=1).sample(["a photo of a red star"] * 200, 0, 0, range(200))
    assert ("red" in drawn) is not avoid
    assert "blue" in drawn


def test_a_prompt_that_every_negative_contradicts_still_gets_one():
    assert build_sampler(red=1).sample(["a red star"], 0, 0, [0]) == ["red"]
