"""The plan of an evaluation: which images are made."""

import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.evaluation.plan import STUDENT_SYSTEM
from pipeline.evaluation.worker import plan_work_units
from pipeline.prompts import prompt_dataset
from pipeline.storage import Folder


@pytest.mark.parametrize("count", [3, 16, 40])
def test_the_plan_has_the_requested_number_of_own_prompts(tmp_path, monkeypatch, count):
    monkeypatch.setattr(prompt_dataset, "read_first_prompts", lambda folder: [f"a photo {i}" for i in range(30)])
    options = recipe.parse("", ['teacher="mine"', f"evaluation.num_prompts={count}", "evaluation.teacher_prompts=0"])
    units = plan_work_units(options, Folder.from_uri(tmp_path))
    batches = [unit for unit in units if unit.system.name == STUDENT_SYSTEM]
    assert sum(len(batch.samples) for batch in batches) == min(count, 30)


def test_more_prompts_than_the_shapes_dataset_has_are_rejected(tmp_path):
    """The search for distinct prompts would never end."""
    options = recipe.parse("", ["evaluation.num_prompts=20000"])
    with pytest.raises(UserError, match=r"^evaluation.num_prompts: got 20000; expected at most \d+, "):
        plan_work_units(options, Folder.from_uri(tmp_path))
