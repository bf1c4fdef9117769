"""Logged models: one for each student of a run, found by metric and step, and linked to its registered version."""

import json
from dataclasses import replace

import pytest
from mlflow.entities import LoggedModelStatus

from pipeline import logged_models, tracking
from pipeline.logged_models import TrainedStudent
from pipeline.recipe import parse


@pytest.fixture
def student(uri):
    return TrainedStudent(
        tracking.create_run(uri, "tiny", {}), 20, "5" * 64, parse("", ["name='tiny.v2'", "train.batch_size=8"])
    )


def search(client, student, **options):
    experiment = client.get_run(student.mlflow_run).info.experiment_id
    return list(client.search_logged_models([experiment], **options))


def test_a_resumed_run_makes_no_second_logged_model_for_a_step(client, student):
    for _ in range(2):
        logged_models.log_scores(client, student, {"eval_quality": 0.5}, "held-out", "abc")
    (model,) = search(client, student)
    assert (model.name, model.status) == ("tiny-v2-step-20", LoggedModelStatus.READY)
    assert model.source_run_id == student.mlflow_run
    assert model.tags["student_sha256"] == student.student_sha256
    assert model.params == {"step": "20", "recipe": "tiny.v2", "train.batch_size": "8"}
    scores = {(metric.key, metric.value, metric.dataset_name, metric.dataset_digest) for metric in model.metrics}
    assert scores == {("eval_quality", 0.5, "held-out", "abc"), ("step", 20.0, "held-out", "abc")}
    assert len(model.metrics) == len(client.get_metric_history(student.mlflow_run, "eval_quality")) + 1
    outputs = client.get_run(student.mlflow_run).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(model.model_id, 20)]


def test_a_second_evaluation_replaces_the_score(client, student):
    for value in (0.5, 0.75):
        logged_models.log_scores(client, student, {"eval_quality": value}, "held-out", "abc")
    (model,) = search(client, student, filter_string="metrics.eval_quality > 0.7")
    assert {metric.value for metric in model.metrics if metric.key == "eval_quality"} == {0.5, 0.75}


def test_students_are_ordered_by_a_metric_and_filtered_by_step(client, student):
    for step, quality in ((10, 0.7), (20, 0.9), (30, 0.8)):
        other = replace(student, step=step, student_sha256=str(step) * 32)
        logged_models.log_scores(client, other, {"eval_quality": quality}, "held-out", "abc")
    best_first = [{"field_name": "metrics.eval_quality", "ascending": False, "dataset_name": "held-out"}]
    assert [model.tags["step"] for model in search(client, student, order_by=best_first)] == ["20", "30", "10"]
    late = search(client, student, filter_string="metrics.step > 10", order_by=best_first)
    assert [model.tags["step"] for model in late] == ["20", "30"]
    assert len(search(client, student, filter_string="params.step = '10'")) == 1


def test_an_interrupted_creation_is_completed(client, student, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(type(client), "finalize_logged_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logged_models.ensure(client, student)
    logged_models.ensure(client, student)
    (model,) = search(client, student)
    assert model.status == LoggedModelStatus.READY
    assert client.get_run(student.mlflow_run).outputs.model_outputs


def test_of_two_processes_the_older_logged_model_stays(client, student, monkeypatch):
    first = logged_models.ensure(client, student)
    find, answers = logged_models.find, [None]
    monkeypatch.setattr(logged_models, "find", lambda *given: answers.pop() if answers else find(*given))
    assert logged_models.ensure(client, student) == first
    assert len(search(client, student)) == 1


def test_a_version_is_linked_once(client, student):
    model_id = logged_models.ensure(client, student)
    for version in ("1", "1", "2"):
        logged_models.link_version(client, model_id, "nasa-tiny", version)
    linked = json.loads(client.get_logged_model(model_id).tags["mlflow.modelVersions"])
    assert linked == [{"name": "nasa-tiny", "version": 1}, {"name": "nasa-tiny", "version": 2}]
