"""The files in `deploy/`, validated by Ray's schema, KubeRay's definitions and Kubernetes' fields."""

import importlib
import json
import lzma
import os
import shlex
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import jsonschema
import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from jobs.__main__ import main, make_parser
from pipeline.errors import UserError
from pipeline.serving.serving_options import ServingOptions

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PROMETHEUS = [DEPLOY / "prometheus" / name for name in ("podmonitor.yaml", "prometheusrule.yaml")]
CRDS = json.loads(lzma.decompress((ROOT / "tests/data/kubernetes/crds.json.xz").read_bytes()))
CLUSTER_FIELDS = CRDS["RayCluster"]["properties"]["spec"]["properties"]
POD = CLUSTER_FIELDS["headGroupSpec"]["properties"]["template"]
INGRESS = CLUSTER_FIELDS["networkPolicy"]["properties"]["head"]["properties"]["ingressRules"]
RENDERED = {"RayCluster": "raycluster", "RayJob": "rayjob", "RayCronJob": "raycronjob", "CronJob": "cronjob"}
CRON = ["--cron", "0 3 * * SUN", "--timezone", "Europe/Berlin"]
OVERRIDES = ["prompts.root=s3://BUCKET/prompts", "evaluation.benchmarks=s3://BUCKET/benchmarks"]
SET_OPTIONS = [word for override in OVERRIDES for word in ("--set", override)]
OPTIONS = ["--recipe", "sd21", "--image", "REGISTRY/nasa-distill:TAG", "--gpus-per-node", "4", *SET_OPTIONS]


def build_object_schema(*names, **schemas):
    """Return the schema of an object with these fields only; those in `names` may hold anything."""
    return {"type": "object", "properties": {name: {} for name in names} | schemas, "additionalProperties": False}


