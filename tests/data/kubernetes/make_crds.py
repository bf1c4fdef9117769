"""Custom resource definitions as JSON schemas that reject unknown fields: KubeRay's and the Prometheus operator's.

    git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay
    git clone --depth 1 --branch v0.93.0 https://github.com/prometheus-operator/prometheus-operator
    python tests/data/kubernetes/make_crds.py kuberay/helm-chart/kuberay-operator/crds \
        prometheus-operator/example/prometheus-operator-crd

Both are licensed under Apache-2.0.
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import yaml

FILES = {
    "RayCluster": "ray.io_rayclusters.yaml",
    "RayJob": "ray.io_rayjobs.yaml",
    "RayCronJob": "ray.io_raycronjobs.yaml",
    "RayService": "ray.io_rayservices.yaml",
    "PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
}


def close_schema(schema: Any) -> Any:
    """Forbid unknown fields in objects that do not allow them, and omit Kubernetes' extensions and descriptions."""
    if isinstance(schema, list):
        return [close_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {
        key: close_schema(value) for key, value in schema.items() if not key.startswith("x-") and key != "description"
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


def main() -> None:
    folders, schemas = [Path(argument) for argument in sys.argv[1:]], {}
    for kind, name in FILES.items():
        (file,) = [folder / name for folder in folders if (folder / name).exists()]
        (version,) = [item for item in yaml.safe_load(file.read_text())["spec"]["versions"] if item["name"] == "v1"]
        schemas[kind] = close_schema(version["schema"]["openAPIV3Schema"])
    text = json.dumps(schemas, sort_keys=True).encode()
    (Path(__file__).parent / "crds.json.xz").write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main()
