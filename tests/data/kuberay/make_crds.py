"""KubeRay's custom resource definitions as JSON schemas that reject unknown fields.

    git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay
    python tests/data/kuberay/make_crds.py kuberay/helm-chart/kuberay-operator/crds

KubeRay is licensed under Apache-2.0.
"""

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import yaml

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs", "RayService": "rayservices"}


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
    schemas = {}
    for kind, name in KINDS.items():
        definition = yaml.safe_load((Path(sys.argv[1]) / f"ray.io_{name}.yaml").read_text())
        (version,) = [item for item in definition["spec"]["versions"] if item["name"] == "v1"]
        schemas[kind] = close_schema(version["schema"]["openAPIV3Schema"])
    text = json.dumps(schemas, sort_keys=True).encode()
    (Path(__file__).parent / "crds.json.xz").write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main()
