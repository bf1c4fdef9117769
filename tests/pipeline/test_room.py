import pytest
import ray

from pipeline import recipe, room
from pipeline.errors import UserError


def check(monkeypatch, *overrides):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    options = recipe.parse("", ["train.batch_size=8", "train.gpus_per_worker=1", *overrides])
    for ask in (room.of_training(options.train), room.of_evaluation(options.evaluation)):
        room.require_room(ask, 0, None)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.workers=2"],
        ["train.workers=8", "train.min_workers=2"],
        ["evaluation.gpus_per_process=2", "evaluation.processes=9"],
    ],
)
def test_what_this_machine_has_is_enough(monkeypatch, overrides):
    check(monkeypatch, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.workers=3"], "train.gpus_per_worker: 3 workers x 1 ask for 3 GPUs, and there are 2; allowed: fewer"),
        (["train.cpus_per_worker=3"], "train.cpus_per_worker: 2 workers x 3 ask for 6 CPUs, and there are 4"),
        (
            ["train.encoders=1", "train.gpus_per_encoder=0.5"],
            r"train.gpus_per_worker: 2 workers x 1\.5 ask for 3 GPUs",
        ),
        (
            ["evaluation.gpus_per_process=3"],
            "evaluation.gpus_per_process: 1 process x 3 ask for 3 GPUs, and there are 2",
        ),
    ],
)
def test_what_is_missing_is_named(monkeypatch, overrides, message):
    with pytest.raises(UserError, match=message):
        check(monkeypatch, *overrides)


def test_a_cluster_that_makes_no_room_is_one_line_after_a_while(ray_cluster, monkeypatch):
    said = []
    room.require_room(room.Ask("train", "worker", 1, room.each(0.5, 0)), 0.01, "a cluster", said.append)
    assert not said, "what has room is not told"
    monkeypatch.setattr(room, "STARTS_SECONDS", 0.1)
    ask = room.Ask("train", "worker", 4, room.each(0.5, 1))
    with pytest.raises(UserError) as refused:
        room.require_room(ask, 0.01, "a cluster", said.append)
    (line,) = said
    assert line.startswith("waiting for room: 4 workers with 0.5 CPU and 1 GPU each; the cluster has ")
    assert line.endswith("0 of 0 GPU free; for 0.01 minutes at most")
    assert str(refused.value).startswith("train.gpus_per_worker: 4 workers with 0.5 CPU and 1 GPU each are asked for")
