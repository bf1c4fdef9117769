import pytest

from datasets_prep.shapes.prompts import PAIRS
from pipeline.evaluation.exclusion import Trial, choose_scale, summarise
from pipeline.evaluation.sampling import SamplingMethod

LOW, HIGH = SamplingMethod("nasa", 0.25), SamplingMethod("nasa", 1.0)
TRAINED = next(pair for pair in PAIRS if pair.trained)
UNTRAINED = next(pair for pair in PAIRS if not pair.trained)


def build_trials(method, outcomes, pair=TRAINED, selects_scale=False):
    """Return one trial for each pair (removed, kept)."""
    return [
        Trial(pair, seed, method.label, selects_scale, removed, kept, clean=True)
        for seed, (removed, kept) in enumerate(outcomes)
    ]


def test_best_scale_maximises_the_lower_of_removed_and_kept():
    weak = build_trials(LOW, [(False, True)] * 3 + [(True, True)])  # removes 1 of 4, keeps all
    strong = build_trials(HIGH, [(True, False)] * 2 + [(True, True)] * 2)  # removes all, keeps 2 of 4
    assert choose_scale(weak + strong, [LOW, HIGH]) == HIGH


def test_best_scale_ignores_negatives_that_training_never_saw():
    weak = build_trials(LOW, [(True, True)])
    strong = build_trials(HIGH, [(False, True)]) + build_trials(HIGH, [(True, True)] * 9, pair=UNTRAINED)
    assert choose_scale(weak + strong, [HIGH, LOW]) == LOW


def test_the_summary_separates_trained_from_untrained_negatives_and_omits_calibration():
    collected = [
        *build_trials(LOW, [(True, True), (False, True)]),
        *build_trials(LOW, [(True, False)], pair=UNTRAINED),
        *build_trials(LOW, [(True, True)] * 50, selects_scale=True),
    ]
    trained, untrained = summarise(collected)
    assert (trained.trained_negative, untrained.trained_negative) == (True, False)
    assert (trained.removed.hits, trained.removed.total) == (1, 2)
    assert untrained.kept.value == 0


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.prompt} minus {pair.negative_prompt}")
def test_no_pair_excludes_an_attribute_of_its_prompt(pair):
    assert pair.value in pair.negative_prompt
    assert pair.attribute not in dict(pair.prompted)
    assert all(value in pair.prompt for _, value in pair.prompted)
