"""What a process of Ray's found wrong, told as if it had been found here."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.data
from ray.exceptions import RayTaskError

from pipeline.errors import UserError

RETRIES = "\nFailed to apply UDF"  # how Ray Data begins what it adds to a message
logging.getLogger("ray.data.exceptions").setLevel(logging.CRITICAL)  # it asks for a bug report about Ray


@contextmanager
def told() -> Iterator[None]:
    """A UserError of a task is raised as it was there; Ray's own has a traceback for its message."""
    try:
        yield
    except RayTaskError as error:
        if not isinstance(error.cause, UserError):
            raise
        raise type(error.cause)(str(error.cause).partition(RETRIES)[0]) from None


def rows(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    """Of a dataset, one by one.

    Raises:
        UserError: as what the dataset is made by raised it.
    """
    dataset.context.raise_original_map_exception = True
    with told():
        yield from dataset.iter_rows()


def batches(dataset: ray.data.Dataset, size: int) -> Iterator[dict[str, Any]]:
    """The same, `size` rows at a time, as numpy arrays."""
    dataset.context.raise_original_map_exception = True
    with told():
        yield from dataset.iter_batches(batch_size=size, batch_format="numpy")
