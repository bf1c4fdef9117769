"""A tracking store that is away, and comes back."""

import time

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from pipeline import tracking
from pipeline.errors import StorageError, TransientError, UserError


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MAX_RETRY_SECONDS", 0.01)
    uri = f"sqlite:///{tmp_path}/ml.db"
    return tracking.Tracker(uri, tracking.create_run(uri, "run", {}))


def away(tracker, monkeypatch, failures):
    """Writing metrics fails so many times."""
    calls, write = [], tracker._client.log_batch

    def log_batch(*args, **options):
        calls.append(time.monotonic())
        if len(calls) <= failures:
            raise ConnectionError("away")
        return write(*args, **options)

    monkeypatch.setattr(tracker._client, "log_batch", log_batch)
    return calls


def test_what_was_written_while_the_store_was_away_is_there_afterwards(tracker, monkeypatch, caplog):
    calls = away(tracker, monkeypatch, failures=5)
    for step in range(3):
        tracker.log_metrics({"loss": float(step)}, step, 0)
    tracker.finish()
    assert [record.message for record in caplog.records] == [
        "MLflow cannot be written to (ConnectionError); training continues and retries"
    ]
    assert len(calls) == 5 + 3
    history = tracker._client.get_metric_history(tracker.run_id, "loss")
    assert [(entry.step, entry.value) for entry in history] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert tracker._client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_store_that_stays_away_holds_nobody_up(tracker, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.3)
    away(tracker, monkeypatch, failures=10**9)
    started = time.monotonic()
    for step in range(tracking.BUFFERED + 10):
        tracker.log_metrics({"loss": 0.0}, step, 0)
    assert time.monotonic() - started < 5
    tracker.flush()
    assert any("writes are lost" in record.message for record in caplog.records)


def test_the_machine_s_own_figures_are_in_the_run(tracker, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    tracker.watch_machine()
    name, end = "system/cpu_utilization_percentage", time.monotonic() + 20
    while not (found := tracker._client.get_run(tracker.run_id).data.metrics) and time.monotonic() < end:
        time.sleep(0.1)
    tracker.finish()
    assert 0 <= found[name] <= 100


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("http://127.0.0.1:9", "tracking-uri: http://127.0.0.1:9 does not answer"),
        ("foo://x", "tracking-uri: foo://x: "),
    ],
)
def test_a_store_that_is_not_there_is_one_line_at_once(uri, message):
    with pytest.raises(StorageError, match=message) as refused:
        tracking.create_run(uri, "run", {})
    assert "\n" not in str(refused.value)
    with pytest.raises(StorageError):
        tracking.require_reachable(uri)


def test_a_run_that_is_not_there_is_a_mistake_and_a_store_that_fails_is_none(tracker, monkeypatch):
    uri = tracker._client.tracking_uri
    tracking.require_run(uri, tracker.run_id)
    with pytest.raises(UserError, match="has no run") as refused:
        tracking.require_run(uri, "0" * 32)
    assert not isinstance(refused.value, TransientError)

    def fail(*_):
        raise MlflowException("503", error_code=TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(tracking.MlflowClient, "get_run", fail)
    with pytest.raises(TransientError):
        tracking.require_run(uri, tracker.run_id)


def test_a_run_that_continues_writes_no_step_twice(tmp_path):
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
    found = [(metric.step, metric.timestamp) for metric in history]
    assert sorted(found) == [(10, 10), (20, 20), (20, 220), (30, 130)]
