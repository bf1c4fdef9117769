"""The private surfaces of Ray that `pipeline.compat` uses."""

import inspect

from ray.train import FailureConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.checkpoint import checkpoint_manager
from ray.train.v2._internal.execution.storage import StorageContext

from pipeline import compat


def test_elastic_training_is_a_range_of_workers():
    assert compat.build_scaling_config(4, 2).num_workers == (2, 4)
    assert compat.build_scaling_config(4, 0, use_gpu=True).num_workers == 4


def test_startup_timeouts_are_limited():
    assert isinstance(compat.build_failure_config(3, 40), FailureConfig)
    assert compat.build_failure_config(3, 40).controller_failure_limit == 40


def test_a_startup_timeout_is_recognised():
    error = Exception()
    assert not compat.is_startup_timeout(error)
    error.controller_failure = WorkerGroupStartupTimeoutError(2)
    assert compat.is_startup_timeout(error)


def test_ray_train_has_a_sigint_handler():
    assert list(inspect.signature(TorchTrainer._register_sigint_handler).parameters) == ["self", "controller"]


def test_the_storage_context_has_the_attributes_used():
    assert "persist_current_checkpoint" in vars(StorageContext)
    source = inspect.getsource(StorageContext)
    assert "storage_filesystem" in source
    assert "experiment_fs_path" in source


def test_the_snapshot_names_its_checkpoints():
    source = inspect.getsource(checkpoint_manager)
    assert compat.CHECKPOINT_NAME in source
