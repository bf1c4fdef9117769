"""Helpers for tests: small models of true architecture with random weights, and float64 references."""

from nasa.testing.models import tiny_stable_diffusion
from nasa.testing.reference import reference_cross_attention

__all__ = ["reference_cross_attention", "tiny_stable_diffusion"]
