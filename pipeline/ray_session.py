"""A Ray session for the duration of a command: the cluster that is given, or a small local one."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.data

from pipeline import ENVIRONMENT, ROOT, logging_setup
from pipeline.errors import IN_JOB

LEAST_CPUS = 4  # logical CPUs: two train workers share two cores with their data tasks


@contextmanager
def start_ray_session(
    address: str | None = None, least_cpus: int = LEAST_CPUS, metrics_port: int | None = None
) -> Iterator[None]:
    """Join the cluster at `address`, or start a local one with at least `least_cpus` logical CPUs.

    A local one exports Prometheus metrics at `metrics_port`, by default at a random port.

    A session that is already open (a test's, a notebook's) is used and left open.
    """
    if ray.is_initialized():
        yield
        return
    _configure_output()
    local: dict[str, Any] = {"num_cpus": max(least_cpus, os.cpu_count() or 1), "include_dashboard": False}
    if metrics_port:
        local["_metrics_export_port"] = metrics_port
    ray.init(
        address=address or "local",
        runtime_env={"env_vars": _collect_variables()},
        logging_level=logging.ERROR,
        log_to_driver=False,
        **({} if address else local),
    )
    try:
        yield
    finally:
        ray.shutdown()


def _collect_variables() -> dict[str, str]:
    """Return the environment variables of all workers; those of the submitted job win, as Ray rejects duplicates."""
    variables = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if log_format := os.environ.get(logging_setup.FORMAT_VARIABLE):
        variables[logging_setup.FORMAT_VARIABLE] = log_format
    given = get_submitted_environment().get("env_vars") or {}
    return {name: value for name, value in variables.items() if name not in given}


def get_submitted_environment() -> dict[str, Any]:
    """Return the runtime environment that this job was submitted with; empty outside a job."""
    config = json.loads(os.environ.get(IN_JOB) or "{}")
    return dict(config.get("runtime_env") or {})


def _configure_output() -> None:
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging_setup.configure()
