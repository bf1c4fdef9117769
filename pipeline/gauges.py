"""Prometheus gauges, which Ray exports on the metrics port of the node where they are set."""

from collections.abc import Mapping

from ray.util.metrics import Gauge


class GaugeGroup:
    """Gauges `PREFIX_NAME` with the same tags; `descriptions` are by name."""

    def __init__(self, prefix: str, descriptions: Mapping[str, str], tag_keys: tuple[str, ...]) -> None:
        keys: tuple[str] = tag_keys  # type: ignore[assignment]  # Ray annotates a tuple of one key
        self._gauges = {
            name: Gauge(f"{prefix}_{name}", description=description, tag_keys=keys)
            for name, description in descriptions.items()
        }

    def report(self, values: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Set the gauges of these values; values without a gauge are left out."""
        for name, value in values.items():
            if name in self._gauges:
                self._gauges[name].set(value, dict(tags))
