import pytest

from datasets_prep.shapes.prompts import PAIRS
from pipeline.evaluation.exclusion import Trial, choose_scale, summarise
from pipeline.evaluation.sampling import SamplingMethod

LOW, HIGH = SamplingMethod("nasa", 0.25), SamplingMethod("nasa", 1.0)
TRAINED = next(pair for pair in PAIRS if pair.trained)
UNTRAINED = next(pair for pair in PAIRS if not pair.trained)


def trials(way, outcomes, pair=TRAINED, calibration=False):
    """One trial for each (removed, kept)."""
    return [
        Trial(pair, seed, way.label, calibration, removed, kept, clean=True)
        for seed, (removed, kept) in enumerate(outcomes)
    ]


def test_best_scale_weighs_the_worse_of_removed_and_kept():
    weak = trials(LOW, [(False, True)] * 3 + [(True, True)])  # removes 1 of 4, keeps all
    strong = trials(HIGH, [(True, False)] * 2 + [(True, True)] * 2)  # removes all, keeps 2 of 4
    assert choose_scale(weak + strong, [LOW, HIGH]) == HIGH


def test_best_scale_ignores_negatives_that_training_never_saw():
    weak = trials(LOW, [(True, True)])
    strong = trials(HIGH, [(False, True)]) + trials(HIGH, [(True, True)] * 9, pair=UNTRAINED)
    assert choose_scale(weak + strong, [HIGH, LOW]) == LOW


def test_summary_keeps_trained_and_untrained_apart_and_leaves_calibration_out():
    collected = [
        *trials(LOW, [(True, True), (False, True)]),
        *trials(LOW, [(True, False)], pair=UNTRAINED),
        *trials(LOW, [(True, True)] * 50, calibration=True),
    ]
    trained, untrained = summarise(collected)
    assert (trained.trained_negative, untrained.trained_negative) == (True, False)
    assert (trained.removed.hits, trained.removed.total) == (1, 2)
    assert untrained.kept.value == 0


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.prompt} minus {pair.negative_prompt}")
def test_no_pair_excludes_what_it_asks_for(pair):
    assert pair.value in pair.negative_prompt
    assert pair.attribute not in dict(pair.asked)
    assert all(value in pair.prompt for _, value in pair.asked)
