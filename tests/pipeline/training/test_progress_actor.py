"""Progress lines in the log, with a simulated clock."""

import itertools

import pytest

from pipeline.training import progress_actor
from pipeline.training.progress_actor import ProgressActor, _print_to_log


@pytest.fixture
def clock(monkeypatch):
    times = {"now": 1000.0}
    monkeypatch.setattr(progress_actor.time, "monotonic", lambda: times["now"])
    return times


def simulate_progress(clock, seconds_per_step, steps, duration):
    """Yield progress twice a second; the workers start in the first ten seconds."""
    for half_second in range(2 * duration):
        clock["now"] = 1000.0 + half_second / 2
        step = min(steps, max(0, int((half_second / 2 - 10) / seconds_per_step)))
        yield half_second == 2 * duration - 1, step, f"loss {step}" if step else "starting the workers", []


def test_a_short_run_logs_its_progress_without_repeats(clock, capsys):
    _print_to_log(20, simulate_progress(clock, 1, 20, 40))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("distil: 0 of 20 steps, starting the workers")
    assert lines[1].startswith("distil: 1 of 20 steps")
    assert lines[-1].startswith("distil: 20 of 20 steps")
    assert 5 <= len(lines) <= 7
    assert len(set(lines)) == len(lines)


def test_a_long_run_logs_a_line_every_half_minute(clock, capsys):
    _print_to_log(10_000, simulate_progress(clock, 1, 10_000, 1010))
    lines = capsys.readouterr().err.splitlines()
    assert 1000 / 31 < len(lines) < 1000 / 30 + 7
    steps = [int(line.split()[1]) for line in lines]
    assert all(30 <= b - a <= 31 for a, b in itertools.pairwise(steps[8:-1]))


def test_workers_see_a_stop_request():
    actor = ProgressActor()
    assert not actor.stop_requested()
    actor.request_stop()
    assert actor.stop_requested()
