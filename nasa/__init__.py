"""Negative-Away Steer Attention: negative prompts for one-step text-to-image models."""

from nasa.rules import nasa_rule
from nasa.steer import steer
from nasa.version import __version__

__all__ = ["__version__", "nasa_rule", "steer"]
