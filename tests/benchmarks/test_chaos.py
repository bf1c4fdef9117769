"""The table of chaos runs, and each scenario once (slow)."""

import json
import subprocess
import sys

import pytest

from benchmarks.chaos import scenarios
from benchmarks.chaos.__main__ import DEFAULT_SECONDS, format_table, longest_seconds
from benchmarks.chaos.scenarios import SCENARIOS, run_scenario
from pipeline import ROOT


def build_row(scenario, same=True, seconds=10.0, times=1):
    return {"scenario": scenario, "same": same, "seconds": seconds, "notes": ["then"] * times}


def test_the_table_has_every_scenario_even_one_that_never_ran():
    lines = format_table(
        [build_row("worker"), build_row("worker", seconds=20, times=5), build_row("worker", same=False, seconds=60)]
    ).splitlines()
    assert len(lines) == 2 + len(SCENARIOS)
    assert "| worker | 7 | 3 | 2 | 20 | 60 |" in lines
    assert "| driver | 0 | 0 | 0 | - | - |" in lines


def test_the_table_in_the_docs_shows_the_recorded_results():
    rows = [json.loads(line) for line in (ROOT / "docs/data/chaos.jsonl").read_text().splitlines()]
    assert all(row["same"] for row in rows)
    assert format_table(rows) in (ROOT / "docs/runbook.md").read_text()


def test_a_scenario_is_expected_to_take_as_long_as_its_longest_run():
    rows = [build_row("worker", seconds=100), build_row("worker", seconds=700), build_row("driver", seconds=20)]
    assert [longest_seconds(rows, name) for name in ("worker", "driver", "head")] == [700, 20, DEFAULT_SECONDS]


@pytest.mark.parametrize(
    "error", [AssertionError("other weights"), TimeoutError("other weights"), subprocess.TimeoutExpired("x", 1)]
)
def test_a_failed_scenario_is_reported(monkeypatch, error):
    def fail(_):
        raise error

    monkeypatch.setitem(scenarios.SCENARIOS, "worker", (fail, 1))
    assert run_scenario("worker", None) == (False, [str(error)])


def test_a_failed_result_sets_the_exit_code(tmp_path):
    results = tmp_path / "chaos.jsonl"
    for same, code in ((True, 0), (False, 1)):
        results.write_text(json.dumps(build_row("head", same)) + "\n")
        assert _run_chaos("--table", "--results", str(results)).returncode == code


@pytest.mark.slow
def test_each_scenario_passes(tmp_path):
    results = tmp_path / "chaos.jsonl"
    result = _run_chaos("--runs", "1", "--minutes", "120", "--results", str(results))
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert result.returncode == 0, result.stdout
    assert {row["scenario"] for row in rows} == set(SCENARIOS)


def _run_chaos(*arguments):
    command = [sys.executable, "-m", "benchmarks.chaos", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * 3600, check=False)
