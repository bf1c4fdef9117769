import math

import pytest

from pipeline.training.divergence import DivergedError, DivergenceDetector


def metrics(**changes):
    plain = {"loss_student": 0.1, "gradient_norm_student": 1.0, "image_variation": 2.0}
    return plain | changes


def seen(**changes):
    guard = DivergenceDetector(max_grad_norm_ratio=100.0, min_image_std_ratio=0.01)
    for step in range(20):
        guard.check(step, metrics())
    guard.check(20, metrics(**changes))


@pytest.mark.parametrize("changes", [{}, {"gradient_norm_student": 99.0}, {"image_variation": 0.021}])
def test_what_is_within_bounds_goes_on(changes):
    seen(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_student": math.nan}, "step 21: loss_student is nan"),
        ({"gradient_norm_student": math.inf}, "step 21: gradient_norm_student is inf"),
        ({"gradient_norm_student": 101.0}, "step 21: gradient_norm_student is 101, more than 100 times its median 1"),
        ({"image_variation": 0.019}, "step 21: image_variation is 0.019, less than 1% of its first 2: the images"),
    ],
)
def test_what_is_not_is_one_line(changes, message):
    with pytest.raises(DivergedError, match=message):
        seen(**changes)


def test_the_first_steps_may_be_wild():
    guard = DivergenceDetector(max_grad_norm_ratio=100.0, min_image_std_ratio=0.01)
    for step, norm in enumerate((1.0, 5000.0, 2.0)):
        guard.check(step, metrics(gradient_norm_student=norm))
