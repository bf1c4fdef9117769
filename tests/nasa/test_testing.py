"""The tiny pipelines that the library ships for tests."""

import pytest

from nasa.testing import TINY_PIPELINES, run_tiny_pipeline


@pytest.mark.parametrize("family", TINY_PIPELINES)
def test_a_tiny_pipeline_generates_images(family):
    """Only the prompt and the output type are passed."""
    images = run_tiny_pipeline(TINY_PIPELINES[family](), "a cat", output_type="pil")[0]
    image = images[0] if family == "wan" else images
    assert image.size == ((16, 16) if family == "wan" else (32, 32))


def test_options_override_the_tiny_call_options():
    assert run_tiny_pipeline(TINY_PIPELINES["pixart"](), "a cat", height=64).shape[2:] == (8, 4)
