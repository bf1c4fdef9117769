"""What a dry run says of a whole run: enough to spend money on."""

import re

import pytest

from pipeline import hub
from pipeline.errors import TransientError
from pipeline.prompts.prepare import prepare
from pipeline.recipe import load
from pipeline.storage import Folder
from pipeline.training.dry_run import compute_budget, describe
from pipeline.training.estimate import estimate


@pytest.fixture(scope="module")
def paper():
    recipe = load("sd21")
    return recipe, estimate(recipe)


@pytest.fixture
def no_hub(monkeypatch):
    def away(place, revision):
        raise TransientError(f"{place} at {revision} cannot be had from the hub: no network")

    monkeypatch.setattr(hub, "query_hub", away)


def test_the_budget_is_of_all_gpus_and_of_the_evaluations(paper):
    recipe, found = paper
    whole = compute_budget(recipe, found)
    assert (whole.training_gpus, whole.evaluation_gpus, whole.evaluations) == (4, 1, 8)
    images = 4 * 800 * (1 + 2 + 2)  # four styles; plain, two scales, guidance with its two passes
    seconds = images * found.forward_flops / (0.4 * 19.5e12)
    assert whole.evaluation_hours == pytest.approx(8 * seconds / 3600)
    assert whole.gpu_hours == pytest.approx(4 * whole.training_hours + whole.evaluation_hours)
    assert 80e9 < whole.disk < 130e9  # four checkpoints of about 22 GB and two students
    without = load("sd21", ["evaluation.every_n_checkpoints=0", "train.num_encoders=1", "train.gpus_per_encoder=0.5"])
    fewer = compute_budget(without, found)
    assert (fewer.training_gpus, fewer.evaluation_gpus, fewer.evaluations) == (6, 0, 0)
    assert fewer.host_memory < whole.host_memory, "the workers load no text encoder"


def test_what_is_missing_is_named(paper, tmp_path, no_hub):
    text = describe(paper[0], Folder.from_uri(tmp_path / "prompts"))
    assert re.search(r"cost: \d+ USD at 1.84 USD a GPU hour", text)
    for name in ("prompts", "teacher", "train.clip_model", "train.clip_decoder", "weights of hpsv2", "benchmarks"):
        assert f"  {name}: missing: " in text
    assert text.splitlines()[-1].startswith("not ready: prompts, teacher, train.clip_model,")
    assert not list(tmp_path.iterdir())


def test_a_run_that_can_begin_is_not_said_to_lack_anything(tmp_path):
    recipe = load("shapes", ["prompts.count=20", "prompts.negative_draws=20"])
    prepare(recipe, Folder.from_uri(tmp_path / "prompts"))
    text = describe(recipe, Folder.from_uri(tmp_path / "prompts"))
    assert "missing" not in text
    assert "not ready" not in text
    assert "  prompts: 20 in " in text
