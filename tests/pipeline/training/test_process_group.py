"""The network interface of Gloo; `tests/test_cluster_launch.py` trains on hosts whose name is 127.0.1.1."""

import os

import pytest
import ray
from ray.train.torch import TorchConfig

from pipeline.training import process_group
from pipeline.training.process_group import GLOO_INTERFACE, NodeAddressTorchConfig, find_interface


class RecordedGroup:
    """A worker group whose workers have these addresses; it records what they are to run."""

    def __init__(self, *addresses):
        self.addresses, self.executed = addresses, []

    def execute(self, function):
        self.executed.append(function)
        return list(self.addresses)


@pytest.fixture
def start(monkeypatch):
    """Return a function that starts the backend on workers with these addresses, and returns what they run."""
    parent = TorchConfig().backend_cls
    monkeypatch.setattr(parent, "on_start", lambda self, group, config: group.executed.append("on_start"))

    def start(*addresses):
        group, config = RecordedGroup(*addresses), NodeAddressTorchConfig()
        config.backend_cls().on_start(group, config)
        return group.executed

    return start


def test_the_loopback_interface_has_its_address():
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("192.0.2.1") == ""


def test_workers_of_several_nodes_choose_an_interface_before_the_group_starts(start):
    executed = start("10.0.0.11", "10.0.0.12")
    assert executed[1:] == [process_group.set_gloo_interface, "on_start"]


def test_workers_of_one_node_keep_gloo_s_own_choice(start):
    assert start("10.0.0.11", "10.0.0.11")[1:] == ["on_start"]


@pytest.mark.parametrize(("given", "expected"), [(None, "lo"), ("eth7", "eth7")])
def test_the_interface_of_the_environment_wins(monkeypatch, given, expected):
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv(GLOO_INTERFACE, given or "")
    if given is None:
        monkeypatch.delenv(GLOO_INTERFACE)
    process_group.set_gloo_interface()
    assert os.environ[GLOO_INTERFACE] == expected
