"""The promotion rule on synthetic scores."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.evaluation.results import MetricSummary
from pipeline.recipe import GuardrailMetric, Promotion
from pipeline.registry.promotion_decision import compare_metric, decide, decide_first
from pipeline.registry.student_scores import Scores

IMAGES = 200
NOISE = np.random.default_rng(0).normal(0, 0.05, IMAGES)
RULE = Promotion(metric="quality", margin=0.02)


def build_summary(value, images=IMAGES, options=None):
    return MetricSummary(value=value, low=value - 0.1, high=value + 0.1, images=images, options=options or {})


def build_scores(options=None, first=0, **shifts):
    """Return scores of 0.5 + shift for each metric, with noise that all share and a little of their own."""
    images, metrics = {}, {}
    for metric, shift in shifts.items():
        own_noise = np.random.default_rng(len(metric)).normal(0, 0.01, IMAGES)
        values = 0.5 + shift + NOISE + (own_noise if shift else 0)
        images[metric] = {("set", f"prompt {i}", first + i): float(value) for i, value in enumerate(values)}
        metrics[metric] = build_summary(0.5, options=options)
    return Scores(metrics, images, "0" * 64)


@pytest.mark.parametrize(
    ("shift", "promoted", "verdict"),
    [
        (0.05, True, "against version 3: above 0.02 at 95 % confidence"),
        (
            0.0219,
            False,
            "against version 3: not above 0.02 at 95 % confidence",
        ),  # above the margin, but not significantly
        (0.01, False, "not above 0.02"),
        (0.0, False, "not above 0.02"),
        (-0.05, False, "not above 0.02"),
    ],
)
def test_the_whole_interval_must_be_above_the_margin(shift, promoted, verdict):
    decision = decide(RULE, build_scores(quality=shift), build_scores(quality=0.0), "3")
    assert decision.promoted is promoted
    assert verdict in decision.verdict
    assert decision.comparisons[0].gain == pytest.approx(shift, abs=0.002)


@pytest.mark.parametrize(("shift", "promoted"), [(-0.05, True), (0.05, False)])
def test_a_decrease_is_a_gain_if_lower_is_better(shift, promoted):
    rule = Promotion(metric="error", higher_is_better=False)
    decision = decide(rule, build_scores(error=shift), build_scores(error=0.0), "1")
    assert decision.promoted is promoted
    assert decision.comparisons[0].gain == pytest.approx(-shift, abs=0.002)


def test_more_confidence_gives_a_wider_interval():
    pairs = build_scores(quality=0.05), build_scores(quality=0.0)
    narrow, wide = (compare_metric("quality", *pairs, confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("loss", "promoted"),
    [(0.0, True), (0.01, True), (0.0199, False), (0.05, False)],
)
def test_a_guardrail_rejects_a_possible_loss_above_its_limit(loss, promoted):
    rule = Promotion(metric="quality", guardrails=(GuardrailMetric(metric="kept", max_regression=0.02),))
    decision = decide(rule, build_scores(quality=0.1, kept=-loss), build_scores(quality=0.0, kept=0.0), "1")
    assert decision.promoted is promoted
    assert ("kept did not regress" in decision.verdict) == promoted
    assert ("may lose more than 0.02" in decision.verdict) != promoted


def test_a_guardrail_metric_may_be_better_if_lower():
    rule = Promotion(
        metric="quality", guardrails=(GuardrailMetric(metric="error", max_regression=0.02, higher_is_better=False),)
    )
    old = build_scores(quality=0.0, error=0.0)
    assert decide(rule, build_scores(quality=0.1, error=-0.1), old, "1").promoted
    assert not decide(rule, build_scores(quality=0.1, error=0.1), old, "1").promoted


@pytest.mark.parametrize(
    ("new", "old", "reason"),
    [
        ({"quality": 0.1}, {"options": {"version": "2"}, "quality": 0.0}, "has another version or other options"),
        ({"quality": 0.1}, {"first": 1, "quality": 0.0}, "was measured on other prompts or seeds"),
        ({"other": 0.1}, {"quality": 0.0}, "the evaluation of this student has no quality"),
        ({"quality": 0.1}, {"other": 0.0}, "the evaluation of the champion has no quality"),
    ],
)
def test_incomparable_students_are_not_promoted_and_the_reason_is_given(new, old, reason):
    decision = decide(RULE, build_scores(**new), build_scores(**old), "2")
    assert not decision.promoted
    assert decision.verdict.startswith("not comparable with version 2: ")
    assert reason in decision.verdict


@pytest.mark.parametrize("side", ["new", "old"])
def test_a_metric_without_a_number_on_some_image_is_not_compared(side):
    """The remaining images may be the easy ones."""
    pair = {"new": build_scores(quality=0.1), "old": build_scores(quality=0.0)}
    nan = pair[side].metrics["quality"].model_copy(update={"value": float("nan")})
    pair[side] = replace(pair[side], metrics={"quality": nan})
    decision = decide(RULE, pair["new"], pair["old"], "2")
    assert not decision.promoted
    assert "is not a number on some image" in decision.verdict


def test_an_incomparable_guardrail_does_not_pass():
    rule = Promotion(metric="quality", guardrails=(GuardrailMetric(metric="kept"),))
    decision = decide(rule, build_scores(quality=0.1), build_scores(quality=0.0, kept=0.0), "2")
    assert not decision.promoted
    assert "better, but the evaluation of this student has no kept" in decision.verdict


def build_scores_with_exclusion(quality, seeds, kept_share):
    """Return scores that include an exclusion metric, over the seeds whose plain image shows the attribute."""
    base, rng = build_scores(quality=quality), np.random.default_rng(len(seeds))
    images = {("exclusion", "a photo of a shape", seed): float(rng.random() < kept_share) for seed in seeds}
    metrics = {"kept": build_summary(kept_share, len(images))}
    return Scores(base.metrics | metrics, base.images | {"kept": images}, base.sha256)


GUARDED = Promotion(metric="quality", guardrails=(GuardrailMetric(metric="kept", max_regression=0.1),))


@pytest.mark.parametrize("champion_seeds", [range(200), range(150, 350), range(200, 400)])
@pytest.mark.parametrize(
    ("kept_share", "promoted", "reason"),
    [
        (0.99, True, "kept did not regress"),
        (0.95, True, "kept did not regress"),
        (0.7, False, "may lose more than 0.1"),
    ],
)
def test_students_that_show_the_attribute_on_other_seeds_are_compared(champion_seeds, kept_share, promoted, reason):
    """Two students show a red shape on the same seeds only by chance; a guardrail on common seeds would never pass."""
    decision = decide(
        GUARDED,
        build_scores_with_exclusion(0.1, range(200), kept_share),
        build_scores_with_exclusion(0.0, champion_seeds, 0.95),
        "1",
    )
    assert decision.promoted is promoted
    assert reason in decision.verdict
    assert decision.comparisons[1].images == 200


def build_scores_of_pairs(easy, hard, seed):
    """Return scores of two pairs; every student keeps the prompt in 99 % of the easy and 60 % of the hard images."""
    rng = np.random.default_rng(seed)
    images = {("exclusion", "easy", i): float(rng.random() < 0.99) for i in range(easy)}
    images |= {("exclusion", "hard", i): float(rng.random() < 0.6) for i in range(hard)}
    quality = build_scores(quality=0.1 * (seed == 1))
    metrics = {"kept": build_summary(0.8, len(images))}
    return Scores(quality.metrics | metrics, quality.images | {"kept": images}, "")


def test_students_that_show_other_pairs_are_compared_pair_by_pair():
    """Both are equally good, but over all images the one that shows the hard pair more often would seem worse."""
    comparison = compare_metric("kept", build_scores_of_pairs(60, 340, 1), build_scores_of_pairs(340, 60, 0), 0.95)
    assert comparison.low < 0 < comparison.high
    assert abs(comparison.gain) < 0.08


def test_students_without_a_pair_in_common_are_not_compared():
    comparison = compare_metric("kept", build_scores_of_pairs(100, 0, 1), build_scores_of_pairs(0, 100, 0), 0.95)
    assert "no prompt has images with kept in both evaluations" in comparison.problem


def test_images_of_omitted_pairs_are_not_counted():
    """The only common pair has 25 images; all 125 and 425 images would have been enough."""
    rare = compare_metric("kept", build_scores_of_pairs(100, 25, 1), build_scores_of_pairs(2, 423, 0), 0.95)
    assert rare.problem == "kept was measured on 25 images; at least 30 are needed"


def test_few_pairs_that_differ_are_judged_by_the_exact_sign_test():
    """Seven of thirty pairs differ, all in favour: p = 0.0078 one-sided, although a bootstrap at 99.9 % says better."""
    images = [("set", f"prompt {i}", i) for i in range(30)]
    metrics = {"quality": build_summary(0.5)}
    new = Scores(metrics, {"quality": dict.fromkeys(images, 1.0)}, "")
    old = Scores(metrics, {"quality": {image: float(i >= 7) for i, image in enumerate(images)}}, "")
    yearly, one_decision = Promotion(metric="quality"), Promotion(metric="quality", decisions=1)
    assert not decide(yearly, new, old, "1").promoted
    assert decide(one_decision, new, old, "1").promoted


def test_a_guardrail_needs_enough_images_to_exclude_a_loss():
    few = build_scores_with_exclusion(0.1, range(29), 1.0)
    decision = decide(GUARDED, few, build_scores_with_exclusion(0.0, range(200), 1.0), "1")
    assert not decision.promoted
    assert "better, but kept was measured on 29 images; at least 30 are needed" in decision.verdict


@pytest.mark.parametrize("metrics", [{}, {"quality": build_summary(float("nan"))}])
def test_a_student_without_a_score_does_not_become_the_first_champion(metrics):
    decision = decide_first(RULE, Scores(metrics, {}, ""))
    assert not decision.promoted
    assert "its evaluation has no quality" in decision.verdict
    assert decide_first(RULE, build_scores(quality=0.0)).promoted


def test_a_series_of_equally_good_students_keeps_its_champion():
    """Sixty series of ten decisions on 64 prompts stand for years of weekly decisions. Every student is right on a
    prompt with that prompt's probability, so that no student is better than another.
    """
    rng = np.random.default_rng(5)
    false_promotions = {}
    for decisions in (1, 10):
        rule = Promotion(metric="quality", decisions=decisions)
        false_promotions[decisions] = np.mean([promotes_by_chance(rule, rng) for _ in range(60)])
    assert false_promotions[1] > 0.05  # each comparison at 95 %, as if it were the only one
    assert false_promotions[10] <= 0.05 < 2 * false_promotions[1]


def promotes_by_chance(rule, rng):
    probabilities = rng.beta(4, 1.5, 64)

    def sample_student():
        right = (rng.random(64) < probabilities).astype(float)
        images = {"quality": {("set", f"prompt {i}", i): value for i, value in enumerate(right)}}
        return Scores({"quality": build_summary(0.5)}, images, "")

    champion = sample_student()
    return any(decide(rule, sample_student(), champion, "1").promoted for _ in range(10))
