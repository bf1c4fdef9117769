"""Four generations of a schedule with real distillations, real evaluations and the shipped promotion rule."""

import pytest

from pipeline import recipe
from pipeline.registry import mlflow_registry
from pipeline.registry.version_management import roll_back
from pipeline.schedules.scheduled_run import run_scheduled
from pipeline.storage import Folder
from pipeline.tracking import build_client as mlflow_client

NAME = "nasa-shapes"
OVERRIDES = [
    *("schedule.cron='0 3 * * SUN'", "schedule.warm_start='teacher'", "prompts.count=4000"),
    *("evaluation.num_prompts=128", "evaluation.scales=[0.5]", "evaluation.exclusion_seeds=384"),
    *("evaluation.teacher_prompts=0", "train.num_workers=1"),
]


@pytest.mark.slow
def test_a_worse_student_becomes_challenger_and_a_better_one_champion_even_after_a_rollback(ray_cluster, tmp_path):
    """Students show a negative's attribute on different seeds, so that synthetic scores would prove nothing."""
    uri = f"sqlite:///{tmp_path}/ml.db"
    client = mlflow_client(uri)
    shipped = recipe.load("shapes", OVERRIDES)
    assert shipped.promotion.guardrails, "the shipped rule has a guardrail"

    def run_generation(number, steps, seed):
        train = shipped.train.model_copy(update={"steps": steps})
        generation_recipe = shipped.model_copy(update={"seed": seed, "train": train})
        scheduled_time = f"202611{number:02}T0300Z"
        return run_scheduled(
            generation_recipe, Folder.from_uri(tmp_path / "schedule"), uri, scheduled_time=scheduled_time
        )

    run_generation(1, 40, 0)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1"}
    run_generation(2, 5, 0)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1", "challenger": "2"}
    message = run_generation(3, 160, 0)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "3", "challenger": "2"}, message
    assert "exclusion_kept did not regress" in message
    roll_back(uri, NAME)
    assert mlflow_registry.get_aliases(client, NAME) == {"champion": "1", "challenger": "3"}
    message = run_generation(4, 161, 1)
    assert mlflow_registry.get_aliases(client, NAME)["champion"] == "4", message
