"""Prometheus metrics of the server, which Ray exports on every node's metrics port."""

from typing import Any

from ray.serve import metrics

from pipeline.gauges import GaugeGroup
from pipeline.generation.image_generator import ImageGenerator

PREFIX = "nasa_serving"
VERSION_GAUGES = {
    "version": "Version in service.",
    "alarm": "1 if the alias's version cannot be loaded, else 0.",
}
CACHE_GAUGES = {"cache_bytes": "Bytes of a cache."}
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
SIZES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]


class ReplicaMetrics:
    """Metrics of a replica that generates images."""

    def __init__(self, name: str, alias: str) -> None:
        self._tags = {"model": name, "alias": alias}
        keys: Any = tuple(self._tags)  # Ray annotates a tuple of one key
        self._stages = metrics.Histogram(
            "nasa_serving_stage_seconds",
            description="Seconds of a stage: queue, text, denoise, decode, png.",
            boundaries=SECONDS,
            tag_keys=(*keys, "stage"),
        )
        self._batches = metrics.Histogram(
            "nasa_serving_batch_size", description="Images in a batch.", boundaries=SIZES, tag_keys=keys
        )
        self._images = metrics.Counter(
            "nasa_serving_images_total", description="Images made.", tag_keys=(*keys, "version", "method")
        )
        self._lookups = metrics.Counter(
            "nasa_serving_cache_lookups_total",
            description="Lookups of texts (cache: text) and of negatives' keys (cache: negative), by hit or miss.",
            tag_keys=(*keys, "cache", "result"),
        )
        self._versions = GaugeGroup(PREFIX, VERSION_GAUGES, keys)
        self._caches = GaugeGroup(PREFIX, CACHE_GAUGES, (*keys, "cache"))

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Record the seconds of one stage of a batch or an image."""
        self._stages.observe(max(seconds, 1e-9), {**self._tags, "stage": stage})

    def report_version(self, number: str, has_alarm: bool) -> None:
        """Record the version in service, and whether a newer one failed."""
        self._versions.report({"version": int(number), "alarm": int(has_alarm)}, self._tags)

    def count_image(self, version: str, method: str) -> None:
        """Count an image."""
        self._images.inc(1, {**self._tags, "version": version, "method": method})

    def report_batch(self, size: int, generator: ImageGenerator) -> None:
        """Record a batch's size and what its caches did."""
        self._batches.observe(size, self._tags)
        for name, cache in (("text", generator.texts), ("negative", generator.negatives)):
            self._caches.report({"cache_bytes": cache.nbytes}, {**self._tags, "cache": name})
            for result, count in cache.take_counts().items():
                if count:
                    self._lookups.inc(count, {**self._tags, "cache": name, "result": result})


class RequestMetrics:
    """Metrics of the web server."""

    def __init__(self) -> None:
        self._requests = metrics.Counter(
            "nasa_serving_requests_total", description="Requests for images, by HTTP status.", tag_keys=("status",)
        )
        self._seconds = metrics.Histogram(
            "nasa_serving_request_seconds",
            description="Seconds of a request for images.",
            boundaries=SECONDS,
            tag_keys=("status",),
        )

    def observe(self, status: int, seconds: float) -> None:
        """Record a request."""
        self._requests.inc(1, {"status": str(status)})
        self._seconds.observe(max(seconds, 1e-9), {"status": str(status)})
