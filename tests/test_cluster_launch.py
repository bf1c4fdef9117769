"""`deploy/on-premises.yaml` launched by `ray up`, on three hosts in network namespaces of this machine (slow).

The file is used as it is: its addresses, its account, its commands. The hosts have the packages already, so that its
`pip install` finds nothing to do. The tests run in order, on one cluster; the last one ends it.
"""

import time

import pytest

from benchmarks.chaos.harness import TIMEOUT, wait_for
from benchmarks.chaos.launched_cluster import TRACKING_URI, LaunchedCluster
from benchmarks.chaos.namespace_hosts import find_missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(find_missing()), reason=f"hosts in namespaces need: {', '.join(find_missing())}"),
]
OVERRIDES = {
    "train.steps": 16,
    "train.checkpoint_every_n_steps": 4,
    "train.batch_size": 4,
    "train.clip_weight": 0,
    "train.cpus_per_worker": 1.5,  # of the two of a node, so that the workers are on different nodes
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
    wait_for(lambda: len(cluster.find_training_hosts()) == 2, "train workers on two hosts", job)
    assert job.wait(TIMEOUT) == 0, job.output[-5000:]
    print(f"{time.monotonic() - start:.0f} s for the whole job, undisturbed")
    assert "registered nasa-shapes version 1 as champion" in job.output
    return cluster.read_manifest("undisturbed")["student_sha256"]


def submit(command, run):
    """Return the command that submits a job to the cluster and follows it."""
    overrides = " ".join(f"--set '{name}={value}'" for name, value in OVERRIDES.items())
    return f"python -m jobs submit {command} --run s3://runs/{run} --tracking-uri {TRACKING_URI} {overrides}"


def test_a_wrong_token_is_refused_in_one_line(cluster):
    outcome = cluster.run("RAY_AUTH_TOKEN=wrong python -m jobs list")
    assert outcome.code == 2
    (line,) = outcome.output.splitlines()
    assert "the one here is not the cluster's" in line


def test_a_submitted_job_distills_on_two_hosts(expected):
    assert len(expected) == 64


def test_launching_again_restarts_the_nodes(cluster, expected):
    outcome = cluster.run("ray up --yes deploy/on-premises.yaml")
    assert outcome.code == 0, outcome.output[-3000:]
    cluster.wait_for_nodes(3)


def test_taking_the_cluster_down_leaves_no_process(cluster):
    cluster.stop_forwarding()
    for command in ("ray exec deploy/on-premises.yaml 'pkill -x mlflow'", "ray down --yes deploy/on-premises.yaml"):
        outcome = cluster.run(command)
        assert outcome.code == 0, outcome.output
    nodes = (cluster.head, *cluster.workers)
    wait_for(lambda: not any(node.find_processes() for node in nodes), "end of all processes", seconds=180)
