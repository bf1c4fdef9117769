"""The MLflow tracker, which buffers writes: a tracking outage never ends a training run."""

import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import mlflow
from mlflow.entities import DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient
from mlflow.tracking.context import registry as context_registry
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from PIL import Image

from pipeline import ROOT
from pipeline.errors import StorageError, UserError, get_first_line
from pipeline.redaction import redact
from pipeline.retry import iter_backoff_seconds

EXPERIMENT = "nasa-distill"
KIND, TRAINING = (
    "mlflow.experimentKind",
    "custom_model_development",
)  # MLflow shows the pages of training, not of agents
MAX_PENDING = 1000  # writes, while the server is unavailable
MAX_RETRY_SECONDS = 10.0
FLUSH_SECONDS = 20
REACH_SECONDS = 10
REJECTED = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS")  # errors that another try meets again
logger = logging.getLogger(__name__)


def get_default_uri() -> str:
    """Return MLFLOW_TRACKING_URI, or the URI of a sqlite file in the checkout's `runs` folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    (ROOT / "runs").mkdir(exist_ok=True)
    return f"sqlite:///{ROOT / 'runs' / 'mlflow.db'}"


def build_client(uri: str) -> MlflowClient:
    """Return an MLflow client."""
    mlflow.set_tracking_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def open_client(uri: str) -> Iterator[MlflowClient]:
    """Yield a client; an MLflow error inside the context becomes a StorageError of one line.

    A server is contacted first, since MLflow retries an unreachable one for minutes.
    """
    if uri.startswith(("http://", "https://")):
        _reach(uri)
    try:
        mlflow_client = build_client(uri)
    except (MlflowException, OSError) as error:
        raise StorageError(f"tracking-uri: {uri}: {get_first_line(error)}") from error
    try:
        yield mlflow_client
    except MlflowException as error:
        raise StorageError(f"tracking-uri: {uri}: {get_first_line(error)}") from error


def _reach(uri: str) -> None:
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the server answers; MLflow reports the error
    except (OSError, ValueError) as error:
        raise StorageError(f"tracking-uri: {uri} does not answer ({get_first_line(error)})") from error


def require_reachable(uri: str) -> None:
    """Raise a StorageError if the tracking store is unreachable."""
    with open_client(uri):
        pass


def require_run(uri: str, run_id: str) -> None:
    """Raise a UserError if the tracking store does not hold this run."""
    with open_client(uri) as tracker:
        try:
            tracker.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise UserError(f"tracking-uri: {uri} has no run {run_id}: {error.message}") from error


def read_curves(uri: str, run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """Return the values by step of a run's metrics, of the last attempt if a step was logged twice.

    Raises:
        StorageError: if the tracking store does not answer, or has no such run.
    """
    with open_client(uri) as tracker:
        histories = {name: tracker.get_metric_history(run_id, name) for name in names}
    return {
        name: sorted({each.step: each.value for each in sorted(history, key=lambda each: each.timestamp)}.items())
        for name, history in histories.items()
        if history
    }


def create_run(
    uri: str, name: str, params: Mapping[str, object], note: str = "", tags: Mapping[str, str] | None = None
) -> str:
    """Create a run in the driver and return its id; rank 0 appends to it, also after a restart.

    `note` is the run's description, in Markdown. The user is who is logged in here, as in MLflow's own runs.
    """
    with open_client(uri) as tracker:
        experiment_id = _get_or_create_experiment(tracker, uri)
        all_tags = {**context_registry.resolve_tags(dict(tags or {})), **({MLFLOW_RUN_NOTE: note} if note else {})}
        run_id: str = tracker.create_run(experiment_id, run_name=name, tags=all_tags).info.run_id
        tracker.log_batch(run_id, params=[Param(key, str(value)[:500]) for key, value in params.items()])
    return run_id


def _get_or_create_experiment(tracker: MlflowClient, uri: str) -> str:
    """Return the id of this project's experiment, creating it if needed."""
    if experiment := tracker.get_experiment_by_name(EXPERIMENT):
        if KIND not in experiment.tags:
            tracker.set_experiment_tag(experiment.experiment_id, KIND, TRAINING)
        return str(experiment.experiment_id)
    local = uri.startswith("sqlite:///")
    location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri() if local else None
    return str(tracker.create_experiment(EXPERIMENT, artifact_location=location, tags={KIND: TRAINING}))


