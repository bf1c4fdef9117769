"""What SIGINT does while a training runs: Ray Train's own handler is the last resort."""

import os
import signal
import time

import pytest
from ray.train.torch import TorchTrainer

from pipeline.interrupts import stop_immediately
from pipeline.training import interruptible_trainer
from pipeline.training.interruptible_trainer import InterruptibleTrainer


class Method:
    """Of an actor: called where it is."""

    def __init__(self, call):
        self.remote = call


class Actor:
    def __init__(self, steps):
        self.asked, self.stored = False, False
        self.has_steps = Method(lambda: steps > 0)
        self.checkpoint_stored = Method(lambda: self.stored)
        self.request_stop = Method(lambda: setattr(self, "asked", True))


@pytest.fixture
def fit(monkeypatch):
    """`fit(actor, while_training)` trains for as long as the function runs; returns how often Ray Train was told."""
    monkeypatch.setattr(interruptible_trainer.ray, "get", lambda answer: answer)
    monkeypatch.setattr(interruptible_trainer, "GRACE_SECONDS", 0.05)
    monkeypatch.setattr(interruptible_trainer, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(TorchTrainer, "__init__", lambda self: None)
    monkeypatch.setattr(stop_immediately, "_flag", False)
    aborted = []

    def own_handler(self, controller):
        signal.signal(signal.SIGINT, lambda number, frame: aborted.append(number))

    monkeypatch.setattr(TorchTrainer, "_register_sigint_handler", own_handler)

    def call(actor, while_training):
        def training(self):
            self._register_sigint_handler(None)
            while_training()

        monkeypatch.setattr(TorchTrainer, "fit", training)
        before = signal.getsignal(signal.SIGINT)
        InterruptibleTrainer(actor).fit()
        assert signal.getsignal(signal.SIGINT) is before, "what follows the training is interrupted as ever"
        return len(aborted)

    return call


def press():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)


def test_the_workers_are_asked_first_and_a_second_press_ends_it(fit):
    actor = Actor(steps=3)
    assert fit(actor, press) == 0
    assert actor.asked
    assert fit(Actor(steps=3), lambda: (press(), press())) == 1


def test_before_the_first_step_and_without_the_lease_it_ends_at_once(fit):
    actor = Actor(steps=0)
    assert fit(actor, press) == 1
    assert not actor.asked
    stop_immediately.set()
    actor = Actor(steps=3)
    assert fit(actor, press) == 2
    assert not actor.asked


def test_what_runs_beside_the_training_is_not_waited_for_once_the_checkpoint_is_stored(fit):
    actor = Actor(steps=3)

    def training():
        press()
        time.sleep(0.1)
        assert actor.asked
        actor.stored = True
        time.sleep(0.3)

    assert fit(actor, training) == 1
