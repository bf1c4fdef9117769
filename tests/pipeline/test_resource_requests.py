import pytest
import ray

from pipeline import recipe, resource_requests
from pipeline.errors import UserError
from pipeline.resource_requests import (
    ResourceRequest,
    build_evaluation_request,
    build_ray_resources,
    build_training_request,
    wait_for_resources,
)


def request_resources(monkeypatch, *overrides):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    options = recipe.parse("", ["train.batch_size=8", "train.gpus_per_worker=1", *overrides])
    for request in (build_training_request(options.train), build_evaluation_request(options.evaluation)):
        wait_for_resources(request, 0, None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.num_workers=2"],
        ["train.num_workers=8", "train.min_workers=2"],
        ["evaluation.gpus_per_process=2", "evaluation.num_processes=9"],
    ],
)
def test_a_satisfiable_request_passes(monkeypatch, overrides):
    request_resources(monkeypatch, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.num_workers=3"],
            "train.gpus_per_worker: 3 workers x 1 GPU requested, 2 available. Lower it",
        ),
        (["train.cpus_per_worker=3"], "train.cpus_per_worker: 2 workers x 3 CPU requested, 4 available"),
        (
            ["train.num_encoders=1", "train.gpus_per_encoder=0.5"],
            r"train.gpus_per_worker: 2 workers x 1\.5 GPU requested, 2 available",
        ),
        (
            ["evaluation.gpus_per_process=3"],
            "evaluation.gpus_per_process: 1 process x 3 GPU requested, 2 available",
        ),
    ],
)
def test_an_unsatisfiable_request_names_the_missing_resource(monkeypatch, overrides, message):
    with pytest.raises(UserError, match=message):
        request_resources(monkeypatch, *overrides)


def test_missing_cluster_resources_are_reported_after_the_timeout(ray_cluster, monkeypatch):
    logged = []
    wait_for_resources(
        ResourceRequest("train", "worker", 1, build_ray_resources(0.5, 0)), 0.01, "a cluster", logged.append
    )
    assert not logged, "a satisfied request logs nothing"
    monkeypatch.setattr(resource_requests, "GRACE_SECONDS", 0.1)
    request = ResourceRequest("train", "worker", 4, build_ray_resources(0.5, 1))
    with pytest.raises(UserError) as caught:
        wait_for_resources(request, 0.01, "a cluster", logged.append)
    (line,) = logged
    assert line.startswith(
        "waiting up to 0.01 minutes for resources: 4 workers with 0.5 CPU and 1 GPU each; the cluster"
    )
    assert line.endswith("0 of 0 GPU free")
    assert str(caught.value).startswith("train.gpus_per_worker: 4 workers with 0.5 CPU and 1 GPU each requested")
