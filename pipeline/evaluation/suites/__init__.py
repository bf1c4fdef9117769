"""Evaluation suites: prompt sets, systems, judge and scorers, chosen once by the recipe's teacher."""

from pipeline.evaluation.suites.benchmark_suite import BenchmarkSuite
from pipeline.evaluation.suites.shapes_suite import ShapesSuite
from pipeline.evaluation.suites.suite import EvaluationSuite
from pipeline.recipe import BUNDLED, Recipe


def build_suite(recipe: Recipe) -> EvaluationSuite:
    """Return the suite that a recipe's students are evaluated with."""
    return ShapesSuite(recipe.evaluation) if recipe.teacher == BUNDLED else BenchmarkSuite(recipe.evaluation)


__all__ = ["BenchmarkSuite", "EvaluationSuite", "ShapesSuite", "evaluation_suite"]
