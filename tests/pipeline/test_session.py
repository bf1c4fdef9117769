import json

import pytest

from pipeline import session


@pytest.mark.parametrize("told", [None, "{}", '{"runtime_env": null}', '{"runtime_env": {"env_vars": null}}'])
def test_workers_have_our_variables(monkeypatch, told):
    monkeypatch.delenv(session.IN_JOB, raising=False)
    if told:
        monkeypatch.setenv(session.IN_JOB, told)
    assert session._collect_variables()["OMP_NUM_THREADS"] == "1"


def test_what_a_job_was_submitted_with_is_not_told_again(monkeypatch):
    """Ray refuses the same name with another value."""
    submitted = {"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "8", "X": "y"}}}
    monkeypatch.setenv(session.IN_JOB, json.dumps(submitted))
    variables = session._collect_variables()
    assert "OMP_NUM_THREADS" not in variables
    assert variables["TOKENIZERS_PARALLELISM"] == "false"
