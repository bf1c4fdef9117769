"""Recipes: one frozen, validated recipe describes one run. TOML files, inheritance and `--set` overrides."""

from pipeline.recipe.loading import RECIPES, dump, load, parse, parse_section
from pipeline.recipe.notify import Notify
from pipeline.recipe.schema import (
    BUNDLED,
    Evaluation,
    GuardrailMetric,
    Metric,
    Promotion,
    Prompts,
    Recipe,
    Retention,
    Schedule,
    Source,
    Train,
)

__all__ = [
    "BUNDLED",
    "RECIPES",
    "Evaluation",
    "GuardrailMetric",
    "Metric",
    "Notify",
    "Promotion",
    "Prompts",
    "Recipe",
    "Retention",
    "Schedule",
    "Source",
    "Train",
    "dump",
    "load",
    "parse",
    "parse_section",
]
