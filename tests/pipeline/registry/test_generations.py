"""Four generations of a schedule with real distillations and real evaluations: the shipped rule and its guard."""

import dataclasses

import pytest

from pipeline import recipe
from pipeline.registry import mlflow_registry
from pipeline.registry.versions import roll_back
from pipeline.schedules.scheduled_run import run_scheduled
from pipeline.storage import Folder
from pipeline.tracking import build_client as mlflow_client

NAME = "nasa-shapes"
SETS = [
    *("schedule.cron='0 3 * * SUN'", "schedule.warm_start='teacher'", "prompts.count=4000"),
    *("evaluation.num_prompts=128", "evaluation.scales=[0.5]", "evaluation.exclusion_seeds=384"),
    *("evaluation.teacher_prompts=0", "train.num_workers=1"),
]


@pytest.mark.slow
def test_a_worse_student_is_challenger_and_a_better_one_champion_also_after_a_rollback(ray_cluster, tmp_path):
    """No two students show a negative's attribute on the same seeds, so that made-up scores would prove nothing."""
    uri = f"sqlite:///{tmp_path}/ml.db"
    client = mlflow_client(uri)
    shipped = recipe.load("shapes", SETS)
    assert shipped.promotion.guardrails, "the shipped rule has a guard"

    def generation(number, steps, seed):
        own = dataclasses.replace(shipped, seed=seed, train=dataclasses.replace(shipped.train, steps=steps))
        tick = f"202611{number:02}T0300Z"
        return run_scheduled(own, Folder.from_uri(tmp_path / "schedule"), uri, scheduled_time=tick)

    generation(1, 40, 0)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1"}
    generation(2, 5, 0)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1", "challenger": "2"}
    said = generation(3, 160, 0)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "3", "challenger": "2"}, said
    assert "exclusion_kept kept" in said
    roll_back(uri, NAME)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1", "challenger": "3"}
    said = generation(4, 161, 1)
    assert mlflow_registry.get_aliases(client, NAME)["champion"] == "4", said
