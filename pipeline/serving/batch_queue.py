"""A queue that runs its items in batches, each as large as the load makes it.

Ray Serve's `@serve.batch` closes a batch when a timeout is over, also while the model is busy: with a short timeout the
batches stay small under load, with a long one a single request waits for nothing.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchQueue(Generic[Item, Result]):
    """Collects items while a batch runs, and runs them as the next one.

    An item that finds the queue idle starts at once, unless the last batch had several items: then others are likely to
    follow, and the batch waits `wait_seconds` for them.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        max_batch_size: int,
        wait_seconds: float = 0.0,
    ) -> None:
        self._run, self._max_batch_size, self._wait_seconds = run, max_batch_size, wait_seconds
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._last_size = 0

    async def submit(self, item: Item) -> Result:
        """Return the item's result, or raise what its batch raised; a cancelled item is not run."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_batches())
        return await future

    async def _run_batches(self) -> None:
        while self._waiting:
            if self._last_size > 1 and len(self._waiting) < self._max_batch_size:
                await asyncio.sleep(self._wait_seconds)
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch_size))]
            batch = [(item, future) for item, future in taken if not future.done()]
            if batch:
                await self._run_batch(batch)

    async def _run_batch(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._last_size = len(batch)
        try:
            results = await self._run([item for item, _ in batch])
        except Exception as error:  # it belongs to the callers
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
