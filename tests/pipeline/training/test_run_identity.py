"""Recipe changes with which a run may be continued, before and after its end."""

import pytest

from pipeline.errors import UserError
from pipeline.recipe import parse
from pipeline.storage import Folder
from pipeline.training.run_identity import BEGUN, FINISHED, require_same_run

SAMPLES_PAIRS = ["regression.weight=0.3"]
BEST = 'evaluation.student_selection="best"'


@pytest.mark.parametrize(
    ("state", "saved_overrides", "overrides", "field"),
    [
        (
            BEGUN,
            [],
            ["train.num_workers=4", 'train.on_divergence="rollback"', "evaluation.every_n_checkpoints=2"],
            None,
        ),
        (FINISHED, [], ["train.num_workers=4", "promotion.margin=0.1", 'promotion.metric="clip_positive"'], None),
        (BEGUN, [], [BEST], None),
        (FINISHED, [], [BEST], "evaluation.student_selection: got 'best'"),
        (FINISHED, [BEST], [BEST, 'promotion.metric="clip_positive"'], "promotion.metric: got 'clip_positive'"),
        (BEGUN, [], ["train.steps=7"], "train.steps: got 7"),
        (BEGUN, [], ["evaluation.precision=bfloat16"], None),
        (
            BEGUN,
            SAMPLES_PAIRS,
            [*SAMPLES_PAIRS, "evaluation.precision=bfloat16"],
            "evaluation.precision: got 'bfloat16'",
        ),
        (BEGUN, [], ["name=other", "seed=7"], "seed: got 7"),
        (BEGUN, [], ["name=other"], "name: got 'other'"),
    ],
)
def test_only_some_options_may_change_for_an_existing_run(tmp_path, state, saved_overrides, overrides, field):
    folder, saved, recipe = Folder.from_uri(tmp_path), parse("", saved_overrides), parse("", overrides)
    if field is None:
        require_same_run(folder, saved, recipe, state)
        return
    with pytest.raises(UserError, match=f"^{field}; expected .* holds {state}. "):
        require_same_run(folder, saved, recipe, state)
