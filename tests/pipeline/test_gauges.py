"""Gauges are set again while their group lives, as Ray drops values that are not."""

import time
from typing import ClassVar

import pytest

from pipeline import gauges
from pipeline.gauges import GaugeGroup


class FakeGauge:
    """A stand-in for Ray's gauge, which records its values."""

    values: ClassVar[list] = []

    def __init__(self, name, description, tag_keys):
        self.name = name

    def set(self, value, tags):
        self.values.append((self.name, value, tags["run"]))


@pytest.fixture
def values(monkeypatch):
    """Return the values that gauges were set to, in a process with a Ray session."""
    monkeypatch.setattr(gauges, "Gauge", FakeGauge)
    monkeypatch.setattr(gauges.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(FakeGauge, "values", [])
    return FakeGauge.values


def wait_until(holds, seconds=10):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_newest_values_are_repeated(values):
    group = GaugeGroup("of", {"step": "", "steps": ""}, ("run",), repeat_seconds=0.01)
    group.report({"step": 1.0, "steps": 9.0, "unknown": 5.0}, {"run": "a"})
    group.report({"step": 2.0}, {"run": "a"})
    del values[:]
    wait_until(lambda: len(values) >= 4)
    assert set(values) == {("of_step", 2.0, "a"), ("of_steps", 9.0, "a")}


def test_forgotten_values_and_those_of_a_group_that_is_gone_end(values):
    group = GaugeGroup("of", {"step": ""}, ("run",), repeat_seconds=0.01)
    group.report({"step": 1.0}, {"run": "a"})
    group.report({"step": 1.0}, {"run": "b"})
    group.forget({"run": "a"})
    del values[:]
    wait_until(lambda: len(values) >= 2)
    assert {run for *_, run in values} == {"b"}
    del group
    time.sleep(0.1)
    del values[:]
    time.sleep(0.1)
    assert not values
