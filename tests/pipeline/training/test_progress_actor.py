"""What a log shows of a run's progress, by a clock of the test's own."""

import itertools

import pytest

from pipeline.training import progress_actor
from pipeline.training.progress_actor import ProgressActor, _print_to_log


@pytest.fixture
def clock(monkeypatch):
    times = {"now": 1000.0}
    monkeypatch.setattr(progress_actor.time, "monotonic", lambda: times["now"])
    return times


def readings(clock, seconds_a_step, steps, until):
    """Twice a second; the first ten seconds start the workers."""
    for half in range(2 * until):
        clock["now"] = 1000.0 + half / 2
        step = min(steps, max(0, int((half / 2 - 10) / seconds_a_step)))
        yield half == 2 * until - 1, step, f"loss {step}" if step else "starting the workers", []


def test_a_short_run_is_seen_to_move_and_nothing_is_said_twice(clock, capsys):
    _print_to_log(20, readings(clock, 1, 20, 40))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("distil: 0 of 20 steps, starting the workers")
    assert lines[1].startswith("distil: 1 of 20 steps")
    assert lines[-1].startswith("distil: 20 of 20 steps")
    assert 5 <= len(lines) <= 7
    assert len(set(lines)) == len(lines)


def test_a_long_run_has_a_line_each_half_minute(clock, capsys):
    _print_to_log(10_000, readings(clock, 1, 10_000, 1010))
    lines = capsys.readouterr().err.splitlines()
    assert 1000 / 31 < len(lines) < 1000 / 30 + 7
    steps = [int(line.split()[1]) for line in lines]
    assert all(30 <= b - a <= 31 for a, b in itertools.pairwise(steps[8:-1]))


def test_the_workers_are_told_of_an_interrupt():
    actor = ProgressActor()
    assert not actor.stop_requested()
    actor.request_stop()
    assert actor.stop_requested()
