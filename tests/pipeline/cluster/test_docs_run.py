"""The commands of docs/cluster.md, docs/runbook.md and docs/local-cluster.md; S3 is a local bucket."""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from datasets_prep.benchmark_prompts import HPSV2_STYLES
from jobs.__main__ import main
from pipeline import ROOT
from pipeline.cluster.job_client import find_token
from pipeline.storage import Folder


def find_lines(page, start):
    """Return the lines of a page's code blocks that begin with `start`, with continued lines joined."""
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(start)]


COMMANDS = find_lines("cluster.md", "python -m jobs ")
RUNBOOK = re.findall(r"`(python -m jobs [^`]+)`", (ROOT / "docs/runbook.md").read_text())
REMOVE = next(number for number, line in enumerate(COMMANDS) if "schedule remove" in line)
RECIPE = """
name = "sd21"
teacher = "{teacher}"

[[prompts.sources]]
path = "journeydb/*.txt"

[train]
steps = 2
checkpoint_every_n_steps = 1
batch_size = 4
clip_weight = 0.0

[lora_teacher]
rank = 2

[evaluation]
num_prompts = 2
teacher_prompts = 0
scales = [0.5]

[promotion]
metric = "clip_positive"
"""
EXPECTED_OUTPUT = {  # by the beginning of a command
    "submit prepare-benchmarks": "3200 rows",
    "submit run --recipe sd21 --run s3://BUCKET/runs/first": "registered",
    "list": "run-sd21",
    "status run-sd21": "succeeded",
    "logs run-sd21 --follow": "registered",
    "schedule list": "weekly",
    "schedule pause": "paused",
    "logs run-sd21": "registered",
    "models": "nasa-sd21",
}
EXPECTED_ERROR = {"models rollback": "has no champion"}  # a single version without scores


@pytest.mark.slow
def test_the_documented_commands_work(cluster_url, bucket, tiny_teacher, tmp_path, monkeypatch, capfd):
    texts = [f"a photo of {thing}" for thing in ("a cat", "a dog", "a tree", "a house")] * 5
    Folder.from_uri(f"{bucket}/prompts/journeydb").write("1.txt", "\n".join(texts).encode())
    for style in HPSV2_STYLES:
        Folder.from_uri(f"{bucket}/HPDv2/benchmark").write(f"{style}.json", json.dumps([style] * 800).encode())
    recipe = tmp_path / "sd21.toml"
    recipe.write_text(RECIPE.format(teacher=tiny_teacher))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/ml.db")
    subprocess.run([Path(sys.executable).parent / "ray", "get-auth-token", "--generate"], check=True, timeout=120)
    assert len(COMMANDS) > 12
    assert len(RUNBOOK) > 4
    outputs = {}
    for line in [*COMMANDS[:REMOVE], *RUNBOOK, *COMMANDS[REMOVE:]]:
        words = shlex.split(line.replace("s3://BUCKET", bucket).replace("--recipe sd21", f"--recipe {recipe}"))[3:]
        capfd.readouterr()
        code = main(words)
        command = line.removeprefix("python -m jobs ")
        outputs[command], err = capfd.readouterr()
        error = next((words for start, words in EXPECTED_ERROR.items() if command.startswith(start)), "")
        assert code == (2 if error else 0), f"{line}\n{err}"
        assert error in err
    for start, expected in EXPECTED_OUTPUT.items():
        assert any(line.startswith(start) and expected in out for line, out in outputs.items()), (start, outputs)


EXPECTED_LOCALLY = {
    "list": "run-shapes",
    "status": "status",
    "logs": "registered nasa-shapes",
    "stop": "had ended before",
}


@pytest.mark.slow
def test_the_local_cluster_of_the_docs_runs_a_job(cluster_url, tmp_path, monkeypatch, capfd):
    """The fixture starts the cluster as the page does; Ray Train's runs are read as its `curl` reads them."""
    (start,) = find_lines("local-cluster.md", "ray start")
    assert shlex.split(start) == ["ray", "start", "--head", "--block", "--num-cpus=6"]
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", cluster_url)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for line in find_lines("local-cluster.md", "python -m jobs "):
        words = shlex.split(line.replace("$PWD", str(tmp_path)))[3:]
        capfd.readouterr()
        code = main(words)
        out, err = capfd.readouterr()
        assert code == 0, f"{line}\n{err}\n{out}"
        assert EXPECTED_LOCALLY.get(words[0], "submitted") in out, out
    (curl,) = find_lines("local-cluster.md", "curl")
    path = curl.rpartition(":8265")[2]
    headers = {"Authorization": f"Bearer {find_token()}"}
    with urllib.request.urlopen(urllib.request.Request(cluster_url + path, headers=headers), timeout=60) as answer:
        (run,) = json.loads(answer.read())["train_runs"]
    assert run["status"] == "FINISHED"
