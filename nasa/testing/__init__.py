"""Helpers for tests: tiny models with real architectures and random weights, and float64 references.

    pipe = TINY_PIPELINES["flux"]()
    (image,) = run_tiny_pipeline(pipe, "a cat", output_type="pil")

`TINY_PIPELINES` has a constructor for each family, and `TINY_CALLS` the call options that fit its size: height, width,
two steps, latents, no guidance. `run_tiny_pipeline` calls a pipeline with them.
`nasa.testing.pipeline_variants` has a pipeline of every other class that can be steered.
"""

from nasa.testing.reference_attention import reference_cross_attention
from nasa.testing.tiny_pipelines import TINY_CALLS, TINY_PIPELINES, run_tiny_pipeline
from nasa.testing.tiny_stable_diffusion import tiny_stable_diffusion

__all__ = ["TINY_CALLS", "TINY_PIPELINES", "reference_cross_attention", "run_tiny_pipeline", "tiny_stable_diffusion"]
