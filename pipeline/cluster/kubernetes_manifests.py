"""Kubernetes manifests of a distillation, sized by its recipe: RayCluster, RayJob, RayCronJob, and a CronJob.

Fields: KubeRay's definitions of version 1.7, Kubernetes' `batch/v1`.
"""

import math
import re
import shlex
from dataclasses import dataclass
from typing import Any

import ray
import yaml

from pipeline.cluster import kueue
from pipeline.cluster.pod_templates import (
    CONTAINER_SECURITY,
    GPU,
    SECRET,
    TOKEN_SECRET,
    Spec,
    build_ray_job_submitter,
    build_ray_pod,
    build_submitter_pod,
)
from pipeline.errors import UserError, invalid
from pipeline.recipe import RECIPES, Recipe, Train
from pipeline.redaction import contains_secret, redact
from pipeline.resource_requests import build_training_request

KINDS = ("RayCluster", "RayJob", "RayCronJob", "CronJob")
RECURRING = ("RayCronJob", "CronJob")
CLUSTER = "nasa-distill"
HEAD = {"cpu": "4", "memory": "32Gi"}
GPU_MEMORY_GI = 64  # GiB of main memory per GPU
SECONDS_PER_DAY = 86_400
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAME_LENGTH = 36  # longest name of a RayCronJob, whose jobs' names are longer


@dataclass(frozen=True)
class ManifestValues:
    """The values that a Kubernetes manifest needs besides the recipe.

    Attributes:
        run: the run's folder; for a recurring run the schedule's folder.
        recipe: the name of a recipe in the image.
        sets: `--set` overrides.
        gpus_per_node: how many GPUs a worker's pod takes.
        name: the name of the object; one from the recipe's name if empty.
        queue: the LocalQueue of Kueue that admits it, if any.
        priority_class: the PriorityClass of the pods, and with a queue the WorkloadPriorityClass, if any.
    """

    run: str
    recipe: str
    image: str
    tracking_uri: str
    sets: tuple[str, ...] = ()
    gpus_per_node: int = 1
    name: str = ""
    queue: str = ""
    priority_class: str = ""


def render(kind: str, recipe: Recipe, values: ManifestValues) -> str:
    """Return the manifest as YAML.

    Raises:
        UserError: if a cluster cannot run it.
    """
    _check(kind, recipe, values)
    build = {
        "RayCluster": _build_ray_cluster,
        "RayJob": _build_ray_job,
        "RayCronJob": _build_ray_cron_job,
        "CronJob": _build_scheduled_submitter,
    }[kind]
    return dump_manifest(kueue.add_queue(build(recipe, values), values.queue, values.priority_class))


def dump_manifest(manifest: Spec) -> str:
    """Return a manifest as YAML."""
    return str(yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=1000))


class _Dumper(yaml.SafeDumper):
    """A YAML dumper without aliases, with texts of several lines as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _check(kind: str, recipe: Recipe, values: ManifestValues) -> None:
    if not (RECIPES / f"{values.recipe}.toml").is_file():
        names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise invalid("--recipe", values.recipe, f"a recipe of the image: {names}", "Change its fields with --set.")
    check_values(kind, values)
    if not values.run.startswith("s3://"):
        raise invalid("--run", values.run, "s3://BUCKET/FOLDER, which every node reaches")
    if kind in RECURRING and not recipe.schedule.cron:
        raise invalid("schedule.cron", "", "five fields", "Pass --cron, such as '0 3 * * SUN'.")
    min_gpus = math.ceil(max(_compute_worker_resources(recipe.train).get("GPU", 0), recipe.evaluation.gpus_per_process))
    if not max(1, min_gpus) <= values.gpus_per_node <= 16:
        raise invalid("--gpus-per-node", values.gpus_per_node, f"{max(1, min_gpus)}, which one process needs, to 16")


def check_values(kind: str, values: ManifestValues) -> None:
    """Raise a UserError for values that Kubernetes or KubeRay rejects, and for secrets."""
    name, image, uri = values.name, values.image, values.tracking_uri
    if name and not (NAME.fullmatch(name) and len(name) <= MAX_NAME_LENGTH):
        constraint = f"at most {MAX_NAME_LENGTH} characters of a-z, 0-9 and '-', of which the first is a letter"
        raise invalid("--name", name, f"{constraint} and the last no '-'")
    if not image or image.endswith((":", "/")):  # of a variable that is not set
        raise invalid("--image", image, "an image with its tag, such as REGISTRY/nasa-distill:0.1.0")
    if not uri.startswith(("http://", "https://")):
        raise invalid("--tracking-uri", uri, "a server's http:// or https:// address")
    kueue.check(kind, values.queue, values.priority_class)
    for text in (uri, values.run, image, *values.sets):
        if contains_secret(text):
            raise UserError(
                f"manifest: it would hold the secret in {redact(text)!r}. Put it into the Secret {SECRET!r}."
            )


def build_metadata(recipe: Recipe, name: str) -> Spec:
    """Return the labels of a manifest, and its name, which comes from the recipe's unless `name` is given."""
    default = re.sub(r"[^a-z0-9]+", "-", f"nasa-{recipe.name}".lower())[:MAX_NAME_LENGTH].strip("-")
    return {"name": name or default, "labels": {"app.kubernetes.io/name": "nasa-distill"}}


def _build_ray_job(recipe: Recipe, values: ManifestValues) -> Spec:
    words = ["python", "-m", "jobs", "run", "--run", values.run, *_build_options(values)]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": build_metadata(recipe, values.name),
        "spec": _build_job_spec(words, recipe, values),
    }


