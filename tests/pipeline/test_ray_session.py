import json

import pytest

from pipeline import ray_session


@pytest.mark.parametrize("job_config", [None, "{}", '{"runtime_env": null}', '{"runtime_env": {"env_vars": null}}'])
def test_workers_inherit_the_default_variables(monkeypatch, job_config):
    monkeypatch.delenv(ray_session.IN_JOB, raising=False)
    if job_config:
        monkeypatch.setenv(ray_session.IN_JOB, job_config)
    assert ray_session._collect_variables()["OMP_NUM_THREADS"] == "1"


def test_variables_of_the_submitted_job_are_not_overridden(monkeypatch):
    """Ray rejects a second value for the same variable."""
    submitted = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "8", "X": "y"}}}
    monkeypatch.setenv(ray_session.IN_JOB, json.dumps(submitted))
    variables = ray_session._collect_variables()
    assert "OMP_NUM_THREADS" not in variables
    assert variables["TOKENIZERS_PARALLELISM"] == "false"
