"""User errors of Ray tasks and actors, raised in the driver as if they had occurred there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.data
from ray.exceptions import RayTaskError

from pipeline.errors import UserError

RETRIES = "\nFailed to apply UDF"  # the prefix of what Ray Data appends to a message


@contextmanager
def unwrap_remote_errors() -> Iterator[None]:
    """Raise the UserError of a failed task instead of RayTaskError, whose message is a traceback."""
    try:
        yield
    except RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        raise type(error.cause)(str(error.cause).partition(RETRIES)[0]) from None


def iter_rows(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset; a UserError of the tasks that make them is raised as it is."""
    dataset.context.raise_original_map_exception = True
    with unwrap_remote_errors():
        yield from dataset.iter_rows()


def iter_batches(dataset: ray.data.Dataset, batch_size: int) -> Iterator[dict[str, Any]]:
    """Yield batches of `batch_size` rows as numpy arrays; errors as in `iter_rows`."""
    dataset.context.raise_original_map_exception = True
    with unwrap_remote_errors():
        yield from dataset.iter_batches(batch_size=batch_size, batch_format="numpy")