def _build_ray_cron_job(recipe: Recipe, values: ManifestValues) -> Spec:
    """Return a RayCronJob. KubeRay starts all missed times at once; `run-scheduled` runs what is due once."""
    options = recipe.schedule
    spec = {
        "schedule": options.cron,
        "timeZone": options.timezone,
        "suspend": False,
        "jobTemplate": _build_job_spec(_build_run_scheduled_command(recipe, values), recipe, values),
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": build_metadata(recipe, values.name),
        "spec": spec,
    }


def _build_run_scheduled_command(recipe: Recipe, values: ManifestValues) -> list[str]:
    when = ["--cron", recipe.schedule.cron, "--timezone", recipe.schedule.timezone]
    return ["python", "-m", "jobs", "run-scheduled", "--runs", values.run, *when, *_build_options(values)]


def _build_options(values: ManifestValues) -> list[str]:
    sets = [word for one in values.sets for word in ("--set", one)]
    return ["--recipe", values.recipe, *sets, "--ray-address", "auto", "--tracking-uri", values.tracking_uri]


def _build_job_spec(words: list[str], recipe: Recipe, values: ManifestValues) -> Spec:
    """Return a RayJob whose cluster ends with the job; a further attempt resumes."""
    return {
        "entrypoint": shlex.join(words),
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": build_ray_job_submitter(values.image, values.priority_class),
        "backoffLimit": recipe.schedule.retries,
        "activeDeadlineSeconds": 7 * SECONDS_PER_DAY,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 300,
        "rayClusterSpec": _build_cluster_spec(recipe, values),
    }


def _build_ray_cluster(recipe: Recipe, values: ManifestValues) -> Spec:
    metadata = build_metadata(recipe, values.name or CLUSTER)
    spec = _build_cluster_spec(recipe, values)
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec}


def _build_cluster_spec(recipe: Recipe, values: ManifestValues) -> Spec:
    """Return a head, and pods that hold the recipe's workers."""
    train, nodes = recipe.train, count_nodes(recipe, values.gpus_per_node)
    cpus = math.ceil(_compute_worker_resources(train)["CPU"] * _count_workers_per_node(train, values.gpus_per_node)) + 1
    resources = {"cpu": str(cpus), "memory": f"{GPU_MEMORY_GI * values.gpus_per_node}Gi"}
    if "GPU" in _compute_worker_resources(train) or recipe.evaluation.gpus_per_process:
        resources[GPU] = str(values.gpus_per_node)
    spec: Spec = build_cluster_spec(values, resources, nodes)
    return spec


def build_cluster_spec(values: ManifestValues, resources: dict[str, str], max_pods: int) -> Any:
    """Return a head without GPU, and up to `max_pods` pods, each with these resources.

    They are autoscaled; Kueue, which admits a cluster of a fixed size, starts all of them.
    """
    ports = [{"containerPort": 6379, "name": "gcs-server"}, {"containerPort": 8265, "name": "dashboard"}]
    replicas = max_pods if values.queue else 0
    options = {"version": "v2", "idleTimeoutSeconds": 600, "securityContext": CONTAINER_SECURITY}
    autoscaler = {} if values.queue else {"autoscalerOptions": options}
    environment: Any = {
        "image": values.image,
        "tracking_uri": values.tracking_uri,
        "priority_class": values.priority_class,
    }
    return {
        "rayVersion": ray.__version__,
        "enableInTreeAutoscaling": not values.queue,
        "authOptions": {"mode": "token", "secretName": TOKEN_SECRET},
        **autoscaler,
        "headGroupSpec": {
            "rayStartParams": {"num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": build_ray_pod("ray-head", HEAD, ports, **environment, mount_token=not values.queue),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": replicas,
                "minReplicas": replicas,
                "maxReplicas": max_pods,
                "rayStartParams": {},
                "template": build_ray_pod("ray-worker", resources, [], **environment),
            }
        ],
    }


def count_nodes(recipe: Recipe, gpus_per_node: int) -> int:
    """Return the number of pods that hold all workers and, with evaluation of checkpoints, the evaluation processes."""
    train, evaluation = recipe.train, recipe.evaluation
    gpus = train.num_workers * _compute_worker_resources(train).get("GPU", 0)
    if evaluation.every_n_checkpoints:
        gpus += evaluation.num_processes * evaluation.gpus_per_process
    return math.ceil(max(train.num_workers / _count_workers_per_node(train, gpus_per_node), gpus / gpus_per_node))


def _count_workers_per_node(train: Train, gpus_per_node: int) -> int:
    gpus_per_worker = _compute_worker_resources(train).get("GPU", 0)
    return int(gpus_per_node // gpus_per_worker) if gpus_per_worker else 1


def _compute_worker_resources(train: Train) -> dict[str, float]:
    """Return the resources of a worker with its encoders."""
    return build_training_request(train).per_process


def _build_scheduled_submitter(recipe: Recipe, values: ManifestValues) -> Spec:
    """Return a CronJob that submits to the standing RayCluster."""
    url = f"http://{CLUSTER}-head-svc:8265"
    words = _build_run_scheduled_command(recipe, values)[3:]
    at = words.index("--ray-address")
    words[at : at + 2] = ["--job-server", url]
    command = ["python", "-m", "jobs", "submit", *words, "--in-image", "--retry"]
    pod = build_submitter_pod(command, values.image, values.tracking_uri, values.priority_class)
    spec = {
        "schedule": recipe.schedule.cron,
        "timeZone": recipe.schedule.timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": int(min(recipe.schedule.max_lateness_hours, 24) * 3600),
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {"spec": {"backoffLimit": recipe.schedule.retries, "template": {"spec": pod}}},
    }
    return {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": build_metadata(recipe, values.name), "spec": spec}
