"""Negative-Away Steer Attention: negative prompts for one-step text-to-image models.

The public names are imported when they are first used, so that `import nasa` does not wait for torch and diffusers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nasa.version import __version__

if TYPE_CHECKING:
    from nasa.attention_rules import nasa_rule
    from nasa.guider import NasaGuidance
    from nasa.presets import PRESETS
    from nasa.steer_context import steer

_PUBLIC = {
    "PRESETS": "nasa.presets",
    "NasaGuidance": "nasa.guider",
    "nasa_rule": "nasa.attention_rules",
    "steer": "nasa.steer_context",
}

__all__ = ["PRESETS", "NasaGuidance", "__version__", "nasa_rule", "steer"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nasa' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
