"""SIGINT during a training; Ray Train's own handler is the last resort."""

import os
import signal
import time

import pytest
from ray.train.torch import TorchTrainer

from pipeline.immediate_stop import stop_immediately
from pipeline.training import interruptible_trainer
from pipeline.training.interruptible_trainer import InterruptibleTrainer


class Method:
    """An actor method that is called in this process."""

    def __init__(self, call):
        self.remote = call


class Actor:
    def __init__(self, steps):
        self.stop_requested, self.stored = False, False
        self.has_completed_steps = Method(lambda: steps > 0)
        self.is_checkpoint_stored = Method(lambda: self.stored)
        self.request_stop = Method(lambda: setattr(self, "stop_requested", True))


@pytest.fixture
def fit(monkeypatch):
    """Return `fit(actor, while_training)`, which trains while the function runs and counts Ray Train's aborts."""
    monkeypatch.setattr(interruptible_trainer.ray, "get", lambda answer: answer)
    monkeypatch.setattr(interruptible_trainer, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(interruptible_trainer, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(TorchTrainer, "__init__", lambda self: None)
    monkeypatch.setattr(stop_immediately, "_flag", False)
    aborted = []

    def register_handler(self, controller):
        signal.signal(signal.SIGINT, lambda number, frame: aborted.append(number))

    monkeypatch.setattr(TorchTrainer, "_register_sigint_handler", register_handler)

    def call(actor, while_training):
        def train(self):
            self._register_sigint_handler(None)
            while_training()

        monkeypatch.setattr(TorchTrainer, "fit", train)
        previous = signal.getsignal(signal.SIGINT)
        InterruptibleTrainer(actor).fit()
        assert signal.getsignal(signal.SIGINT) is previous, "the previous handler is restored"
        return len(aborted)

    return call


def send_sigint():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def test_the_first_sigint_asks_the_workers_and_the_second_aborts(fit):
    actor = Actor(steps=3)
    assert fit(actor, send_sigint) == 0
    assert actor.stop_requested
    assert fit(Actor(steps=3), lambda: (send_sigint(), send_sigint())) == 1


def test_training_aborts_at_once_before_the_first_step_or_without_the_lease(fit):
    actor = Actor(steps=0)
    assert fit(actor, send_sigint) == 1
    assert not actor.stop_requested
    stop_immediately.set()
    actor = Actor(steps=3)
    assert fit(actor, send_sigint) == 2
    assert not actor.stop_requested


def test_training_aborts_once_its_checkpoint_is_stored(fit):
    actor = Actor(steps=3)

    def train():
        send_sigint()
        time.sleep(0.1)
        assert actor.stop_requested
        actor.stored = True
        time.sleep(0.3)

    assert fit(actor, train) == 1
