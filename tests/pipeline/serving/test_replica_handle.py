"""The web server's view of its replicas: repeated after a death, pushed back when the queue is full."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pipeline.generation.image_request import ImageRequest
from pipeline.serving.application import MAX_TRIES, ReplicaHandle
from pipeline.serving.student_replica import ImageTask, ServedModel, _require_content
from pipeline.serving.web_app import OverloadedError, UnavailableError

TASK = ImageTask(ImageRequest("a cat"), 0.0)
SERVED = ServedModel("1", (8, 8), 0.5, "", "")


class Handle:
    """A handle whose calls give the next of some outcomes."""

    def __init__(self, *outcomes):
        self.outcomes, self.calls = list(outcomes), 0
        self.generate = self.describe = self

    async def remote(self, *_):
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def overloaded():
    return BackPressureError(num_queued_requests=3, max_queued_requests=3)


def test_an_image_is_made_again_when_its_replica_dies():
    handle = Handle(ActorDiedError(), DeploymentUnavailableError("x"), "image")
    assert asyncio.run(ReplicaHandle(handle).generate(TASK)) == "image"
    assert handle.calls == 3


def test_it_is_given_up_after_some_tries():
    handle = Handle(*[ActorDiedError() for _ in range(9)])
    with pytest.raises(UnavailableError, match="ActorDiedError"):
        asyncio.run(ReplicaHandle(handle).generate(TASK))
    assert handle.calls == MAX_TRIES


def test_a_full_queue_is_not_tried_again():
    handle = Handle(overloaded(), "image")
    with pytest.raises(OverloadedError):
        asyncio.run(ReplicaHandle(handle).generate(TASK))
    assert handle.calls == 1


def test_health_is_known_while_the_queue_is_full_but_not_without_replicas():
    async def scenario():
        replicas = ReplicaHandle(Handle(SERVED, overloaded(), ActorDiedError()))
        assert await replicas.describe() == SERVED
        assert await replicas.describe() == SERVED
        with pytest.raises(UnavailableError):
            await replicas.describe()
        with pytest.raises(UnavailableError):
            await ReplicaHandle(Handle(overloaded())).describe()

    asyncio.run(scenario())


def test_a_version_whose_images_have_no_content_is_rejected():
    import numpy as np

    black, shown = np.zeros((4, 4, 3), np.uint8), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    _require_content([black, shown])
    with pytest.raises(ValueError, match="student: its images have a single colour"):
        _require_content([black, black])
