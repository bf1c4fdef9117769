"""`deploy/on-premises.yaml` launched by `ray up`, on three hosts in network namespaces of this machine (slow).

The file is used as it is: its addresses, its account, its commands. The hosts have the packages already, so that its
`pip install` finds nothing to do. The tests run in order, on one cluster; the last one ends it.
"""

import os
import re
import time
from contextlib import suppress

import pytest

from benchmarks.chaos.harness import TIMEOUT, wait_for
from benchmarks.chaos.launched_cluster import TRACKING_URI, LaunchedCluster
from benchmarks.chaos.namespace_hosts import find_missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(find_missing()), reason=f"hosts in namespaces need: {', '.join(find_missing())}"),
]
FAULT_SECONDS = 60
ONE_WAY_SECONDS = 0.025  # twice that from one delayed host to another
OVERRIDES = {
    "train.steps": 16,
    "train.checkpoint_every_n_steps": 4,
    "train.batch_size": 4,
    "train.clip_weight": 0,
    "train.cpus_per_worker": 0.75 * (os.cpu_count() or 1),  # of a node's: the workers are on different nodes
    "train.max_failures": 20,
    "lora_teacher.rank": 4,
    "evaluation.num_prompts": 4,
    "evaluation.teacher_prompts": 0,
    "evaluation.scales": "[0.5]",
    "evaluation.exclusion_seeds": 24,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Yield the launched cluster, with its job server forwarded to the desk."""
    try:
        cluster = LaunchedCluster(tmp_path_factory.mktemp("launch"))
    except ConnectionError as error:
        pytest.skip(f"no package index: {error}")
    try:
        print(f"{cluster.launch():.0f} s until all nodes had joined")
        cluster.forward_job_server()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def expected(cluster):
    """Return the hash of the student of an undisturbed run, which prepares, distills, evaluates and registers."""
    start, job = time.monotonic(), cluster.start(submit("run", "undisturbed"))
    wait_for(lambda: len(cluster.find_training_hosts()) == 2, "train workers on two hosts", job, pause=1)
    assert job.wait(TIMEOUT) == 0, job.output[-5000:]
    print(f"{time.monotonic() - start:.0f} s for the whole job, undisturbed")
    assert "registered nasa-shapes version 1 as champion" in job.output
    return cluster.read_manifest("undisturbed")["student_sha256"]


def submit(command, run):
    """Return the command that submits a job to the cluster and follows it."""
    overrides = " ".join(f"--set '{name}={value}'" for name, value in OVERRIDES.items())
    return f"python -m jobs submit {command} --run s3://runs/{run} --tracking-uri {TRACKING_URI} {overrides}"


def start_distillation(cluster, run):
    """Start a distillation of the prepared prompts, and wait for its first step."""
    cluster.wait_for_nodes(3)
    cluster.copy_prompts("undisturbed", run)
    job = cluster.start(submit("distill", run))
    job.started = time.monotonic()
    wait_for(lambda: count_steps(job), "the first step", job)
    return job


def count_steps(job):
    """Return the steps that a job has printed so far."""
    return max((int(step) for step in re.findall(r"^distil: (\d+) of", job.output, re.MULTILINE)), default=0)


def choose_worker(cluster):
    """Return a node that trains and is not the head."""
    return next(host for host in cluster.find_training_hosts() if host is not cluster.head)


def assert_same_student(cluster, job, run, expected):
    """Wait for the end of a job, and assert that the student is the undisturbed run's, without a traceback of ours."""
    code = job.wait(TIMEOUT)
    print(f"{time.monotonic() - job.started:.0f} s for {run}")
    assert code == 0, job.output[-5000:]
    assert "Traceback" not in job.output, job.output[-5000:]
    assert cluster.read_manifest(run)["student_sha256"] == expected


def test_a_wrong_token_is_refused_in_one_line(cluster):
    outcome = cluster.run("RAY_AUTH_TOKEN=wrong python -m jobs list")
    assert outcome.code == 2
    (line,) = outcome.output.splitlines()
    assert "the one here is not the cluster's" in line


def test_a_submitted_job_distills_on_two_hosts(expected):
    assert len(expected) == 64


def test_a_host_is_unplugged_for_a_minute(cluster, expected):
    """Its node is declared dead; training waits for it to join again, and resumes from a checkpoint."""
    job = start_distillation(cluster, "unplugged")
    wait_for(lambda: count_steps(job) >= OVERRIDES["train.checkpoint_every_n_steps"], "a checkpoint", job)
    victim = choose_worker(cluster)
    cluster.switch.unplug(victim)
    time.sleep(FAULT_SECONDS)
    cluster.switch.plug(victim)
    assert_same_student(cluster, job, "unplugged", expected)


def test_latency(cluster, expected):
    """Each worker is 50 ms, there and back, away from the head node, S3 and MLflow, and 100 ms from the other."""
    with (
        cluster.switch.delay(cluster.workers[0], ONE_WAY_SECONDS),
        cluster.switch.delay(cluster.workers[1], ONE_WAY_SECONDS),
    ):
        job = start_distillation(cluster, "delayed")
        assert_same_student(cluster, job, "delayed", expected)


def test_the_head_and_a_worker_are_apart_for_a_minute(cluster, expected):
    """Both still reach the other worker, S3 and the desk."""
    job = start_distillation(cluster, "apart")
    nodes = [cluster.head, choose_worker(cluster)]
    cluster.switch.set_partition(nodes, True)
    time.sleep(FAULT_SECONDS)
    cluster.switch.set_partition(nodes, False)
    assert_same_student(cluster, job, "apart", expected)


def test_launching_again_restarts_the_nodes(cluster, expected):
    outcome = cluster.run("ray up --yes deploy/on-premises.yaml")
    assert outcome.code == 0, outcome.output[-3000:]
    cluster.wait_for_nodes(3)


def test_taking_the_cluster_down_leaves_no_process(cluster):
    cluster.stop_forwarding()
    for command in ("ray exec deploy/on-premises.yaml 'pkill -x mlflow'", "ray down --yes deploy/on-premises.yaml"):
        outcome = cluster.run(command)
        assert outcome.code == 0, outcome.output
    with suppress(AssertionError):
        wait_for(lambda: not cluster.list_processes(), "end of all processes", seconds=180, pause=1)
    assert cluster.list_processes() == []
