"""Prometheus gauges, which Ray exports on the metrics port of the node where they are set.

Ray drops a value that was not set again for two of its export intervals, 20 seconds. A step, a checkpoint and a unit of
work may take longer, and an alert must still see a process that is stuck: each group repeats its values while it lives.
"""

import threading
import time
from collections.abc import Mapping
from weakref import ReferenceType, ref

import ray
from ray.util.metrics import Gauge

REPEAT_SECONDS = 5.0


class GaugeGroup:
    """Gauges `PREFIX_NAME` with the same tags; `descriptions` are by name."""

    def __init__(
        self,
        prefix: str,
        descriptions: Mapping[str, str],
        tag_keys: tuple[str, ...],
        repeat_seconds: float = REPEAT_SECONDS,
    ) -> None:
        keys: tuple[str] = tag_keys  # type: ignore[assignment]  # Ray annotates a tuple of one key
        self._gauges = {
            name: Gauge(f"{prefix}_{name}", description=description, tag_keys=keys)
            for name, description in descriptions.items()
        }
        self._values: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=_repeat, args=(ref(self), repeat_seconds), name="gauges", daemon=True).start()

    def report(self, values: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Set the gauges of these values; values without a gauge are left out."""
        known = {name: value for name, value in values.items() if name in self._gauges}
        with self._lock:
            self._values.setdefault(tuple(tags.items()), {}).update(known)
            self._set(known, tags)

    def forget(self, tags: Mapping[str, str]) -> None:
        """Let the values with these tags end."""
        with self._lock:
            self._values.pop(tuple(tags.items()), None)

    def repeat(self) -> None:
        """Set every value again."""
        with self._lock:
            for tags, values in self._values.items():
                self._set(values, dict(tags))

    def _set(self, values: Mapping[str, float], tags: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._gauges[name].set(value, dict(tags))


def _repeat(group: "ReferenceType[GaugeGroup]", seconds: float) -> None:
    """Repeat the values of a group until nothing else refers to it."""
    while True:
        time.sleep(seconds)
        if (alive := group()) is None:
            return
        if ray.is_initialized():
            alive.repeat()
        del alive
