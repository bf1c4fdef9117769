"""Batches are as large as the load makes them."""

import asyncio

import pytest

from pipeline.serving.batch_queue import BatchQueue


class Model:
    """A model that doubles numbers, remembers its batches, and waits until it is released."""

    def __init__(self):
        self.batches, self.is_free = [], asyncio.Event()

    async def run(self, items):
        self.batches.append(list(items))
        await self.is_free.wait()
        return [2 * item for item in items]


def run_in_loop(scenario):
    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_arrives_while_a_batch_runs_is_the_next_batch():
    async def scenario():
        model = Model()
        queue = BatchQueue(model.run, 3)
        tasks = [asyncio.create_task(queue.submit(0))]
        await asyncio.sleep(0.01)
        tasks += [asyncio.create_task(queue.submit(number)) for number in range(1, 6)]
        await asyncio.sleep(0.01)
        model.is_free.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
        assert model.batches == [[0], [1, 2, 3], [4, 5]]

    run_in_loop(scenario)


def test_a_lone_item_does_not_wait_but_one_after_a_shared_batch_does():
    async def scenario():
        model = Model()
        model.is_free.set()
        queue = BatchQueue(model.run, 8, wait_seconds=0.05)
        first = asyncio.create_task(queue.submit(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert model.batches == [[1]]
        await first
        await asyncio.gather(queue.submit(2), queue.submit(3))
        late = [asyncio.create_task(queue.submit(4))]
        await asyncio.sleep(0.01)
        late.append(asyncio.create_task(queue.submit(5)))
        await asyncio.gather(*late)
        assert model.batches == [[1], [2, 3], [4, 5]]

    run_in_loop(scenario)


def test_a_cancelled_item_is_not_run():
    async def scenario():
        model = Model()
        queue = BatchQueue(model.run, 8)
        first = asyncio.create_task(queue.submit(1))
        await asyncio.sleep(0.01)
        cancelled, kept = (asyncio.create_task(queue.submit(number)) for number in (2, 3))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.sleep(0.01)
        model.is_free.set()
        assert await first == 2
        assert await kept == 6
        assert model.batches == [[1], [3]]

    run_in_loop(scenario)


def test_an_error_goes_to_the_items_of_its_batch_alone():
    async def scenario():
        async def divide(items):
            return [1 / item for item in items]

        queue = BatchQueue(divide, 1)
        bad, good = asyncio.create_task(queue.submit(0)), asyncio.create_task(queue.submit(2))
        with pytest.raises(ZeroDivisionError):
            await bad
        assert await good == 0.5

    run_in_loop(scenario)
