"""The comparison of a family's step with the naive loop."""

import pytest

from benchmarks.family_steps import FAMILIES, measure


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_both_loops_compute_the_same_losses(name):
    assert measure(name, 1).startswith(f"| {name} | ")


def test_every_family_that_can_be_distilled_is_compared():
    assert {"stable-diffusion-3", "qwen-image", "wan", "sana"} < set(FAMILIES)
