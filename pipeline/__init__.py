"""The pipeline around the method: Ray, DeepSpeed, MLflow and storage."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent  # root of the checkout

ENVIRONMENT = {  # environment variables of a command and its workers; libraries read them at their first import
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # which the next line would turn on; it needs ports of its own
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # so that a request's log line is written at once
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # fewer threads, and gRPC between replicas
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a checkpoint waits for this poll; Ray's default is 2 s
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def apply_environment() -> None:
    """Set the variables of `ENVIRONMENT` that are not set, in the process of a command."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
