"""A Ray session for the duration of a command: the cluster that is given, or a small local one."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DS_LOG_LEVEL": "error",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Join the cluster at `address`, or start a local one with two processors' worth of room.

    A session that is already open (a test's, a notebook's) is used and left open.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for noisy in ("ray.data", "ray.train"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    worker_env = {**_QUIET, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    room = {} if address else {"num_cpus": max(4, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(
        address=address or "local",
        runtime_env={"env_vars": worker_env},
        logging_level=logging.ERROR,
        log_to_driver=False,
        **room,
    )
    try:
        yield
    finally:
        ray.shutdown()