class Tracker:
    """Writes to one MLflow run from a separate thread; failed writes are retried.

    An unavailable store is logged once, and training never waits for it. Writes that are still pending at the end are
    dropped after `FLUSH_SECONDS`, and counted. A write that the store rejects is dropped and logged.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.run_id, self._uri = run_id, uri
        self._pending: queue.Queue[Callable[[], object]] = queue.Queue(MAX_PENDING)
        self._lost = 0
        self._last_logged_step = -1  # logged by an earlier process of this run
        threading.Thread(target=self._run_writer, daemon=True).start()

    @cached_property
    def _client(self) -> MlflowClient:
        """The client, made in the writer's thread: a database that is away fails a write, not the training."""
        return build_client(self._uri)

    @property
    def num_pending(self) -> int:
        """The writes that wait for the store."""
        return self._pending.unfinished_tasks

    def log_metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """Log metrics of a step."""
        entries = [Metric(name, float(value), timestamp_ms, step) for name, value in values.items()]

        def write() -> None:
            if step > self._last_logged_step:
                self._client.log_batch(self.run_id, metrics=entries)

        self._enqueue(write)

    def skip_written(self, name: str, value: float) -> None:
        """Skip steps that are logged already with this value of `name`: a resumed run computes some steps twice."""

        def read() -> None:
            written = self._client.get_metric_history(self.run_id, name)
            self._last_logged_step = max((metric.step for metric in written if metric.value == value), default=-1)

        self._enqueue(read)

    def write(self, write: Callable[[MlflowClient], object]) -> None:
        """Call a function with the client, after the writes before it; it is called again until it succeeds."""
        self._enqueue(lambda: write(self._client))

    def log_datasets(self, inputs: Sequence[DatasetInput]) -> None:
        """Log datasets as inputs of the run; MLflow skips those that it has."""
        self._enqueue(lambda: self._client.log_inputs(self.run_id, datasets=list(inputs)))

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._enqueue(lambda: self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()]))

    def log_image(self, image: Image.Image, key: str, step: int) -> None:
        """Log an image of a step."""
        self._enqueue(lambda: self._client.log_image(self.run_id, image, key=key, step=step, synchronous=True))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact."""
        self._enqueue(lambda: self._client.log_artifact(self.run_id, str(path), folder or None))

    def watch_node(self, node: str) -> None:
        """Log MLflow's system metrics of this node as `system/NODE/...`, every ten seconds while the store answers."""

        def start() -> None:
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, node_id=node, tracking_uri=self._uri)
            self._monitor.start()

        self._enqueue(start)

    def finish(self, status: str = "FINISHED") -> None:
        """Set the run's final status and wait for pending writes."""
        self._enqueue(lambda: self._client.set_terminated(self.run_id, status))
        self.flush()

    def flush(self) -> None:
        """Wait at most `FLUSH_SECONDS` for pending writes."""
        end = time.monotonic() + FLUSH_SECONDS
        while self._pending.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.02)
        lost = self._lost + self._pending.unfinished_tasks
        if lost:
            logger.warning("MLflow at %s: %d writes were dropped", redact(self._uri), lost)

    def _enqueue(self, write: Callable[[], object]) -> None:
        try:
            self._pending.put_nowait(write)
        except queue.Full:
            self._lost += 1

    def _run_writer(self) -> None:
        reported = False
        while True:
            write = self._pending.get()
            for delay in iter_backoff_seconds(max_delay=MAX_RETRY_SECONDS):
                try:
                    write()
                    break
                except Exception as error:  # any failure of the store or the network, by design
                    if isinstance(error, MlflowException) and error.error_code in REJECTED:
                        logger.warning("MLflow rejected a write: %s", redact(get_first_line(error)))
                        break
                    if not reported:
                        logger.warning(
                            "writing to MLflow failed (%s); training continues and retries", type(error).__name__
                        )
                    reported = True
                    time.sleep(delay)
            self._pending.task_done()
