"""The promotion rule on synthetic scores."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.results import MetricSummary
from pipeline.recipe import GuardrailMetric, Promotion
from pipeline.registry.evaluation_scores import Scores
from pipeline.registry.promotion import compare_metric, decide, decide_first

IMAGES = 200
NOISE = np.random.default_rng(0).normal(0, 0.05, IMAGES)
RULE = Promotion(metric="quality", margin=0.02)


def summary(value, images=IMAGES, options=None):
    return MetricSummary(value=value, low=value - 0.1, high=value + 0.1, images=images, options=options or {})


def scores(options=None, first=0, **shifts):
    """Each metric: the same images' noise about 0.5 + shift, and a little noise of its own."""
    images, metrics = {}, {}
    for metric, shift in shifts.items():
        own = np.random.default_rng(len(metric)).normal(0, 0.01, IMAGES)
        values = 0.5 + shift + NOISE + (own if shift else 0)
        images[metric] = {("set", f"prompt {i}", first + i): float(value) for i, value in enumerate(values)}
        metrics[metric] = summary(0.5, options=options)
    return Scores(metrics, images, "0" * 64)


@pytest.mark.parametrize(
    ("shift", "promoted", "says"),
    [
        (0.05, True, "better than version 3: above 0.02, 95 % sure"),
        (0.0219, False, "against version 3: not above 0.02, 95 % sure"),  # above the margin, but not surely
        (0.01, False, "not above 0.02"),
        (0.0, False, "not above 0.02"),
        (-0.05, False, "not above 0.02"),
    ],
)
def test_the_whole_interval_must_be_above_the_margin(shift, promoted, says):
    decision = decide(RULE, scores(quality=shift), scores(quality=0.0), "3")
    assert decision.promoted is promoted
    assert says in decision.verdict
    assert decision.comparisons[0].gain == pytest.approx(shift, abs=0.002)


@pytest.mark.parametrize(("shift", "promoted"), [(-0.05, True), (0.05, False)])
def test_of_a_metric_where_lower_is_better_a_fall_is_a_gain(shift, promoted):
    rule = Promotion(metric="error", higher_is_better=False)
    decision = decide(rule, scores(error=shift), scores(error=0.0), "1")
    assert decision.promoted is promoted
    assert decision.comparisons[0].gain == pytest.approx(-shift, abs=0.002)


