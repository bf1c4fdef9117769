"""The expected curves: those that come with the recipe `shapes`, their figure, and where a run shows it."""

import logging

import numpy as np
import pytest
from mlflow.entities import Metric

from benchmarks.expected_curves import TRAINING, build_band
from pipeline import tracking
from pipeline.evaluation import evaluate
from pipeline.evaluation.evaluate import EvaluatedStudent
from pipeline.evaluation.results import MetricSummary, Summary
from pipeline.expected_curves import Band, ExpectedCurves, draw_expected_curves, read_expected_curves
from pipeline.recipe import load, parse
from pipeline.storage import Folder
from pipeline.training.progress_reporter import LOG_EVERY_N_STEPS, ProgressReporter
from pipeline.training.prometheus import GAUGES

SHAPES = load("shapes")
EXPECTED = read_expected_curves(SHAPES)
ORANGE = (0xC2, 0x41, 0x0C)


def count_orange(image):
    return int((np.abs(np.asarray(image).astype(int) - ORANGE).sum(-1) < 30).sum())


def test_the_demo_s_curves_cover_the_whole_run():
    assert EXPECTED.seeds >= 6
    assert set(EXPECTED.bands) == {*TRAINING, "clean_and_right", *(f"diversity_{a}" for a in DIVERSITY)}
    assert set(TRAINING) <= set(GAUGES)
    for name, band in EXPECTED.bands.items():
        assert band.steps[-1] == SHAPES.train.steps, name
        assert all(low <= middle <= high for low, middle, high in zip(band.low, band.median, band.high, strict=True))
        assert name not in TRAINING or band.steps == tuple(range(10, SHAPES.train.steps + 1, LOG_EVERY_N_STEPS))


DIVERSITY = ("shape", "colour", "background")


@pytest.mark.parametrize("overrides", [["name=mine"], ["teacher=/models/sd"]])
def test_another_recipe_or_teacher_has_no_curves(overrides):
    assert read_expected_curves(load("shapes", overrides)) is None


@pytest.fixture
def expected():
    band = Band(steps=(10, 20), low=(0.0, 1.0), median=(1.0, 2.0), high=(2.0, 3.0))
    return ExpectedCurves(seeds=2, command="", bands=dict.fromkeys(("one", "two", "three", "four", "five"), band))


def test_a_run_is_drawn_over_the_bands(expected):
    empty, curve = draw_expected_curves(SHAPES, expected, {}), {"one": [(10, 1.0), (20, 2.5)]}
    assert count_orange(empty) == 0
    drawn = draw_expected_curves(SHAPES, expected, curve)
    assert drawn.size == empty.size
    assert count_orange(drawn) > count_orange(draw_expected_curves(SHAPES, expected, {"two": [(20, 2.5)]})) > 20
    assert count_orange(draw_expected_curves(SHAPES, expected, {"unknown": [(10, 1.0)]})) == 0


def test_a_band_holds_all_seeds_and_the_steps_around():
    curves = [[(10, 1.0), (20, 5.0), (30, 3.0)], [(10, 2.0), (20, 0.0), (30, 4.0)]]
    exact, wide = build_band(curves, 0), build_band(curves, 1)
    assert (exact.low, exact.median, exact.high) == ((1, 0, 3), (1.5, 2.5, 3.5), (2, 5, 4))
    assert (wide.steps, wide.low, wide.high) == ((10, 20, 30), (0, 0, 0), (5, 5, 5))


class FakeTracker:
    """A tracker that keeps the images."""

    run_id, num_pending = "run", 0

    def __init__(self):
        self.images = []

    def skip_written(self, *_):
        pass

    def log_metrics(self, *_):
        pass

    def log_image(self, image, *, key, step):
        self.images.append((key, step, image))


class FakeActor:
    """A progress actor that takes everything."""

    def __getattr__(self, name):
        return self

    def remote(self, *_):
        pass


@pytest.mark.parametrize(("recipe", "logged"), [(SHAPES, True), (parse("", ["name=mine"]), False)])
def test_training_logs_its_curves_over_the_bands(recipe, logged):
    tracker = FakeTracker()
    reporter = ProgressReporter(tracker, FakeActor(), recipe, 0)
    for step in range(20):
        reporter.update(step, {"loss_student": 0.1, "loss_lora_teacher": 0.2}, 0.0)
    reporter.log_curves(20)
    assert [(key, step) for key, step, _ in tracker.images] == ([("expected_curves", 20)] if logged else [])
    assert all(count_orange(image) > 20 for *_, image in tracker.images)


@pytest.fixture
def subject(tmp_path):
    uri = f"sqlite:///{tmp_path}/ml.db"
    run = tracking.create_run(uri, "test", {})
    with tracking.open_client(uri) as client:
        client.log_batch(run, [Metric("loss_student", 0.1 * step, step, step) for step in (20, 10)])
        client.log_batch(run, [Metric("loss_student", 0.5, 999, 10)])  # after a rollback
    return EvaluatedStudent(Folder.from_uri(tmp_path), "s", "t", run, 220, SHAPES), uri


def test_the_curves_of_a_run_are_those_of_its_last_attempt(subject):
    student, uri = subject
    curves = tracking.read_curves(uri, student.mlflow_run, ["loss_student", "loss_clip"])
    assert curves == {"loss_student": [(10, 0.5), (20, 2.0)]}


def test_the_evaluation_draws_the_training_s_curves_unless_mlflow_is_away(subject, caplog):
    student, uri = subject
    summary = Summary.model_construct(metrics={"clean_and_right": MetricSummary.model_construct(value=0.9)})
    png = evaluate._draw_curves(student, SHAPES, summary, uri)
    assert png.startswith(b"\x89PNG")
    with caplog.at_level(logging.WARNING):
        assert evaluate._draw_curves(student, SHAPES, summary, "http://127.0.0.1:9") == b""
    assert "the report has no curves of training: tracking-uri: http://127.0.0.1:9 does not answer" in caplog.text
    assert evaluate._draw_curves(student, parse("", ["name=mine"]), summary, uri) == b""
