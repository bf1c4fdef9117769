"""Who scores the images of a recipe's evaluation, and who says what they show."""

from pipeline.errors import UserError
from pipeline.evaluation import pairs
from pipeline.evaluation.exclusion import Judge
from pipeline.evaluation.judges import AttributeJudge
from pipeline.evaluation.scorers import Scorer, check, load
from pipeline.evaluation.scorers.shapes import Attributes, ShapesClip
from pipeline.recipe import BUNDLED, Recipe


def require(recipe: Recipe) -> None:
    """Refuse, before any image is made, a scorer or a judge whose weights are not there."""
    options = recipe.evaluation
    kinds = [metric.kind for metric in options.metrics]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"evaluation.metrics: {', '.join(kinds)} is not allowed; allowed: each kind once")
    for metric in options.metrics:
        check(metric)
    if "exclusion" in options.prompt_sets and recipe.teacher != BUNDLED:
        pairs.check(options)


def scorers_of(recipe: Recipe, device: str) -> list[Scorer]:
    own: list[Scorer] = [Attributes(), ShapesClip()] if recipe.teacher == BUNDLED else []
    return own + [load(metric, device) for metric in recipe.evaluation.metrics]


def judge_of(recipe: Recipe, device: str) -> tuple[Judge, Scorer]:
    """Who says which images of a pair show what its negative names, and who writes it down: one and the same."""
    if recipe.teacher == BUNDLED:
        return AttributeJudge.load(), Attributes()
    judge = pairs.ClipAttributes.load(recipe.evaluation, device)
    return judge, judge
