import math

import pytest

from pipeline.training.divergence import DivergedError, DivergenceDetector


def build_metrics(**changes):
    healthy = {"loss_student": 0.1, "gradient_norm_student": 1.0, "image_variation": 2.0}
    return healthy | changes


def check_after_warm_up(**changes):
    detector = DivergenceDetector(max_grad_norm_ratio=100.0, min_image_std_ratio=0.01)
    for step in range(20):
        detector.check(step, build_metrics())
    detector.check(20, build_metrics(**changes))


@pytest.mark.parametrize("changes", [{}, {"gradient_norm_student": 99.0}, {"image_variation": 0.021}])
def test_metrics_within_bounds_pass(changes):
    check_after_warm_up(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_student": math.nan}, "step 21: loss_student is nan"),
        ({"gradient_norm_student": math.inf}, "step 21: gradient_norm_student is inf"),
        ({"gradient_norm_student": 101.0}, "step 21: gradient_norm_student is 101, more than 100 times its median 1"),
        ({"image_variation": 0.019}, "step 21: image_variation is 0.019, less than 1% of its first 2: the images"),
    ],
)
def test_metrics_out_of_bounds_are_reported(changes, message):
    with pytest.raises(DivergedError, match=message):
        check_after_warm_up(**changes)


def test_a_spike_in_the_first_steps_is_tolerated():
    detector = DivergenceDetector(max_grad_norm_ratio=100.0, min_image_std_ratio=0.01)
    for step, norm in enumerate((1.0, 5000.0, 2.0)):
        detector.check(step, build_metrics(gradient_norm_student=norm))


def test_steps_that_do_not_train_the_student_set_no_norm_to_compare_with():
    detector = DivergenceDetector(max_grad_norm_ratio=100.0, min_image_std_ratio=0.01)
    for step in range(20):
        detector.check(step, build_metrics(gradient_norm_student=0.0))
    for step in range(20, 40):
        detector.check(step, build_metrics())