def test_more_confidence_is_a_wider_interval():
    pairs = scores(quality=0.05), scores(quality=0.0)
    narrow, wide = (compare_metric("quality", *pairs, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("loss", "promoted"),
    [(0.0, True), (0.01, True), (0.0199, False), (0.05, False)],
)
def test_a_guard_s_interval_shows_no_loss_above_its_limit(loss, promoted):
    rule = Promotion(metric="quality", guardrails=(GuardrailMetric(metric="kept", max_regression=0.02),))
    decision = decide(rule, scores(quality=0.1, kept=-loss), scores(quality=0.0, kept=0.0), "1")
    assert decision.promoted is promoted
    assert ("kept kept" in decision.verdict) == promoted
    assert ("may lose more than 0.02" in decision.verdict) != promoted


def test_a_guard_where_lower_is_better():
    rule = Promotion(
        metric="quality", guardrails=(GuardrailMetric(metric="error", max_regression=0.02, higher_is_better=False),)
    )
    old = scores(quality=0.0, error=0.0)
    assert decide(rule, scores(quality=0.1, error=-0.1), old, "1").promoted
    assert not decide(rule, scores(quality=0.1, error=0.1), old, "1").promoted


@pytest.mark.parametrize(
    ("new", "old", "why"),
    [
        ({"quality": 0.1}, {"options": {"version": "2"}, "quality": 0.0}, "of another version or other options"),
        ({"quality": 0.1}, {"first": 1, "quality": 0.0}, "is of other prompts or seeds"),
        ({"other": 0.1}, {"quality": 0.0}, "the evaluation of this student has no quality"),
        ({"quality": 0.1}, {"other": 0.0}, "the evaluation of the champion has no quality"),
    ],
)
def test_what_cannot_be_compared_is_not_promoted_and_says_why(new, old, why):
    decision = decide(RULE, scores(**new), scores(**old), "2")
    assert not decision.promoted
    assert decision.verdict.startswith("not comparable with version 2: ")
    assert why in decision.verdict


@pytest.mark.parametrize("whose", ["new", "old"])
def test_a_score_that_is_no_number_on_some_image_is_not_compared(whose):
    """The images that are left may be the easy ones."""
    pair = {"new": scores(quality=0.1), "old": scores(quality=0.0)}
    nan = pair[whose].metrics["quality"].model_copy(update={"value": float("nan")})
    pair[whose] = replace(pair[whose], metrics={"quality": nan})
    decision = decide(RULE, pair["new"], pair["old"], "2")
    assert not decision.promoted
    assert "is no number on some image" in decision.verdict


def test_a_guard_that_cannot_be_compared_does_not_pass():
    rule = Promotion(metric="quality", guardrails=(GuardrailMetric(metric="kept"),))
    decision = decide(rule, scores(quality=0.1), scores(quality=0.0, kept=0.0), "2")
    assert not decision.promoted
    assert "better, but the evaluation of this student has no kept" in decision.verdict


def with_exclusion(quality, seeds, kept):
    """A metric of exclusion beside the other: over the seeds whose plain image shows what the negative names."""
    own, rng = scores(quality=quality), np.random.default_rng(len(seeds))
    images = {("exclusion", "a photo of a shape", seed): float(rng.random() < kept) for seed in seeds}
    metrics = {"kept": summary(kept, len(images))}
    return Scores(own.metrics | metrics, own.images | {"kept": images}, own.sha256)


GUARDED = Promotion(metric="quality", guardrails=(GuardrailMetric(metric="kept", max_regression=0.1),))


@pytest.mark.parametrize("theirs", [range(200), range(150, 350), range(200, 400)])
@pytest.mark.parametrize(
    ("kept", "promoted", "why"),
    [(0.99, True, "kept kept"), (0.95, True, "kept kept"), (0.7, False, "may lose more than 0.1")],
)
def test_students_that_show_the_attribute_on_other_seeds_are_compared(theirs, kept, promoted, why):
    """Two students show a red shape on the same seeds by chance alone: a guard on the same ones would never pass."""
    decision = decide(GUARDED, with_exclusion(0.1, range(200), kept), with_exclusion(0.0, theirs, 0.95), "1")
    assert decision.promoted is promoted
    assert why in decision.verdict
    assert decision.comparisons[1].images == 200


def pairs_of(easy, hard, seed):
    """A student's own images of two pairs, of which one is harder to keep: 99 and 60 % kept by every student."""
    rng = np.random.default_rng(seed)
    own = {("exclusion", "easy", i): float(rng.random() < 0.99) for i in range(easy)}
    own |= {("exclusion", "hard", i): float(rng.random() < 0.6) for i in range(hard)}
    quality = scores(quality=0.1 * (seed == 1))
    metrics = {"kept": summary(0.8, len(own))}
    return Scores(quality.metrics | metrics, quality.images | {"kept": own}, "")


def test_students_that_show_other_pairs_are_compared_pair_by_pair():
    """Of the same skill, and one shows the easy pair more often: over all images it would seem 20 points worse."""
    found = compare_metric("kept", pairs_of(60, 340, 1), pairs_of(340, 60, 0), 0.95)
    assert found.low < 0 < found.high
    assert abs(found.gain) < 0.08


def test_students_without_a_pair_in_common_are_not_compared():
    found = compare_metric("kept", pairs_of(100, 0, 1), pairs_of(0, 100, 0), 0.95)
    assert "is of no prompt that both evaluations have images of" in found.problem


def test_images_of_pairs_that_are_left_out_are_not_counted():
    """Twenty-five of the one pair that both show: all 125 and 425 images would have been enough."""
    rare = compare_metric("kept", pairs_of(100, 25, 1), pairs_of(2, 423, 0), 0.95)
    assert rare.problem == "kept is over 25 images; at least 30 are needed"


def test_few_pairs_that_differ_are_judged_by_the_exact_sign_test():
    """Seven of thirty, all in favour: p = 0.0078 on one side, and a bootstrap at 99.9 % says better all the same."""
    images = [("set", f"prompt {i}", i) for i in range(30)]
    metrics = {"quality": summary(0.5)}
    new = Scores(metrics, {"quality": dict.fromkeys(images, 1.0)}, "")
    old = Scores(metrics, {"quality": {image: float(i >= 7) for i, image in enumerate(images)}}, "")
    year, single = Promotion(metric="quality"), Promotion(metric="quality", decisions=1)
    assert not decide(year, new, old, "1").promoted
    assert decide(single, new, old, "1").promoted


def test_a_guard_needs_images_enough_to_exclude_a_loss():
    few = with_exclusion(0.1, range(29), 1.0)
    decision = decide(GUARDED, few, with_exclusion(0.0, range(200), 1.0), "1")
    assert not decision.promoted
    assert "better, but kept is over 29 images; at least 30 are needed" in decision.verdict


@pytest.mark.parametrize("metrics", [{}, {"quality": summary(float("nan"))}])
def test_a_student_without_a_score_is_no_first_champion(metrics):
    decision = decide_first(RULE, Scores(metrics, {}, ""))
    assert not decision.promoted
    assert "its evaluation has no quality" in decision.verdict
    assert decide_first(RULE, scores(quality=0.0)).promoted


def test_a_series_of_equally_good_students_keeps_its_champion():
    """A year of weekly decisions, in small: ten decisions on 64 prompts, sixty series. Each student is right on a
    prompt with the prompt's own chance, so no one is better than another."""
    rng = np.random.default_rng(5)
    false = {}
    for decisions in (1, 10):
        rule = Promotion(metric="quality", decisions=decisions)
        false[decisions] = np.mean([promotes_by_chance(rule, rng) for _ in range(60)])
    assert false[1] > 0.05  # each comparison at 95 %, as if it were the only one
    assert false[10] <= 0.05 < 2 * false[1]


def promotes_by_chance(rule, rng):
    chances = rng.beta(4, 1.5, 64)

    def student():
        right = (rng.random(64) < chances).astype(float)
        images = {"quality": {("set", f"prompt {i}", i): value for i, value in enumerate(right)}}
        return Scores({"quality": summary(0.5)}, images, "")

    champion = student()
    return any(decide(rule, student(), champion, "1").promoted for _ in range(10))
