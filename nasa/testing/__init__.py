"""Helpers for tests: small models of true architecture with random weights, and float64 references.

    pipe = TINY_PIPELINES["flux"]()
    (image,) = draw_tiny(pipe, "a cat", output_type="pil")

`TINY_PIPELINES` has a constructor for each family, and `TINY_CALLS` the options that suit its size: a height and a
width that its few positions reach, two steps, latents, no guidance. `draw_tiny` calls a pipeline with them.
`nasa.testing.siblings` has a pipeline of every other class that can be steered.
"""

from nasa.testing.models import tiny_stable_diffusion
from nasa.testing.pipelines import TINY_CALLS, TINY_PIPELINES, draw_tiny
from nasa.testing.reference import reference_cross_attention

__all__ = ["TINY_CALLS", "TINY_PIPELINES", "draw_tiny", "reference_cross_attention", "tiny_stable_diffusion"]
