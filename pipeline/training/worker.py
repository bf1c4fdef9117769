"""What Ray Train calls on each worker; of its own, so that the controller, which only names it, loads no torch."""

from typing import Any


def train_loop(config: dict[str, Any]) -> None:
    from pipeline.training.loop import train

    train(config)
