"""The small pipelines that this library ships for tests."""

import pytest

from nasa.testing import TINY_PIPELINES, draw_tiny


@pytest.mark.parametrize("family", TINY_PIPELINES)
def test_a_small_pipeline_makes_images(family):
    """With nothing given but the prompt and the kind of output."""
    made = draw_tiny(TINY_PIPELINES[family](), "a cat", output_type="pil")[0]
    image = made[0] if family == "wan" else made
    assert image.size == ((16, 16) if family == "wan" else (32, 32))


def test_options_of_a_call_are_in_place_of_the_small_ones():
    assert draw_tiny(TINY_PIPELINES["pixart"](), "a cat", height=64).shape[2:] == (8, 4)
