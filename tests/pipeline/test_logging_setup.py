"""Log records carry rank, run and step; importing configures nothing."""

import json
import logging
import os
import subprocess
import sys

import pytest

from pipeline import ROOT, logging_setup


@pytest.fixture
def logger():
    yield logging.getLogger("pipeline.test")
    logging_setup._context.set({})
    for name in logging_setup._LOGGERS:
        logging.getLogger(name).handlers = []


def test_a_text_record_names_rank_and_step(logger, capsys):
    logging_setup.configure("text")
    logging_setup.set_context(rank=1)
    logging_setup.set_context(step=12)
    logger.warning("MLflow does not answer")
    assert capsys.readouterr().err == "WARNING [rank 1, step 12] MLflow does not answer\n"


def test_a_json_record_is_one_line(logger, capsys, monkeypatch):
    monkeypatch.setenv(logging_setup.FORMAT_VARIABLE, "json")
    logging_setup.configure()
    logging_setup.configure()
    logging_setup.set_context(rank=0, run="abc", step=3)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("a step failed")
    (line,) = capsys.readouterr().err.splitlines()
    record = json.loads(line)
    assert (record["level"], record["logger"], record["message"]) == ("ERROR", "pipeline.test", "a step failed")
    assert (record["rank"], record["run"], record["step"]) == (0, "abc", 3)
    assert "ValueError: broken" in record["exception"]


IMPORTS = """
import logging, os
before = dict(os.environ)
import pipeline, pipeline.tracking, pipeline.remote_errors, pipeline.models, pipeline.ray_session
changed = [n for n in os.environ if n not in before and n.startswith(("MLFLOW", "TOKENIZERS", "TRANSFORMERS"))]
assert not changed, changed
for name in ("ray.data", "ray.train", "mlflow.store.db", "mlflow.system_metrics", "ray.data.exceptions"):
    assert logging.getLogger(name).level < logging.WARNING, name
assert not logging.getLogger("pipeline").handlers
"""


def test_extra_values_are_in_a_json_record(logger, capsys):
    logging_setup.configure("json")
    logger.info("images", extra={"status": 200, "seconds": 0.5})
    record = json.loads(capsys.readouterr().err)
    assert record.keys() == {"time", "level", "logger", "message", "status", "seconds"}
    assert (record["message"], record["status"], record["seconds"]) == ("images", 200, 0.5)


def test_importing_sets_no_environment_variable_and_silences_no_logger():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY"):
        environment.pop(name, None)
    result = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
