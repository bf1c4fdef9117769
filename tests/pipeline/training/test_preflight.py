import pytest
import ray

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.storage import Folder
from pipeline.training import preflight


def check(monkeypatch, *overrides):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0, "GPU": 2.0})
    preflight.check_resources(recipe.parse("", ["train.batch_size=8", "train.gpus_per_worker=1", *overrides]))


@pytest.mark.parametrize("overrides", [["train.workers=2"], ["train.workers=8", "train.min_workers=2"]])
def test_what_the_cluster_has_is_enough(monkeypatch, overrides):
    check(monkeypatch, *overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.workers=3"], "train.gpus_per_worker: 3 workers x 1 ask for 3 GPUs, and there are 2; allowed: fewer"),
        (["train.cpus_per_worker=3"], "train.cpus_per_worker: 2 workers x 3 ask for 6 CPUs, and there are 4"),
    ],
)
def test_what_is_missing_is_named(monkeypatch, overrides, message):
    with pytest.raises(UserError, match=message):
        check(monkeypatch, *overrides)


def test_the_probe_of_a_store_leaves_nothing(tmp_path):
    preflight.check_store(Folder.of(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        preflight.check_store(Folder.of(tmp_path / "file" / "run"))
