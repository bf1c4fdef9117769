"""The function that Ray Train calls on each worker; its module imports no torch, since the controller pickles it."""

from typing import Any


def train_loop(config: dict[str, Any]) -> None:
    """Train; `config` holds the arguments of `train_loop.train`."""
    from pipeline.training.train_loop import train

    train(**config)
