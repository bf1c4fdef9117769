"""Kueue's queue and priority of a manifest.

Kueue suspends what carries the label of a queue until the quota has room for the whole cluster. Its webhooks reject
jobs that leave their cluster behind. They admit an autoscaled cluster only with the feature gate
`ElasticJobsViaWorkloadSlices` and the annotation `kueue.x-k8s.io/elastic-job`, which are not used here.
"""

import re
from typing import Any

from pipeline.errors import invalid

QUEUE_LABEL, PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
SUSPENDED = ("RayJob", "RayCluster")  # kinds that start suspended, so that none starts before Kueue has seen it
NOT_QUEUED = {
    "RayCronJob": "KubeRay copies no label to the jobs that it creates",
    "CronJob": "it runs no cluster; pass --queue for its RayCluster",
}
MAX_LENGTH = 63  # characters of a label's value
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


def check(kind: str, queue: str, priority_class: str) -> None:
    """Raise a UserError for names that Kubernetes rejects, and for a queue where Kueue has none."""
    for option, name in (("--queue", queue), ("--priority-class", priority_class)):
        if name and not (NAME.fullmatch(name) and len(name) <= MAX_LENGTH):
            raise invalid(
                option, name, f"at most {MAX_LENGTH} characters of a-z, 0-9, '-' and '.', as Kubernetes' names"
            )
    if queue and kind in NOT_QUEUED:
        raise invalid("--queue", queue, f"none for a {kind}: {NOT_QUEUED[kind]}")


def add_queue(manifest: Any, queue: str, priority_class: str) -> Any:
    """Return the manifest with the labels of its queue, suspended until Kueue admits it."""
    if not queue:
        return manifest
    labels = manifest["metadata"]["labels"] | {QUEUE_LABEL: queue}
    if priority_class:
        labels[PRIORITY_LABEL] = priority_class
    spec = {"suspend": True, **manifest["spec"]} if manifest["kind"] in SUSPENDED else manifest["spec"]
    return {**manifest, "metadata": {**manifest["metadata"], "labels": labels}, "spec": spec}
