"""KubeRay's custom resource definitions as JSON schemas, in which a field that they do not have is refused.

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

KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs", "RayCronJob": "raycronjobs"}


def closed(schema: Any) -> Any:
    """An object with named fields takes no others, unless it says so; Kubernetes' own marks and texts are left out."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items() if not key.startswith("x-") and key != "description"}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def main() -> None:
    schemas = {}
    for kind, name in KINDS.items():
        definition = yaml.safe_load((Path(sys.argv[1]) / f"ray.io_{name}.yaml").read_text())
        (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
        schemas[kind] = closed(version["schema"]["openAPIV3Schema"])
    text = json.dumps(schemas, sort_keys=True).encode()
    (Path(__file__).parent / "crds.json.xz").write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main()
