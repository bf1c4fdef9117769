"""What stands in `deploy/` is what its readers take: Ray's schema, KubeRay's definitions, Kubernetes' fields."""

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

from jobs.__main__ import main, make_parser

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CRDS = json.loads(lzma.decompress((ROOT / "tests/data/kuberay/crds.json.xz").read_bytes()))
POD = CRDS["RayCluster"]["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]["template"]
RENDERED = {"RayCluster": "raycluster", "RayJob": "rayjob", "RayCronJob": "raycronjob", "CronJob": "cronjob"}
CRON = ["--cron", "0 3 * * SUN", "--timezone", "Europe/Berlin"]
MATERIAL = ["prompts.root=s3://BUCKET/prompts", "evaluation.benchmarks=s3://BUCKET/benchmarks"]
SETS = [word for one in MATERIAL for word in ("--set", one)]
OWN = ["--recipe", "sd21", "--image", "REGISTRY/nasa-distill:latest", "--gpus-per-node", "4", *SETS]


def fields(*names, **more):
    """A closed object of Kubernetes' own, whose parts that are not named here are free."""
    return {"type": "object", "properties": {name: {} for name in names} | more, "additionalProperties": False}


KUBERNETES = {  # batch/v1, apps/v1 and v1 as their reference has them; pods by the schema that KubeRay copies from it
    "CronJob": fields(
        *("schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "successfulJobsHistoryLimit"),
        *("failedJobsHistoryLimit", "suspend"),
        jobTemplate=fields("metadata", spec=fields("backoffLimit", "activeDeadlineSeconds", template=POD)),
    ),
    "Deployment": fields("replicas", "strategy", "selector", template=POD),
    "Service": fields("selector", "ports", "type"),
    "PersistentVolumeClaim": fields("accessModes", "resources", "storageClassName"),
}


def documents():
    for file in sorted((DEPLOY / "kuberay").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield pytest.param(document, id=f"{file.name}: {document['kind']}")


@cache
def validator(kind):
    """`jsonschema.validate` checks these large schemas again for every document."""
    return jsonschema.Draft202012Validator(CRDS.get(kind) or KUBERNETES[kind])


def check(document):
    kind = document["kind"]
    if kind in CRDS:
        assert document["apiVersion"] == "ray.io/v1"
        validator(kind).validate(document)
    elif "spec" in document:
        validator(kind).validate(document["spec"])


def pods(node):
    """All pod specifications in a document."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


@pytest.mark.parametrize("document", documents())
def test_every_manifest_has_only_fields_that_there_are(document):
    check(document)


def test_an_unknown_field_is_refused():
    document = yaml.safe_load((DEPLOY / "kuberay/raycronjob.yaml").read_text())
    for place in (document["spec"], document["spec"]["jobTemplate"], next(pods(document))["containers"][0]):
        place["concurencyPolicy"] = "Forbid"
        with pytest.raises(jsonschema.ValidationError, match="concurencyPolicy"):
            check(document)
        del place["concurencyPolicy"]
    check(document)


@pytest.mark.parametrize("document", documents())
def test_pods_run_without_privileges_and_hold_no_secret(document):
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]
            plain = [entry["name"] for entry in container.get("env", []) if "value" in entry]
            assert set(plain) <= {"MLFLOW_TRACKING_URI"}


@pytest.mark.parametrize("kind", RENDERED)
def test_the_files_are_what_the_command_prints(kind, capsys):
    recurring = kind in ("RayCronJob", "CronJob")
    run = ["--run", "s3://BUCKET/schedules/weekly", *CRON] if recurring else ["--run", "s3://BUCKET/runs/first"]
    assert main(["k8s-manifest", kind, *OWN, *run]) == 0
    assert capsys.readouterr().out == (DEPLOY / f"kuberay/{RENDERED[kind]}.yaml").read_text(), "run deploy/render.sh"


@pytest.mark.parametrize("kind", ["RayJob", "RayCronJob", "CronJob"])
def test_what_a_manifest_starts_is_a_command_that_there_is(kind):
    document = yaml.safe_load((DEPLOY / f"kuberay/{RENDERED[kind]}.yaml").read_text())
    if kind == "CronJob":
        words = next(pods(document))["containers"][0]["command"]
    else:
        words = shlex.split((document["spec"] if kind == "RayJob" else document["spec"]["jobTemplate"])["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs"]
    make_parser().parse_args(words[3:])


@pytest.mark.parametrize(
    ("sets", "gpus_per_node", "nodes", "gpus"),
    [
        (["evaluation.every_n_checkpoints=0"], 1, 4, "1"),
        (["evaluation.every_n_checkpoints=0"], 4, 1, "4"),
        ([], 1, 5, "1"),
        ([], 4, 2, "4"),
        ([], 3, 2, "3"),
        (["train.num_workers=16"], 8, 3, "8"),
    ],
)
def test_the_cluster_holds_the_recipe_s_workers_and_who_evaluates_meanwhile(capsys, sets, gpus_per_node, nodes, gpus):
    more = [word for one in sets for word in ("--set", one)]
    command = ["k8s-manifest", "RayJob", "--recipe", "sd21", "--run", "s3://B/r", "--image", "i", *SETS, *more]
    assert main([*command, "--gpus-per-node", str(gpus_per_node)]) == 0
    (group,) = yaml.safe_load(capsys.readouterr().out)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (group["maxReplicas"], limits["nvidia.com/gpu"]) == (nodes, gpus)
    assert int(limits["cpu"]) >= 8 * gpus_per_node


@pytest.mark.parametrize(
    ("sets", "name", "gpus"),
    [
        (["name=sd2.1_A"], "nasa-sd2-1-a", None),
        ([f"name={'x' * 60}"], "nasa-" + "x" * 31, None),
        (["evaluation.gpus_per_process=1"], "nasa-shapes", "1"),
    ],
)
def test_names_are_kubernetes_own_and_who_evaluates_has_a_gpu(capsys, sets, name, gpus):
    command = ["k8s-manifest", "RayJob", "--run", "s3://B/r", "--image", "i"]
    assert main([*command, *(word for one in sets for word in ("--set", one))]) == 0
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["metadata"]["name"] == name
    (group,) = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == gpus


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RayJob", "--recipe", "mine.toml", "--run", "s3://b/r"], "recipe: got 'mine.toml'; expected one of"),
        (
            ["RayJob", "--recipe", "sd21", "--run", "s3://b/r"],
            "prompts.sources: got 'journeydb/*.jsonl*'; expected s3://",
        ),
        (["RayJob", "--run", "runs/x"], "--run: got 'runs/x'; expected s3://"),
        (["RayCronJob", "--run", "s3://b/r"], "schedule.cron: got ''; expected five fields. Pass --cron"),
        (["RayJob", "--run", "s3://b/r", "--gpus-per-node", "0"], "--gpus-per-node: got 0; expected 1"),
        (
            ["RayJob", "--run", "s3://b/r", "--set", "evaluation.gpus_per_process=4"],
            "--gpus-per-node: got 1; expected 4, for one process, to 16",
        ),
        (["RayJob", "--run", "s3://b/r", "--tracking-uri", "http://me:hush@m"], "the secret in 'http://me:***@m'"),
        (
            ["RayJob", "--run", "s3://b/r", "--tracking-uri", "mlflow"],
            "--tracking-uri: got 'mlflow'; expected a server's http://",
        ),
    ],
)
def test_a_mistake_is_one_line(capsys, arguments, message):
    assert main(["k8s-manifest", *arguments, "--image", "i"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "hush" not in captured.err


@pytest.mark.parametrize("file", ["cluster.yaml", "deploy/on-premises.yaml"])
def test_the_head_starts_mlflow_once(file, tmp_path):
    """As Ray runs it: within a shell whose own command line names the server too."""
    commands = yaml.safe_load((ROOT / file).read_text())["head_start_ray_commands"]
    (command,) = [each for each in commands if "mlflow server" in each]
    server, own_pgrep = tmp_path / "venv/bin/mlflow", tmp_path / "bin/pgrep"
    for program, text in (
        (server, "echo started >> ~/starts\nsleep 20\ntrue\n"),
        (own_pgrep, PGREP.format(pgrep=shutil.which("pgrep"))),
    ):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/bash\n{text}")
        program.chmod(0o755)
    (tmp_path / "mlflow").mkdir()
    environment = {"HOME": str(tmp_path), "PATH": f"{own_pgrep.parent}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-c", f"true && {command}"], env=environment, check=True, timeout=30)
        time.sleep(1)
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("HOME") == str(tmp_path):
            process.kill()
    assert (tmp_path / "starts").read_text() == "started\n"


PGREP = """# only this test's processes: another MLflow may run on this machine
for pid in $({pgrep} "$@"); do grep -qz "^HOME=$HOME$" /proc/$pid/environ && exit 0; done
exit 1
"""


def test_ray_s_schema_accepts_the_cluster_on_premises():
    config = prepare_config(yaml.safe_load((DEPLOY / "on-premises.yaml").read_text()))
    validate_config(config)
    for role in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in config[f"{role}_start_ray_commands"][-1]
    with pytest.raises(Exception, match="worker_count"):
        validate_config({**config, "worker_count": 4})


def page_commands(start):
    """Of docs/kuberay.md, continued lines joined."""
    text = (ROOT / "docs/kuberay.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith(start)]


def test_the_page_s_manifests_are_made_checked_and_applied(capsys):
    """What `kubectl` is given is there: a file that a command before it has printed, or one of the repository."""
    made = {}
    for words in page_commands("python -m jobs k8s-manifest"):
        assert main(words[3 : words.index(">")]) == 0, words
        document = yaml.safe_load(capsys.readouterr().out)
        check(document)
        made[words[-1]] = document
    applied = [
        words[at + 1]
        for words in page_commands(("kubectl apply", "sed "))
        for at, word in enumerate(words)
        if word == "-f"
    ]
    assert {*made, "-"} == set(applied)
    ((_, script, file, *_),) = page_commands("sed ")
    ended = subprocess.run(["sed", script, ROOT / file], capture_output=True, text=True, check=True)
    assert "image: registry.example/nasa-distill:latest" in ended.stdout
    for document in yaml.safe_load_all(ended.stdout):
        check(document)
    named = {(document["kind"].lower(), document["metadata"]["name"]) for document in made.values()}
    for verb in ("get rayjob", "patch raycronjob"):
        (words,) = page_commands(f"kubectl {verb}")
        assert tuple(words[2:4]) in named
    (words,) = page_commands("kubectl patch")
    patched = made["raycronjob.yaml"]
    patched["spec"] |= json.loads(words[words.index("-p") + 1])["spec"]
    check(patched)
    (words,) = page_commands("kubectl port-forward")
    assert words[2] == f"service/{made['raycluster.yaml']['metadata']['name']}-head-svc"


def test_the_page_s_secrets_are_those_that_pods_read():
    given = {words[4] for words in page_commands("kubectl create secret")}
    files = (DEPLOY / "kuberay").glob("*.yaml")
    text = "".join(file.read_text() for file in files)
    assert given == {"ray-token", "nasa-distill"}
    for name in given:
        assert f"name: {name}\n" in text or f"secretName: {name}\n" in text
