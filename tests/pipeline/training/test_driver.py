"""The driver's choices at the end of a run."""

from types import SimpleNamespace

import pytest

from pipeline.evaluation.evaluate import collect_mlflow_metrics
from pipeline.evaluation.results import MetricSummary, Summary
from pipeline.recipe import parse
from pipeline.training.driver import _select_checkpoint

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ([0.1, 0.4, 0.2], True, 1),
        ([0.3, 0.1, 0.2], False, 1),
        ([NAN, 0.1, 0.2], True, 2),
        ([0.1, NAN, 0.2], False, 0),
        ([0.1, None, float("inf")], True, 0),
        ([NAN, NAN, NAN], True, "last"),
    ],
)
def test_the_best_checkpoint_has_a_finite_score(scores, higher, best):
    recipe = parse("", ['evaluation.student_selection="best"', f"promotion.higher_is_better={str(higher).lower()}"])
    name = f"eval_{recipe.promotion.metric}"
    candidates = [(index, {} if score is None else {name: score}) for index, score in enumerate(scores)]
    result = SimpleNamespace(checkpoint="last", metrics={"step": 9}, best_checkpoints=candidates)
    assert _select_checkpoint(recipe, result)[0] == best


def test_a_metric_without_a_number_is_left_out_of_the_ranking():
    values = {"a": (NAN, 3), "b": (0.5, 3), "c": (0.0, 0)}
    metrics = {name: MetricSummary(value=value, low=0, high=1, images=n) for name, (value, n) in values.items()}
    assert collect_mlflow_metrics(Summary(student="mine", metrics=metrics)) == {"eval_b": 0.5}
