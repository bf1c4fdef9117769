"""The commands of `docs/cluster.md` and `docs/runbook.md`, with a small recipe and a local bucket."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from datasets_prep.benchmark_prompts import HPSV2_STYLES
from jobs.__main__ import main
from pipeline import ROOT
from pipeline.storage import Folder

PAGE = (ROOT / "docs/cluster.md").read_text().replace("\\\n", " ")
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python -m jobs ")]
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
