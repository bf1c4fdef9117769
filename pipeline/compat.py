"""Wrappers of Ray APIs that are private or untyped; tests/pipeline/test_compat.py tests each."""

from typing import Any

from pyarrow import fs
from ray.train import Checkpoint, FailureConfig, ScalingConfig
from ray.train.torch import TorchTrainer

SNAPSHOT_FILE = "checkpoint_manager_snapshot.json"  # Ray Train's list of the checkpoints that it keeps
CHECKPOINT_PREFIX = "checkpoint_"  # name of Ray Train's checkpoint folders
CHECKPOINT_NAME = "checkpoint_dir_name"  # the key of a checkpoint's folder in the snapshot


def build_scaling_config(num_workers: int, min_workers: int, **options: Any) -> ScalingConfig:
    """Return Ray Train's scaling config; with `min_workers` above 0 training is elastic, from that to `num_workers`."""
    workers: Any = (min_workers, num_workers) if min_workers else num_workers
    return ScalingConfig(num_workers=workers, **options)


def build_failure_config(max_failures: int, max_startup_timeouts: int) -> FailureConfig:
    """Return Ray Train's failure handling; each minute without resources counts as a startup timeout."""
    make: Any = FailureConfig
    config: FailureConfig = make(max_failures=max_failures, controller_failure_limit=max_startup_timeouts)
    return config


def is_startup_timeout(error: Exception) -> bool:
    """Tell whether training failed because the cluster had no resources for its workers."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def register_sigint_handler(trainer: TorchTrainer, controller: Any) -> None:
    """Install Ray Train's SIGINT handler, which kills the workers."""
    trainer_class: Any = TorchTrainer
    trainer_class._register_sigint_handler(trainer, controller)


def persist_checkpoint(storage: Any, local: Checkpoint, name: str) -> Checkpoint:
    """Upload a checkpoint to the storage of the training run."""
    persisted: Checkpoint = storage.persist_current_checkpoint(local, name)
    return persisted


def run_storage(storage: Any) -> tuple[fs.FileSystem, str]:
    """Return the file system and the path of the training run's storage."""
    return storage.storage_filesystem, storage.experiment_fs_path
