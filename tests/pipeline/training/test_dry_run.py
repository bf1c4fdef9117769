"""The report of a dry run: resources, cost and missing inputs of the whole run."""

import re

import pytest

from pipeline import model_download
from pipeline.errors import TransientError
from pipeline.prompts.prepare import prepare
from pipeline.recipe import load
from pipeline.storage import Folder
from pipeline.training.dry_run import compute_budget, describe
from pipeline.training.resource_estimate import estimate


@pytest.fixture(scope="module")
def paper():
    recipe = load("sd21")
    return recipe, estimate(recipe)


@pytest.fixture
def no_hub(monkeypatch):
    def fail(hub_id, revision):
        raise TransientError(f"{hub_id} at {revision} cannot be downloaded from the hub: no network")

    monkeypatch.setattr(model_download, "query_hub", fail)


def test_the_budget_covers_all_gpus_and_the_evaluations(paper):
    recipe, estimated = paper
    full_budget = compute_budget(recipe, estimated)
    assert (full_budget.training_gpus, full_budget.evaluation_gpus, full_budget.evaluations) == (4, 1, 8)
    images = 4 * 800 * (1 + 2 + 2)  # four styles; plain, two scales, guidance with its two passes
    seconds = images * estimated.forward_flops / (0.4 * 19.5e12)
    assert full_budget.evaluation_hours == pytest.approx(8 * seconds / 3600)
    assert full_budget.gpu_hours == pytest.approx(4 * full_budget.training_hours + full_budget.evaluation_hours)
    assert 80e9 < full_budget.disk < 130e9  # four checkpoints of about 22 GB and two students
    small_recipe = load(
        "sd21", ["evaluation.every_n_checkpoints=0", "train.num_encoders=1", "train.gpus_per_encoder=0.5"]
    )
    small_budget = compute_budget(small_recipe, estimated)
    assert (small_budget.training_gpus, small_budget.evaluation_gpus, small_budget.evaluations) == (6, 0, 0)
    assert small_budget.host_memory < full_budget.host_memory, "the workers load no text encoder"


def test_each_stage_is_listed_and_what_makes_a_recipe_fit(tmp_path):
    options = ["train.num_workers=1", "train.batch_size=64", "train.micro_batch_size=64", "train.zero_stage=1"]
    text = describe(load("sd21", options), Folder.from_uri(tmp_path / "prompts"))
    listed = re.search(
        r"memory by stage: zero_stage 0: ([\d.]+) GiB; zero_stage 1: .*, both offloads: ([\d.]+) GiB", text
    )
    assert float(listed[1]) > float(listed[2]) > 0
    assert re.search(r"  does not fit: a A100-40GB has 40 GiB. Set train.gradient_checkpointing = true", text)


def test_missing_inputs_are_listed(paper, tmp_path, no_hub):
    text = describe(paper[0], Folder.from_uri(tmp_path / "prompts"))
    assert "does not fit" not in text
    assert re.search(r"cost: \d+ USD at 1.84 USD per GPU hour", text)
    for name in ("prompts", "teacher", "train.clip_model", "train.clip_decoder", "weights of hpsv2", "benchmarks"):
        assert f"  {name}: missing: " in text
    assert text.splitlines()[-1].startswith("not ready: prompts, teacher, train.clip_model,")
    assert not list(tmp_path.iterdir())


def test_a_complete_run_lists_nothing_as_missing(tmp_path):
    recipe = load("shapes", ["prompts.count=20", "prompts.negative_draws=20"])
    prepare(recipe, Folder.from_uri(tmp_path / "prompts"))
    text = describe(recipe, Folder.from_uri(tmp_path / "prompts"))
    assert "missing" not in text
    assert "not ready" not in text
    assert "  prompts: 20 in " in text
