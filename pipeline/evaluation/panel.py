"""Who scores the images of a recipe's evaluation."""

from pipeline.errors import UserError
from pipeline.evaluation.exclusion import Judge
from pipeline.evaluation.judges import AttributeJudge
from pipeline.evaluation.scorers import Scorer, check, load
from pipeline.evaluation.scorers.shapes import Attributes, ShapesClip
from pipeline.recipe import EMBEDDED, Recipe


def require(recipe: Recipe) -> None:
    """Refuse, before any image is made, a scorer whose weights are not there."""
    kinds = [metric.kind for metric in recipe.evaluation.metrics]
    if len(set(kinds)) < len(kinds):
        raise UserError(f"evaluation.metrics: {', '.join(kinds)} is not allowed; allowed: each kind once")
    for metric in recipe.evaluation.metrics:
        check(metric)


def scorers_of(recipe: Recipe, device: str) -> list[Scorer]:
    own: list[Scorer] = [Attributes(), ShapesClip()] if recipe.teacher == EMBEDDED else []
    return own + [load(metric, device) for metric in recipe.evaluation.metrics]


def judge_of(recipe: Recipe, device: str) -> Judge:
    assert recipe.teacher == EMBEDDED, "others have no pairs yet"
    return AttributeJudge.load()