KUBERNETES = {  # Kubernetes' own kinds by their reference; pods and ingress rules by the schemas that KubeRay copies
    "CronJob": build_object_schema(
        *("schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "successfulJobsHistoryLimit"),
        *("failedJobsHistoryLimit", "suspend"),
        jobTemplate=build_object_schema(
            "metadata", spec=build_object_schema("backoffLimit", "activeDeadlineSeconds", template=POD)
        ),
    ),
    "Deployment": build_object_schema("replicas", "strategy", "selector", template=POD),
    "Service": build_object_schema("selector", "ports", "type"),
    "NetworkPolicy": build_object_schema(
        podSelector=build_object_schema("matchLabels", "matchExpressions"),
        policyTypes={"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
        ingress=INGRESS,
    ),
    "PersistentVolumeClaim": build_object_schema("accessModes", "resources", "storageClassName"),
}


def load_documents():
    for file in (*sorted((DEPLOY / "kuberay").glob("*.yaml")), *PROMETHEUS):
        for document in yaml.safe_load_all(file.read_text()):
            yield pytest.param(document, id=f"{file.name}: {document['kind']}")


@cache
def get_validator(kind):
    """Return a cached validator, because `jsonschema.validate` checks these large schemas for every document."""
    return jsonschema.Draft202012Validator(CRDS.get(kind) or KUBERNETES[kind])


def validate(document):
    kind = document["kind"]
    if kind in CRDS:
        assert document["apiVersion"] == ("ray.io/v1" if kind.startswith("Ray") else "monitoring.coreos.com/v1")
        get_validator(kind).validate(document)
    elif "spec" in document:
        get_validator(kind).validate(document["spec"])


def find_pods(node):
    """Yield all pod specifications in a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from find_pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from find_pods(value)


@pytest.mark.parametrize("document", load_documents())
def test_every_manifest_has_only_known_fields(document):
    validate(document)


def test_an_unknown_field_is_rejected():
    document = yaml.safe_load((DEPLOY / "kuberay/raycronjob.yaml").read_text())
    for node in (document["spec"], document["spec"]["jobTemplate"], next(find_pods(document))["containers"][0]):
        node["concurencyPolicy"] = "Forbid"
        with pytest.raises(jsonschema.ValidationError, match="concurencyPolicy"):
            validate(document)
        del node["concurencyPolicy"]
    validate(document)


@pytest.mark.parametrize("document", load_documents())
def test_pods_run_without_privileges_and_hold_no_secret(document):
    """Kubernetes' "restricted" level asks for the user, the capabilities and the seccomp profile."""
    for pod in find_pods(document):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any(volume.keys() - {"name", "emptyDir", "persistentVolumeClaim"} for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
            mounted = {mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in writable}
            assert {"/tmp", "/home/ray"} <= mounted
            assert container["resources"]["requests"]
            plain = [entry["name"] for entry in container.get("env", []) if "value" in entry]
            assert set(plain) <= {"MLFLOW_TRACKING_URI"}


@pytest.mark.parametrize("file", ["raycluster", "rayjob", "raycronjob", "rayservice"])
def test_pods_that_kuberay_adds_satisfy_the_restricted_level_too(file):
    """The autoscaler and a RayJob's submitter have no security context unless the manifest gives them one."""
    document = yaml.safe_load((DEPLOY / f"kuberay/{file}.yaml").read_text())
    cluster = find_cluster({"spec": document["spec"].get("jobTemplate", document["spec"])})
    autoscaler = cluster["autoscalerOptions"]["securityContext"]
    assert autoscaler == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    submitters = [pod for pod in find_pods(document) if [one["name"] for one in pod["containers"]] == ["submit"]]
    assert len(submitters) == (file in ("rayjob", "raycronjob"))
    assert all("command" not in pod["containers"][0] for pod in submitters), "KubeRay would submit nothing"


def test_only_the_pod_of_the_autoscaler_has_a_token_of_kubernetes(capsys):
    """KubeRay binds the autoscaler's rights to the account: to patch the namespace's pods and RayClusters."""
    documents = [parameters.values[0] for parameters in load_documents()]
    (account,) = [document for document in documents if document["kind"] == "ServiceAccount"]
    assert account["automountServiceAccountToken"] is False
    for document in documents:
        for pod in find_pods(document):
            assert pod["serviceAccountName"] == account["metadata"]["name"]
            assert pod["automountServiceAccountToken"] is (pod["containers"][0]["name"] == "ray-head")
    queued = render(capsys, "RayJob", "--queue", "team-a")
    assert not any(pod["automountServiceAccountToken"] for pod in find_pods(queued)), "Kueue's have no autoscaler"


@pytest.mark.parametrize("file", ["raycluster", "rayjob", "raycronjob", "rayservice"])
def test_nodes_are_not_taken_from_pods_of_a_cluster(file):
    document = yaml.safe_load((DEPLOY / f"kuberay/{file}.yaml").read_text())
    cluster = find_cluster({"spec": document["spec"].get("jobTemplate", document["spec"])})
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        annotations = group["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


@pytest.mark.parametrize("document", load_documents())
def test_pods_with_a_gpu_alone_tolerate_the_taint_of_gpu_nodes(document):
    for pod in find_pods(document):
        has_gpu = any("nvidia.com/gpu" in container["resources"].get("limits", {}) for container in pod["containers"])
        tolerated = [(entry["key"], entry["effect"]) for entry in pod.get("tolerations", [])]
        assert tolerated == ([("nvidia.com/gpu", "NoSchedule")] if has_gpu else [])


def test_the_operator_gets_the_rules_that_prometheus_gets():
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
    assert yaml.safe_load((DEPLOY / "prometheus/prometheusrule.yaml").read_text())["spec"] == rules, (
        "run deploy/render.sh"
    )


@pytest.mark.parametrize("kind", RENDERED)
def test_the_files_equal_the_output_of_the_command(kind, capsys):
    recurring = kind in ("RayCronJob", "CronJob")
    run = ["--run", "s3://BUCKET/schedules/weekly", *CRON] if recurring else ["--run", "s3://BUCKET/runs/first"]
    assert main(["k8s-manifest", kind, *OPTIONS, *run]) == 0
    assert capsys.readouterr().out == (DEPLOY / f"kuberay/{RENDERED[kind]}.yaml").read_text(), "run deploy/render.sh"


def test_the_served_application_is_what_ray_serve_takes(capsys, monkeypatch):
    assert main(["k8s-manifest", "RayService", "--recipe", "sd21", "--image", "REGISTRY/nasa-distill:TAG"]) == 0
    text = capsys.readouterr().out
    assert text == (DEPLOY / "kuberay/rayservice.yaml").read_text(), "run deploy/render.sh"
    spec = yaml.safe_load(text)["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    options = ServingOptions.model_validate(application.args)
    assert (options.name, options.gpus, options.tracking_uri) == ("nasa-sd21", 1.0, "http://mlflow:5000")
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert group["maxReplicas"] * int(limits["nvidia.com/gpu"]) == options.max_replicas * options.gpus
    assert int(limits["cpu"]) >= options.cpus
    with pytest.raises(UserError, match="NASA_DISTILL_SERVE_TOKEN: got nothing; expected the token of requests"):
        build(options)
    monkeypatch.setenv("NASA_DISTILL_SERVE_TOKEN", "secret")
    assert build(options)._bound_deployment.name == "web"


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob", "CronJob"])
def test_every_entrypoint_is_a_valid_command(kind):
    document = yaml.safe_load((DEPLOY / f"kuberay/{RENDERED[kind]}.yaml").read_text())
    if kind == "CronJob":
        words = next(find_pods(document))["containers"][0]["command"]
    else:
        words = shlex.split((document["spec"] if kind == "RayJob" else document["spec"]["jobTemplate"])["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs"]
    make_parser().parse_args(words[3:])


@pytest.mark.parametrize(
    ("overrides", "gpus_per_node", "nodes", "gpus"),
    [
        (["evaluation.every_n_checkpoints=0"], 1, 4, "1"),
        (["evaluation.every_n_checkpoints=0"], 4, 1, "4"),
        ([], 1, 5, "1"),
        ([], 4, 2, "4"),
        ([], 3, 2, "3"),
        (["train.num_workers=16"], 8, 3, "8"),
    ],
)
def test_the_cluster_fits_training_and_concurrent_evaluation(capsys, overrides, gpus_per_node, nodes, gpus):
    options = [word for override in overrides for word in ("--set", override)]
    command = [
        "k8s-manifest",
        "RayJob",
        "--recipe",
        "sd21",
        "--run",
        "s3://B/r",
        "--image",
        "i",
        *SET_OPTIONS,
        *options,
    ]
    assert main([*command, "--gpus-per-node", str(gpus_per_node)]) == 0
    (group,) = yaml.safe_load(capsys.readouterr().out)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["maxReplicas"], limits["nvidia.com/gpu"]) == (nodes, gpus)
    assert int(limits["cpu"]) >= 8 * gpus_per_node


@pytest.mark.parametrize(
    ("overrides", "name", "gpus"),
    [
        (["name=sd2.1_A"], "nasa-sd2-1-a", None),
        ([f"name={'x' * 60}"], "nasa-" + "x" * 31, None),
        (["evaluation.gpus_per_process=1"], "nasa-shapes", "1"),
    ],
)
def test_names_are_valid_and_evaluation_gets_its_gpu(capsys, overrides, name, gpus):
    command = ["k8s-manifest", "RayJob", "--run", "s3://B/r", "--image", "i"]
    assert main([*command, *(word for override in overrides for word in ("--set", override))]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["metadata"]["name"] == name
    (group,) = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == gpus


@pytest.mark.parametrize("kind", [*RENDERED, "RayService"])
def test_a_given_name_replaces_the_one_of_the_recipe(kind, capsys):
    assert render(capsys, kind)["metadata"]["name"] == ("nasa-distill" if kind == "RayCluster" else "nasa-shapes-full")
    assert render(capsys, kind, "--name", "second-try")["metadata"]["name"] == "second-try"


def test_an_image_without_its_tag_is_an_error(capsys):
    """An unset variable of a shell ends the image's name with a colon."""
    for kind in ("RayJob", "RayService"):
        command = ["k8s-manifest", kind, "--recipe", "shapes-full", "--run", "s3://b/r", "--image", "REGISTRY/nasa:"]
        assert main(command) == 2
        assert "--image: got 'REGISTRY/nasa:'; expected an image with its tag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(
            ([kind, "--run", "s3://b/r", f"--name={name}"], f"--name: got {name!r}; expected at most 36 characters")
            for kind in ("RayJob", "RayService")
            for name in ("Second", "2nd", "a.b", "end-", "x" * 37, "a\n")
        ),
        (["RayJob", "--recipe", "mine.toml", "--run", "s3://b/r"], "recipe: got 'mine.toml'; expected one of"),
        (
            ["RayJob", "--recipe", "sd21", "--run", "s3://b/r"],
            "prompts.sources: got 'journeydb/*.jsonl*'; expected s3://",
        ),
        (["RayJob"], "--run: got nothing; expected a value"),
        (["RayService", "--max-replicas", "0"], "--max-replicas: got 0; expected a number of at least 1"),
        (["RayService", "--tracking-uri", "sqlite:///x"], "--tracking-uri: got 'sqlite:///x'; expected a server's"),
        (["RayJob", "--run", "runs/x"], "--run: got 'runs/x'; expected s3://"),
        (["RayCronJob", "--run", "s3://b/r"], "schedule.cron: got ''; expected five fields. Pass --cron"),
        (["RayJob", "--run", "s3://b/r", "--gpus-per-node", "0"], "--gpus-per-node: got 0; expected 1"),
        (
            ["RayJob", "--run", "s3://b/r", "--set", "evaluation.gpus_per_process=4"],
            "--gpus-per-node: got 1; expected 4, which one process needs, to 16",
        ),
        (["RayJob", "--run", "s3://b/r", "--tracking-uri", "http://me:hush@m"], "the secret in 'http://me:***@m'"),
        (
            ["RayJob", "--run", "s3://b/r", "--tracking-uri", "mlflow"],
            "--tracking-uri: got 'mlflow'; expected a server's http://",
        ),
    ],
)
def test_invalid_arguments_are_reported(capsys, arguments, message):
    assert main(["k8s-manifest", *arguments, "--image", "i"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "hush" not in captured.err


MANIFEST = ["k8s-manifest", "{}", "--recipe", "shapes-full", "--image", "i", "--run", "s3://b/r", *CRON]


def render(capsys, kind, *options):
    """Return the validated manifest that the command prints."""
    assert main([kind if word == "{}" else word for word in MANIFEST] + list(options)) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    validate(document)
    return document


def find_cluster(document):
    """Return the specification of the Ray cluster in a document."""
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


@pytest.mark.parametrize(("kind", "suspended"), [("RayJob", True), ("RayCluster", True), ("RayService", None)])
def test_a_queued_cluster_is_what_kueue_admits(kind, suspended, capsys):
    """Kueue's webhooks reject autoscaled clusters, jobs that leave their cluster, and a worker group named head."""
    plain = render(capsys, kind)
    document = render(capsys, kind, "--queue", "gpu.team-a", "--priority-class", "night")
    labels = document["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "gpu.team-a"
    assert labels["kueue.x-k8s.io/priority-class"] == "night"
    assert document["spec"].get("suspend") is suspended
    cluster = find_cluster(document)
    assert cluster["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in cluster
    (group,) = cluster["workerGroupSpecs"]
    assert group["groupName"] != "head"
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0
    assert group["maxReplicas"] == find_cluster(plain)["workerGroupSpecs"][0]["maxReplicas"]
    assert document["spec"].get("shutdownAfterJobFinishes", True)
    assert "suspend" not in plain["spec"]
    assert not [label for label in plain["metadata"]["labels"] if "kueue" in label]


@pytest.mark.parametrize("kind", [*RENDERED, "RayService"])
def test_every_pod_has_the_priority_class(kind, capsys):
    document = render(capsys, kind, "--priority-class", "night")
    pods = list(find_pods(document))
    assert len(pods) == {"CronJob": 1, "RayJob": 3, "RayCronJob": 3}.get(kind, 2)
    assert {pod["priorityClassName"] for pod in pods} == {"night"}
    assert not [label for label in document["metadata"]["labels"] if "kueue" in label], "Kueue's label needs a queue"
    assert not any("priorityClassName" in pod for pod in find_pods(render(capsys, kind)))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("RayJob", ["--queue", "Team A"], "--queue: got 'Team A'; expected at most 63 characters of a-z, 0-9"),
        ("RayService", ["--queue", "-a"], "--queue: got '-a'; expected at most 63"),
        ("RayJob", ["--queue", "a" * 64], "; expected at most 63 characters"),
        ("RayCluster", ["--priority-class", "a..b"], "--priority-class: got 'a..b'; expected at most 63"),
        ("RayService", ["--priority-class", "night\n"], "--priority-class: got 'night\\n'; expected at most 63"),
        ("RayCronJob", ["--queue", "q"], "--queue: got 'q'; expected none for a RayCronJob: KubeRay copies no label"),
        (
            "CronJob",
            ["--queue", "q"],
            "--queue: got 'q'; expected none for a CronJob: it runs no cluster; pass --queue",
        ),
    ],
)
def test_a_queue_or_class_that_kubernetes_would_not_use_is_an_error(kind, options, message, capsys):
    options = [f"{options[0]}={options[1]}"]
    assert main([kind if word == "{}" else word for word in MANIFEST] + options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def matches(selector, labels):
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_admitted(policy, source, port, same_namespace=True):
    """Tell whether a NetworkPolicy lets a pod with the labels `source` reach `port` of a pod that it selects."""
    for rule in policy["ingress"]:
        ports = [entry["port"] for entry in rule.get("ports", [])]
        for peer in rule["from"]:
            namespace = "namespaceSelector" in peer or same_namespace
            if namespace and matches(peer.get("podSelector", {}), source) and (not ports or port in ports):
                return True
    return False


def test_the_network_policy_admits_only_the_cluster_two_ports_and_prometheus():
    policy, mlflow = (
        document["spec"] for document in yaml.safe_load_all((DEPLOY / "kuberay/networkpolicy.yaml").read_text())
    )
    manifests = [yaml.safe_load((DEPLOY / f"kuberay/{file}.yaml").read_text()) for file in ("rayjob", "rayservice")]
    clusters = [find_cluster(document) for document in manifests]
    groups = [group for spec in clusters for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    labels = [group["template"]["metadata"]["labels"] for group in groups]
    assert len(labels) == 4
    assert all(matches(policy["podSelector"], one) for one in labels)
    assert not matches(policy["podSelector"], {"app.kubernetes.io/name": "mlflow"})
    assert mlflow["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "mlflow"}
    assert is_admitted(mlflow, {"any": "pod"}, 5000)
    assert not is_admitted(mlflow, {"any": "pod"}, 5000, same_namespace=False)
    assert not is_admitted(mlflow, {"any": "pod"}, 5001)
    assert policy["policyTypes"] == ["Ingress"]
    for port in (6379, 8265, 8000, 12345):
        assert all(is_admitted(policy, one, port) for one in labels)
        assert not is_admitted(policy, {}, port, same_namespace=False)
        assert is_admitted(policy, {"any": "pod"}, port) == (port in (8265, 8000))
        operator = {"app.kubernetes.io/component": "kuberay-operator"}
        assert is_admitted(policy, operator, port, same_namespace=False) == (port in (8265, 8000))
        prometheus = {"app.kubernetes.io/name": "prometheus"}
        assert not is_admitted(policy, prometheus, port, same_namespace=False)
    assert is_admitted(policy, prometheus, 8080, same_namespace=False)
    assert not is_admitted(policy, {"any": "pod"}, 8080)
    ports = {entry["containerPort"] for group in groups for entry in find_ports(group)}
    assert {8265, 8000} <= ports


def find_ports(group):
    return group["template"]["spec"]["containers"][0].get("ports", [])


@pytest.mark.parametrize("file", ["cluster.yaml", "deploy/on-premises.yaml"])
def test_the_head_starts_mlflow_once(file, tmp_path):
    """Ray runs the command in a shell whose own command line names the server too."""
    commands = yaml.safe_load((ROOT / file).read_text())["head_start_ray_commands"]
    (command,) = [line for line in commands if "mlflow server" in line]
    server, fake_pgrep = tmp_path / "venv/bin/mlflow", tmp_path / "bin/pgrep"
    for program, text in (
        (server, "echo started >> ~/starts\nsleep 20\ntrue\n"),
        (fake_pgrep, PGREP.format(pgrep=shutil.which("pgrep"))),
    ):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/bash\n{text}")
        program.chmod(0o755)
    (tmp_path / "mlflow").mkdir()
    environment = {"HOME": str(tmp_path), "PATH": f"{fake_pgrep.parent}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-c", f"true && {command}"], env=environment, check=True, timeout=30)
        time.sleep(1)
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("HOME") == str(tmp_path):
            process.kill()
    assert (tmp_path / "starts").read_text() == "started\n"


PGREP = """# finds only processes of this test: another MLflow may run on this machine
for pid in $({pgrep} "$@"); do grep -qz "^HOME=$HOME$" /proc/$pid/environ && exit 0; done
exit 1
"""


def test_ray_accepts_the_on_premises_cluster():
    config = prepare_config(yaml.safe_load((DEPLOY / "on-premises.yaml").read_text()))
    validate_config(config)
    for role in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in config[f"{role}_start_ray_commands"][-1]
    with pytest.raises(Exception, match="worker_count"):
        validate_config({**config, "worker_count": 4})


def test_the_on_premises_launcher_starts_all_workers():
    """Version 2 of the autoscaler counts the head of a `local` provider as a worker, or forgets it."""
    start = yaml.safe_load((DEPLOY / "on-premises.yaml").read_text())["head_start_ray_commands"][-1]
    assert start.index("RAY_enable_autoscaler_v2=0") < start.index("ray start --head")


@pytest.mark.parametrize("file", ["cluster.yaml", "deploy/on-premises.yaml"])
def test_a_cluster_can_be_launched_again_and_taken_down(file):
    """The launcher runs `ray stop` and the setup in a shell that has read ~/.bashrc; `python3` is then the venv's."""
    commands = yaml.safe_load((ROOT / file).read_text())["setup_commands"]
    assert any("PATH=$HOME/venv/bin:$PATH" in command and ".bashrc" in command for command in commands)
    assert commands[0].startswith("test -x ~/.local/bin/uv || "), "pip installs nothing for a user in a venv"
    assert "PIP_BREAK_SYSTEM_PACKAGES=1" in commands[0], "Debian's and Ubuntu's pip refuse to install otherwise"


def find_documented_commands(start):
    """Return the commands of docs/kuberay.md that begin with `start`, with continued lines joined."""
    text = (ROOT / "docs/kuberay.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith(start)]


def test_documented_kubectl_commands_use_rendered_manifests(capsys):
    """Every file that `kubectl` reads is printed by an earlier command or lies in the repository."""
    rendered = {}
    for words in find_documented_commands("python -m jobs k8s-manifest"):
        assert main(words[3 : words.index(">")]) == 0, words
        document = yaml.safe_load(capsys.readouterr().out)
        validate(document)
        rendered[words[-1]] = document
    fixed = {f"deploy/kuberay/{name}.yaml" for name in ("serviceaccount", "networkpolicy")}
    applied = [
        words[index + 1]
        for words in find_documented_commands(("kubectl apply", "sed "))
        for index, word in enumerate(words)
        if word == "-f"
    ]
    assert {*rendered, "-", *fixed} == set(applied)
    ((_, script, file, *_),) = find_documented_commands("sed ")
    result = subprocess.run(["sed", script, ROOT / file], capture_output=True, text=True, check=True)
    assert "image: registry.example/nasa-distill:$TAG" in result.stdout
    for document in yaml.safe_load_all(result.stdout):
        validate(document)
    names = {(document["kind"].lower(), document["metadata"]["name"]) for document in rendered.values()}
    for verb in ("get rayjob", "delete rayjob", "patch raycronjob"):
        (words,) = find_documented_commands(f"kubectl {verb}")
        assert tuple(words[2:4]) in names
    (words,) = find_documented_commands("kubectl patch")
    patched = rendered["raycronjob.yaml"]
    patched["spec"] |= json.loads(words[words.index("-p") + 1])["spec"]
    validate(patched)
    services = {words[2] for words in find_documented_commands("kubectl port-forward")}
    cluster = rendered["raycluster.yaml"]["metadata"]["name"]
    assert services == {f"service/{cluster}-head-svc", "service/$CLUSTER-head-svc", "service/mlflow"}


def test_documented_secrets_are_those_that_pods_read():
    secrets = {words[4] for words in find_documented_commands("kubectl create secret")}
    files = (DEPLOY / "kuberay").glob("*.yaml")
    text = "".join(file.read_text() for file in files)
    assert secrets == {"ray-token", "nasa-distill"}
    for name in secrets:
        assert f"name: {name}\n" in text or f"secretName: {name}\n" in text
