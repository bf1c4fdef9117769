"""The pods of the Kubernetes manifests: without privileges, on a read-only root file system.

They satisfy the "restricted" level of Kubernetes' pod security standards.
"""

SECRET = "nasa-distill"  # the Kubernetes Secret with S3 keys and HF_TOKEN
TOKEN_SECRET = "ray-token"
ACCOUNT = "nasa-distill"  # deploy/kuberay/serviceaccount.yaml
PART_OF = {"app.kubernetes.io/part-of": "nasa-distill"}  # the label by which deploy/kuberay/networkpolicy.yaml selects
USER = 1000
POD_SECURITY = {"runAsNonRoot": True, "runAsUser": USER, "seccompProfile": {"type": "RuntimeDefault"}}
GPU = "nvidia.com/gpu"
GPU_TAINT = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}  # keeps other pods off GPU nodes
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
KEEP = {  # a node's autoscaler must not move a pod that holds a run's state
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
WRITABLE = {"tmp": "/tmp", "home": "/home/ray"}  # Ray's sessions; caches of models, versions and compiled kernels

Spec = dict[str, object]
"""A part of a manifest, as YAML has it."""


def build_ray_pod(
    name: str,
    resources: dict[str, str],
    ports: list[Spec],
    image: str,
    tracking_uri: str,
    priority_class: str,
    mount_token: bool = False,
) -> Spec:
    """Return the template of a pod of a Ray cluster.

    With `mount_token` it has the account's token, for the autoscaler beside the head; no other pod calls Kubernetes.
    """
    container: Spec = {
        "name": name,
        "image": image,
        "resources": {"requests": resources, "limits": resources},
        "env": [{"name": "MLFLOW_TRACKING_URI", "value": tracking_uri}],
        "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
        "securityContext": _build_security_context(),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, *_build_mounts()],
    }
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}
    spec: Spec = {
        **_build_account(mount_token),
        **_build_priority(priority_class),
        "securityContext": {**POD_SECURITY, "fsGroup": USER},
        **({"tolerations": [GPU_TAINT]} if GPU in resources else {}),
        "containers": [container | ({"ports": ports} if ports else {})],
        "volumes": [shm, *_build_volumes()],
    }
    return {"metadata": {"labels": PART_OF, "annotations": KEEP}, "spec": spec}


def build_submitter_pod(command: list[str], image: str, tracking_uri: str, priority_class: str) -> Spec:
    """Return the specification of a pod that submits a job to a standing cluster."""
    token = {"secretKeyRef": {"name": TOKEN_SECRET, "key": "auth_token"}}
    environment = [
        {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
        {"name": "MLFLOW_TRACKING_URI", "value": tracking_uri},
    ]
    return _build_small_pod({"command": command, "env": environment}, image, priority_class)


def build_ray_job_submitter(image: str, priority_class: str) -> Spec:
    """Return the template of the pod in which KubeRay submits a RayJob; its own would have no security context.

    KubeRay adds the command, the addresses and the token.
    """
    return {"spec": _build_small_pod({}, image, priority_class)}


def _build_small_pod(fields: Spec, image: str, priority_class: str) -> Spec:
    container = {
        "name": "submit",
        "image": image,
        **fields,
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": _build_security_context(),
        "volumeMounts": _build_mounts(),
    }
    return {
        "restartPolicy": "Never",
        **_build_account(mount_token=False),
        **_build_priority(priority_class),
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": _build_volumes(),
    }


def _build_account(mount_token: bool) -> Spec:
    return {"serviceAccountName": ACCOUNT, "automountServiceAccountToken": mount_token}


def _build_priority(priority_class: str) -> Spec:
    return {"priorityClassName": priority_class} if priority_class else {}


def _build_security_context() -> Spec:
    return {**CONTAINER_SECURITY, "readOnlyRootFilesystem": True}


def _build_mounts() -> list[Spec]:
    return [{"name": name, "mountPath": path} for name, path in WRITABLE.items()]


def _build_volumes() -> list[Spec]:
    return [{"name": name, "emptyDir": {}} for name in WRITABLE]
