"""A tracking store that becomes unavailable and recovers."""

import time

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from pipeline import logged_models, tracking
from pipeline.errors import StorageError, TransientError, UserError
from pipeline.evaluation.datasets import RunDataset
from pipeline.logged_models import TrainedStudent
from pipeline.recipe import parse


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_RETRY_SECONDS", 0.01)
    uri = f"sqlite:///{tmp_path}/ml.db"
    return tracking.Tracker(uri, tracking.create_run(uri, "run", {}))


def fail_first_writes(tracker, monkeypatch, failures):
    """Make the first `failures` metric writes fail; return the list of write times."""
    calls, write = [], tracker._client.log_batch

    def log_batch(*args, **options):
        calls.append(time.monotonic())
        if len(calls) <= failures:
            raise ConnectionError("unavailable")
        return write(*args, **options)

    monkeypatch.setattr(tracker._client, "log_batch", log_batch)
    return calls


def test_metrics_of_an_outage_are_written_afterwards(tracker, monkeypatch, caplog):
    calls = fail_first_writes(tracker, monkeypatch, failures=5)
    for step in range(3):
        tracker.log_metrics({"loss": float(step)}, step, 0)
    tracker.finish()
    assert [record.message for record in caplog.records] == [
        "writing to MLflow failed (ConnectionError); training continues and retries"
    ]
    assert len(calls) == 5 + 3
    history = tracker._client.get_metric_history(tracker.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert tracker._client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_long_outage_does_not_block_training(tracker, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.3)
    fail_first_writes(tracker, monkeypatch, failures=10**9)
    started = time.monotonic()
    for step in range(tracking.MAX_PENDING + 10):
        tracker.log_metrics({"loss": 0.0}, step, 0)
    assert time.monotonic() - started < 5
    tracker.flush()
    assert any("writes were dropped" in record.message for record in caplog.records)


def test_system_metrics_are_logged(tracker, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker.watch_node("node_1")
    name, deadline = "system/node_1/cpu_utilization_percentage", time.monotonic() + 20
    while not (metrics := tracker._client.get_run(tracker.run_id).data.metrics) and time.monotonic() < deadline:
        time.sleep(0.1)
    tracker.finish()
    assert 0 <= metrics[name] <= 100


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "tracking-uri: http://127.0.0.1:9 does not answer"),
        ("foo://x", "tracking-uri: foo://x: "),
    ],
)
def test_an_unreachable_store_is_reported_in_one_line(uri, message):
    with pytest.raises(StorageError, match=message) as caught:
        tracking.create_run(uri, "run", {})
    assert "\n" not in str(caught.value)
    with pytest.raises(StorageError):
        tracking.require_reachable(uri)


def test_a_missing_run_is_a_user_error_and_a_failing_store_is_transient(tracker, monkeypatch):
    uri = tracker._client.tracking_uri
    tracking.require_run(uri, tracker.run_id)
    with pytest.raises(UserError, match="has no run") as caught:
        tracking.require_run(uri, "0" * 32)
    assert not isinstance(caught.value, TransientError)

    def fail(*_):
        raise MlflowException("503", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(tracking.MlflowClient, "get_run", fail)
    with pytest.raises(TransientError):
        tracking.require_run(uri, tracker.run_id)


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    uri = f"sqlite:///{tmp_path}/ml.db"
    run = tracking.create_run(uri, "run", {})
    first, second = tracking.Tracker(uri, run), tracking.Tracker(uri, run)
    for step in (10, 20):
        first.log_metrics({"loss": step, "attempt": 0.0}, step, step)
    first.flush()
    second.skip_written("attempt", 0.0)
    for step in (20, 30):
        second.log_metrics({"loss": step, "attempt": 0.0}, step, 100 + step)
    second.skip_written("attempt", 1.0)  # rolled back: other numbers from step 10 on
    second.log_metrics({"loss": 5.0, "attempt": 1.0}, 20, 220)
    second.flush()
    history = tracking.build_client(uri).get_metric_history(run, "loss")
    written = [(metric.step, metric.timestamp) for metric in history]
    assert sorted(written) == [(10, 10), (20, 20), (20, 220), (30, 130)]


def test_a_database_that_is_away_at_the_start_fails_a_write_and_not_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_RETRY_SECONDS", 0.01)
    uri = f"sqlite:///{tmp_path}/ml.db"
    run = tracking.create_run(uri, "run", {})
    build, failures = tracking.build_client, [ConnectionError("away")] * 3

    def build_client(uri):
        if failures:
            raise failures.pop()
        return build(uri)

    monkeypatch.setattr(tracking, "build_client", build_client)
    tracker = tracking.Tracker(uri, run)
    tracker.log_metrics({"loss": 1.0}, 1, 0)
    tracker.finish()
    assert not failures
    assert build(uri).get_run(run).data.metrics == {"loss": 1.0}


@pytest.mark.parametrize("call", ["search_logged_models", "create_logged_model", "log_batch", "log_outputs"])
def test_scores_and_datasets_of_an_outage_are_written_afterwards_and_once(tracker, monkeypatch, call):
    client, failures = tracker._client, [ConnectionError("away")] * 3
    student = TrainedStudent(tracker.run_id, 20, "5" * 64, parse(""))
    original = getattr(client, call)

    def fail(*arguments, **options):
        if failures:
            raise failures.pop()
        return original(*arguments, **options)

    monkeypatch.setattr(client, call, fail)
    dataset = RunDataset("prompts shapes", "ab" * 32, "s3://bucket/prompts", "training", 7)
    started = time.monotonic()
    for _ in range(2):
        tracker.log_datasets([dataset.to_input()])
        tracker.write(lambda client: logged_models.log_scores(client, student, {"eval_a": 0.5}, "held-out", "abc"))
    assert time.monotonic() - started < 1
    tracker.finish()
    run = client.get_run(tracker.run_id)
    assert len(client.search_logged_models([run.info.experiment_id])) == 1
    assert run.data.metrics["eval_a"] == 0.5
    (logged,) = run.inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("prompts shapes", "abababababab")
    assert logged.dataset.source == '{"uri": "s3://bucket/prompts"}'
    assert [tag.value for tag in logged.tags] == ["training"]


def test_a_rejected_write_does_not_hold_up_those_after_it(tracker, caplog):
    tracker.log_metrics({"a name that is: not * allowed": 1.0}, 1, 0)
    tracker.log_metrics({"loss": 1.0}, 1, 0)
    tracker.finish()
    assert tracker._client.get_run(tracker.run_id).data.metrics == {"loss": 1.0}
    assert [record.message.partition(":")[0] for record in caplog.records] == ["MLflow rejected a write"]
