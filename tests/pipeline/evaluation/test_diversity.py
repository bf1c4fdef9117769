"""Diversity: entropies of what a judge sees, and the statistics of colours."""

import math

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.aggregate import compare_with_teacher
from pipeline.evaluation.diversity import add_diversity, build_samples
from pipeline.evaluation.plan import DIVERSITY_SET, System, build_work_units
from pipeline.evaluation.results import EvaluationRow
from pipeline.evaluation.scorers.colour import ColourStatistics
from pipeline.recipe import Evaluation

STUDENT, TEACHER = "student", "teacher, 25 steps, guidance 3"
PROMPT = "a photo of a shape"


def build_rows(system, shapes, colours):
    return [
        EvaluationRow(
            system,
            DIVERSITY_SET,
            PROMPT,
            "",
            seed,
            index=seed,
            shown={"shape": shape, "colour": colour, "background": "red", "quality": "clean"},
        )
        for seed, (shape, colour) in enumerate(zip(shapes, colours, strict=True))
    ]


@pytest.mark.parametrize(
    ("shapes", "entropy"),
    [
        (["star"] * 6, 0.0),
        (["circle", "square", "triangle", "star", "ring", "cross"], 1.0),
        (["star", "star", "star", "ring", "ring", "ring"], math.log(2) / math.log(6)),
    ],
)
def test_the_mean_score_is_the_normalised_entropy(shapes, entropy):
    rows = add_diversity(build_rows(STUDENT, shapes, ["red"] * 6))
    assert np.mean([row.scores["diversity_shape"] for row in rows]) == pytest.approx(entropy)
    assert np.mean([row.scores["diversity"] for row in rows]) == pytest.approx(entropy / 3)


def test_each_system_has_its_own_frequencies_and_other_rows_stay():
    varied = build_rows(TEACHER, ["star", "ring"] * 2, ["red"] * 4)
    other = [EvaluationRow(STUDENT, "held-out", PROMPT, "", 9, shown={"quality": "clean"})]
    rows = add_diversity([*build_rows(STUDENT, ["star"] * 4, ["red"] * 4), *other, *varied])
    assert rows[4] == other[0]
    compared = compare_with_teacher({STUDENT: rows[:5], TEACHER: rows[5:]})
    assert compared["diversity_shape"].student == 0
    assert compared["diversity_shape"].teacher == pytest.approx(math.log(2) / math.log(6))
    assert compared["diversity_shape"].ratio == 0
    assert compared["diversity_shape"].images == 4


def test_without_a_teacher_nothing_is_compared():
    assert compare_with_teacher({STUDENT: [], "teacher, 1 step": []}) == {}


def test_only_systems_that_measure_diversity_sample_its_set():
    samples = build_samples(["a", "b"], 3, 100)
    assert [[(s.prompt, s.seed) for s in group] for group in samples] == [
        [(prompt, seed) for seed in (100, 101, 102)] for prompt in ("a", "b")
    ]
    assert [s.index for group in samples for s in group] == list(range(6))
    systems = [System("measured", "teacher", subset_only=True, measures_diversity=True), System("not", "student")]
    units = build_work_units(Evaluation(teacher_prompts=1), samples, systems, ())
    assert [(unit.system.name, len(unit.samples)) for unit in units] == [("measured", 3), ("measured", 3)]


def test_saturation_and_contrast_of_known_images():
    grey, red = Image.new("RGB", (4, 4), (128, 128, 128)), Image.new("RGB", (4, 4), (200, 0, 0))
    halves = Image.fromarray(np.repeat(np.array([[[0] * 3, [255] * 3]], np.uint8), 4, axis=0))
    scores = ColourStatistics()([grey, red, halves], [""] * 3, [None] * 3)
    assert scores["saturation"] == [0.0, 1.0, 0.0]
    assert scores["contrast"] == pytest.approx([0.0, 0.0, 0.5])
