"""Errors that end a worker for good, and errors after which it is restarted."""

from contextlib import suppress

import pytest

from pipeline.errors import StorageError, UserError
from pipeline.training import train_loop


class Actor:
    """The methods of the progress actor, called in this process."""

    def __init__(self):
        self.message = ""

    @property
    def get_user_error(self):
        return Method(lambda: self.message)

    @property
    def set_user_error(self):
        return Method(lambda message: setattr(self, "message", message))


class Method:
    def __init__(self, remote):
        self.remote = remote


@pytest.mark.parametrize(
    ("error", "attempts"), [(UserError("a shard has changed"), 1), (StorageError("s3://x: cannot be read: 503"), 3)]
)
def test_a_user_error_is_not_retried_and_a_storage_error_is(monkeypatch, error, attempts):
    actor, calls = Actor(), []

    def run(*_):
        calls.append(1)
        raise error

    monkeypatch.setattr(train_loop.ray, "get", lambda value: value)
    monkeypatch.setattr(train_loop, "_train_to_last_step", run)
    for _ in range(3):  # as Ray Train restarts the worker
        with suppress(UserError):
            train_loop.train(None, actor)
    assert len(calls) == attempts
    assert bool(actor.message) == (attempts == 1)
