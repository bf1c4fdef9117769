"""The version in service follows the alias, and stays when the next one cannot be served."""

import time

import pytest

from pipeline.errors import StorageError
from pipeline.serving import alias_follower
from pipeline.serving.alias_follower import AliasFollower


class Registry:
    """An alias, and versions of which some are broken."""

    def __init__(self):
        self.alias, self.broken, self.loads, self.is_away = "1", set(), [], False

    def find(self):
        if self.is_away:
            raise StorageError("tracking-uri: the server does not answer")
        return self.alias

    def load(self, number):
        self.loads.append(number)
        if number in self.broken:
            raise RuntimeError(f"weights of {number} are damaged\nand more")
        return f"model {number}"


@pytest.fixture
def registry():
    return Registry()


@pytest.fixture
def follower(registry):
    return AliasFollower(registry.find, registry.load)


def test_a_promotion_and_a_rollback_are_taken_over(registry, follower):
    assert (follower.current.number, follower.current.model) == ("1", "model 1")
    assert not follower.look()
    registry.alias = "2"
    assert follower.look()
    assert (follower.current.number, follower.current.model) == ("2", "model 2")
    registry.alias = "1"
    assert follower.look()
    assert follower.current.number == "1"
    assert registry.loads == ["1", "2", "1"]


def test_a_broken_version_leaves_the_old_one_in_service(registry, follower, caplog):
    registry.alias, registry.broken = "2", {"2"}
    assert not follower.look()
    assert follower.current.model == "model 1"
    expected = "Version 2 cannot be served: weights of 2 are damaged Version 1 stays in service."
    assert (follower.alarm, follower.has_broken_version) == (expected, True)
    assert [record.getMessage() for record in caplog.records] == [expected]
    assert not follower.look()
    assert registry.loads == ["1", "2"]  # it is not loaded again at once
    registry.alias = "3"
    assert follower.look()
    assert (follower.alarm, follower.current.number, follower.has_broken_version) == ("", "3", False)


def test_a_broken_version_is_tried_again_later(registry, follower, monkeypatch):
    registry.alias, registry.broken = "2", {"2"}
    follower.look()
    registry.broken = set()
    later = time.monotonic() + alias_follower.RETRY_SECONDS + 1
    monkeypatch.setattr(alias_follower.time, "monotonic", lambda: later)
    assert follower.look()
    assert (follower.alarm, follower.current.number) == ("", "2")


def test_an_alarm_ends_when_the_alias_returns(registry, follower):
    registry.alias, registry.broken = "2", {"2"}
    follower.look()
    registry.alias = "1"
    follower.look()
    assert follower.alarm == ""


def test_the_alarm_of_a_broken_version_returns_after_an_outage_of_the_registry(registry, follower):
    registry.alias, registry.broken = "2", {"2"}
    follower.look()
    broken = follower.alarm
    registry.is_away = True
    follower.look()
    assert "does not answer" in follower.alarm
    registry.is_away = False
    follower.look()
    assert (follower.alarm, follower.has_broken_version, registry.loads) == (broken, True, ["1", "2"])


def test_an_unreachable_registry_raises_an_alarm_and_changes_nothing(registry, follower):
    registry.is_away = True
    assert not follower.look()
    assert follower.alarm == "tracking-uri: the server does not answer Version 1 stays in service."
    assert not follower.has_broken_version
    registry.is_away = False
    follower.look()
    assert follower.alarm == ""


def test_the_first_version_must_be_loadable(registry):
    registry.broken = {"1"}
    with pytest.raises(RuntimeError, match="damaged"):
        AliasFollower(registry.find, registry.load)


def test_a_thread_follows_the_alias(registry, follower):
    looks = []
    follower.follow(0.01, lambda: looks.append(follower.current.number))
    registry.alias = "2"
    deadline = time.monotonic() + 10
    while "2" not in looks and time.monotonic() < deadline:
        time.sleep(0.01)
    follower.stop()
    assert follower.current.number == looks[-1] == "2"
