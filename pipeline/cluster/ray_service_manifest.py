"""The RayService of a registered model: the server on Kubernetes, which follows an alias of MLflow."""

import math

import yaml

from pipeline.cluster import kueue
from pipeline.cluster.kubernetes_manifests import (
    ManifestValues,
    build_cluster_spec,
    build_metadata,
    check_values,
    dump_manifest,
)
from pipeline.cluster.pod_templates import GPU, Spec
from pipeline.errors import invalid
from pipeline.recipe import Recipe
from pipeline.serving.serving_options import ServingOptions

IMPORT_PATH = "pipeline.serving.application:build"
PORT = 8000
REPLICA = {"cpu": 4, "memory_gi": 24}  # of a replica, beside its GPU


def render_ray_service(recipe: Recipe, values: ManifestValues, alias: str, max_replicas: int) -> str:
    """Return the manifest as YAML: one GPU a replica, and no more pods than `max_replicas` need.

    Raises:
        UserError: if a cluster cannot run it.
    """
    if max_replicas < 1:
        raise invalid("--max-replicas", max_replicas, "a number of at least 1")
    check_values("RayService", values)
    options = ServingOptions(
        name=f"nasa-{recipe.name}",
        alias=alias,
        tracking_uri=values.tracking_uri,
        max_replicas=max_replicas,
        cpus=REPLICA["cpu"] - 1,
        gpus=1,
        requires_token=True,
    )
    pods, per_pod = math.ceil(max_replicas / values.gpus_per_node), min(max_replicas, values.gpus_per_node)
    resources = {
        "cpu": str(REPLICA["cpu"] * per_pod),
        "memory": f"{REPLICA['memory_gi'] * per_pod}Gi",
        GPU: str(per_pod),
    }
    cluster = build_cluster_spec(values, resources, pods)
    ports = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    ports.append({"containerPort": PORT, "name": "serve"})
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": build_metadata(recipe, values.name),
        "spec": {"serveConfigV2": _build_serve_config(options), "rayClusterConfig": cluster},
    }
    return dump_manifest(kueue.add_queue(service, values.queue, values.priority_class))


def _build_serve_config(options: ServingOptions) -> str:
    given = {name: value for name, value in options.to_dict().items() if name in options.model_fields_set}
    application = {"name": "nasa-distill", "route_prefix": "/", "import_path": IMPORT_PATH, "args": given}
    config: Spec = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": PORT},
        "applications": [application],
    }
    return str(yaml.safe_dump(config, sort_keys=False))
