"""What ends a worker, and what only starts it again."""

from contextlib import suppress

import pytest

from pipeline.errors import StorageError, UserError
from pipeline.training import train_loop


class Actor:
    """The actor's methods, in this process."""

    def __init__(self):
        self.mistake = ""

    @property
    def user_error(self):
        return Method(lambda: self.mistake)

    @property
    def set_user_error(self):
        return Method(lambda mistake: setattr(self, "mistake", mistake))


class Method:
    def __init__(self, remote):
        self.remote = remote


@pytest.mark.parametrize(
    ("error", "attempts"), [(UserError("a shard has changed"), 1), (StorageError("s3://x: cannot be read: 503"), 3)]
)
def test_a_mistake_is_not_tried_again_and_a_store_that_was_away_is(monkeypatch, error, attempts):
    actor, made = Actor(), []

    def run(*_):
        made.append(1)
        raise error

    monkeypatch.setattr(train_loop.ray, "get", lambda value: value)
    monkeypatch.setattr(train_loop, "_run", run)
    for _ in range(3):  # as Ray Train starts it again
        with suppress(UserError):
            train_loop.train(None, actor)
    assert len(made) == attempts
    assert bool(actor.mistake) == (attempts == 1)
