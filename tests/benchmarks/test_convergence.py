"""The statistics of the convergence benchmark."""

import math

import pytest
from PIL import Image

from benchmarks import frontier
from benchmarks.convergence import find_seconds_to, format_table
from benchmarks.toy_students import BASE, compute_normalised_entropy
from pipeline import recipe


@pytest.mark.parametrize(
    ("values", "num_values", "expected"),
    [
        (["a", "b", "c", "d"] * 5, 4, 1.0),
        (["a"] * 7, 4, 0.0),
        (["a", "b"], 4, 0.5),
        (["a"] * 3 + ["b"], 2, -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))),
    ],
)
def test_entropy_is_one_for_equally_frequent_values_and_zero_for_a_single_one(values, num_values, expected):
    assert compute_normalised_entropy(values, num_values) == pytest.approx(expected)


def build_curve(*points):
    return [{"seconds": seconds, "clean_and_right": accuracy} for seconds, accuracy in points]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (build_curve((10, 0.2), (20, 0.6), (30, 0.9)), 20 + 10 / 3),
        (build_curve((10, 0.8)), 8.75),
        (build_curve((10, 0.2), (20, 0.7), (30, 0.1)), 20),
        (build_curve((10, 0.2), (20, 0.69)), math.inf),
    ],
)
def test_the_time_to_an_accuracy_is_interpolated(curve, expected):
    assert find_seconds_to(curve, 0.7) == pytest.approx(expected)


def test_the_table_has_one_row_per_lever_with_its_median_and_range():
    rows = [
        {
            "lever": lever,
            "curve": build_curve((10, accuracy)),
            "removed": 0.9,
            "kept": 1.0,
            "diversity": {"shape": 0.5, "colour": 0.6, "background": accuracy},
        }
        for lever, accuracy in (("one", 0.8), ("one", 0.9), ("one", 1.0), ("two", 0.1))
    ]
    lines = format_table(rows).splitlines()
    assert lines[2].startswith("| one | 3 | 8 (7 to 9) | 0.90 (0.80 to 1.00) | 0.900 (0.900 to 0.900) |")
    assert lines[2].endswith("| 0.50, 0.60, 0.90 |")
    assert lines[3].startswith("| two | 1 | inf (inf to inf) |")


def test_every_lever_of_the_frontier_changes_the_recipe_s_training():
    configured = [recipe.load(BASE, overrides) for overrides in frontier.LEVERS.values()]
    assert configured[0] == recipe.load(BASE)
    assert len({recipe.dump(options) for options in configured}) == len(configured)


def test_the_last_lever_of_the_frontier_is_the_demo_s_recipe():
    *_, last = frontier.LEVERS.values()
    demo = recipe.load("shapes")
    assert recipe.load(BASE, [*last, f"train.steps={demo.train.steps}"]) == demo


def test_the_frontier_shows_each_student_by_its_diversity_and_last_accuracy(tmp_path):
    rows = [
        {"lever": name, "curve": build_curve((10, 0.1), (20, accuracy)), "diversity": {"shape": shape}}
        for name, accuracy, shape in (("one", 0.8, 0.5), ("one", 0.9, 0.6), ("two", 0.7, 0.9))
    ]
    assert [frontier.locate(row) for row in rows] == [(0.5, 80.0), (0.6, 90.0), (0.9, 70.0)]
    frontier.draw(rows, tmp_path / "out/frontier.png")
    assert Image.open(tmp_path / "out/frontier.png").width == 1000
