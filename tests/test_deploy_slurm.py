"""The structure of `deploy/slurm/ray.sub`, run with programs that record their calls instead of Slurm and Ray."""

import os
import shlex
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from jobs.__main__ import make_parser

SCRIPT = Path(__file__).parents[1] / "deploy/slurm/ray.sub"
RUN = ["--recipe", "sd21", "--run", "/shared/runs/it's first", "--set", "train.steps=2"]
RECORD = """#!/bin/bash
echo "$(basename "$0")$(printf ' %q' "$@")" >> "$CALLS"
"""
SRUN = """case "$*" in
*hostname*) echo 10.0.0.7 fe80::1 ;;
*"$BROKEN"*) exit 1 ;;
*) trap 'echo ended >> "$CALLS"; kill $!; exit 0' TERM; echo ready >> "$CALLS"; sleep 60 & wait ;;
esac
"""
PYTHON = """[[ $1 != -c ]] || { echo 0123456789abcdef; exit; }
trap 'echo "run ended" >> "$CALLS"; exit 143' TERM
until (($(grep -c ready "$CALLS") == STEPS)); do sleep 0.1; done
stat -c "token %a" "$RAY_AUTH_TOKEN_PATH" >> "$CALLS"
while [[ $CODE == wait ]]; do sleep 0.1; done
exit "$CODE"
"""
RAY = """[[ $BROKEN == none && -e $CALLS.ready ]] || { touch "$CALLS.ready"; exit 1; }
"""
PROGRAMS = {"scontrol": """printf '%s\\n' $NODES""", "srun": SRUN, "ray": RAY, "python": PYTHON}


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the script on nodes, with the exit code of its run."""
    programs = tmp_path / "venv/bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text("")
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"{RECORD}{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), "VENV": str(tmp_path / "venv"),
        "CALLS": str(tmp_path / "calls"), "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4", "POLL_SECONDS": "0.1",
    }  # fmt: skip

    def start_script(nodes, code="0", broken="none"):
        steps = str(min(2, len(nodes.split())))
        variables = environment | {"NODES": nodes, "CODE": code, "BROKEN": broken, "STEPS": steps}
        return subprocess.Popen(["bash", SCRIPT, *RUN], env=variables, stderr=subprocess.PIPE, text=True)

    return start_script


def read_calls(tmp_path, program):
    lines = (tmp_path / "calls").read_text().splitlines()
    return [shlex.split(line)[1:] for line in lines if line.split()[0] == program]


def find_token_files(tmp_path):
    return list((tmp_path / "home/.ray").glob("*"))


def test_the_script_is_valid_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    options = [line.split(maxsplit=1)[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--ntasks-per-node=1", "--signal=B:TERM@120"} <= set(options)


@pytest.mark.parametrize(("nodes", "workers"), [("n1", 0), ("n1 n2 n3", 2)])
@pytest.mark.parametrize("code", [0, 2])
def test_a_cluster_of_all_nodes_runs_the_command_and_ends(nodes, workers, code, start, tmp_path):
    process = start(nodes, str(code))
    assert process.wait(timeout=30) == code, process.stderr.read()
    address, *steps = read_calls(tmp_path, "srun")
    assert address[-2:] == ["hostname", "--ip-address"]
    assert len(steps) == 1 + bool(workers)
    head = steps[0]
    assert {"--nodelist=n1", "--head", "--block", "--port=24567", "--node-ip-address=10.0.0.7"} <= set(head)
    for step, count in zip(steps, (1, workers), strict=False):
        assert {f"--nodes={count}", f"--ntasks={count}", "--ntasks-per-node=1", "--cpus-per-task=32"} <= set(step)
        assert {"--num-cpus=32", "--num-gpus=4"} <= set(step)
    if workers:
        assert {"--exclude=n1", "--address=10.0.0.7:24567", "--block"} <= set(steps[1])
    _, command = read_calls(tmp_path, "python")
    assert command == ["-m", "jobs", "run", *RUN, "--ray-address", "10.0.0.7:24567"]
    options = make_parser().parse_args(command[2:])
    assert (options.run, options.ray_address) == ("/shared/runs/it's first", "10.0.0.7:24567")
    assert len(read_calls(tmp_path, "ray")) == 2, "it waited for the head node"
    assert len(read_calls(tmp_path, "ended")) == len(steps)
    assert read_calls(tmp_path, "token") == [["600"]]
    assert not find_token_files(tmp_path)
    assert "0123456789abcdef" not in (tmp_path / "calls").read_text()


def test_a_head_node_that_does_not_start_is_one_line(start, tmp_path):
    process = start("n1 n2", broken="--head")
    assert process.wait(timeout=30) == 1
    assert process.stderr.read().splitlines() == ["ray: the head node on n1 did not start"]
    assert len(read_calls(tmp_path, "python")) == 1, "the run is not started"
    assert not find_token_files(tmp_path)


def test_the_signal_before_the_time_limit_ends_the_run_and_the_cluster(start, tmp_path):
    process = start("n1 n2", "wait")
    for _ in range(100):
        time.sleep(0.1)
        if (tmp_path / "calls").is_file() and read_calls(tmp_path, "token"):
            break
    (token,) = find_token_files(tmp_path)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143, process.stderr.read()
    assert read_calls(tmp_path, "run") == [["ended"]]
    assert len(read_calls(tmp_path, "ended")) == 2
    assert not find_token_files(tmp_path)
