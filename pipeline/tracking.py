"""MLflow as a place to write to that may be away: a tracking outage never ends a training run."""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from pipeline import ROOT
from pipeline.errors import UserError

EXPERIMENT = "nasa-distill"
logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it tells of every table that it makes


def default_uri() -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file in the checkout's `runs` folder."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    (ROOT / "runs").mkdir(exist_ok=True)
    return f"sqlite:///{ROOT / 'runs' / 'mlflow.db'}"


def client(uri: str) -> MlflowClient:
    mlflow.set_tracking_uri(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def require_run(uri: str, run_id: str) -> None:
    """Refuse, in one line, a tracking store that does not hold this run."""
    try:
        client(uri).get_run(run_id)
    except MlflowException as error:
        raise UserError(f"tracking-uri: {uri} has no run {run_id}: {error.message}") from error


def create_run(uri: str, name: str, params: Mapping[str, Any]) -> str:
    """A new run's id; made in the driver, written to by rank 0, so that a restart appends to it."""
    tracker = client(uri)
    experiment = tracker.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        local = uri.startswith("sqlite:///")
        place = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri() if local else None
        experiment_id = tracker.create_experiment(EXPERIMENT, artifact_location=place)
    else:
        experiment_id = experiment.experiment_id
    run = tracker.create_run(experiment_id, run_name=name)
    tracker.log_batch(run.info.run_id, params=[Param(key, str(value)[:500]) for key, value in params.items()])
    run_id: str = run.info.run_id
    return run_id


class Tracker:
    """Writes to one MLflow run; what cannot be written is said once and dropped."""

    def __init__(self, uri: str, run_id: str) -> None:
        self.run_id = run_id
        self._client = client(uri)
        self._lost = False

    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        entries = [Metric(name, float(value), timestamp_ms, step) for name, value in values.items()]
        self._try(lambda: self._client.log_batch(self.run_id, metrics=entries))

    def tags(self, values: Mapping[str, str]) -> None:
        self._try(lambda: self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in values.items()]))

    def image(self, image: Image.Image, key: str, step: int) -> None:
        self._try(lambda: self._client.log_image(self.run_id, image, key=key, step=step))

    def file(self, path: Path, folder: str = "") -> None:
        self._try(lambda: self._client.log_artifact(self.run_id, str(path), folder or None))

    def finish(self, status: str = "FINISHED") -> None:
        self._try(lambda: self._client.set_terminated(self.run_id, status))

    def _try(self, write: Any) -> None:
        try:
            write()
        except Exception as error:  # any failure of the store or the network, by design
            if not self._lost:
                warnings.warn(f"MLflow cannot be written to ({type(error).__name__}); going on", stacklevel=3)
            self._lost = True
