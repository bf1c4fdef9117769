"""Preview images of a training run."""

import numpy as np
import pytest
import torch

from pipeline import models
from pipeline.evaluation.suites import build_suite
from pipeline.prompts import prompt_dataset
from pipeline.prompts.negative_sampler import NegativeSampler
from pipeline.recipe import parse
from pipeline.training import engines, previews
from pipeline.training.distiller import Distiller


def test_previews_default_to_the_prompts_of_the_run(monkeypatch, tmp_path):
    run_prompts = ["a dog", "a cat", "a dog", "a tree", "a house", "a car"]
    monkeypatch.setattr(prompt_dataset, "read_first_prompts", lambda folder: run_prompts)
    own_teacher = parse("", ['teacher="mine"'])
    assert previews.choose_preview_prompts(own_teacher, tmp_path) == ("a dog", "a cat", "a tree", "a house")
    own_previews = parse("", ['teacher="mine"', 'evaluation.preview_prompts=["a boat"]'])
    assert previews.choose_preview_prompts(own_previews, tmp_path) == ("a boat",)
    shapes = parse("")
    assert previews.choose_preview_prompts(shapes, tmp_path) == tuple(
        build_suite(shapes).choose_preview_prompts(tmp_path)
    )


def test_preview_texts_include_the_empty_prompt_first():
    assert previews.list_preview_texts(["a dog", "low quality"]) == ("", "low quality", "a dog")


@pytest.fixture
def distiller():
    options = parse("", ["train.num_workers=1", "train.batch_size=2"])
    model = models.load(models.find_teacher_folder("shapes"))
    built = engines.build_engines(options, model, torch.device("cpu"), make=engines.PlainEngine)
    return Distiller(options, model, built, NegativeSampler(["ugly"], np.array([1.0]), False), None)


def test_each_prompt_has_a_sheet_and_a_key_for_each_way_of_sampling(distiller):
    state = torch.get_rng_state()
    images = dict(previews.draw_previews(distiller, ["a photo of a ring", "a photo of a star"]))
    ways = ["", "/raw_plain", "/raw_negative", "/ema_plain", "/ema_negative"]
    prompts = ("preview_00_a-photo-of-a-ring", "preview_01_a-photo-of-a-star")
    assert list(images) == [prompt + way for prompt in prompts for way in ways]
    first, second = (images[prompt] for prompt in prompts)
    assert first.size == second.size
    assert first.tobytes() != second.tobytes()
    assert images[f"{prompts[0]}/raw_plain"].size == (64, 64)
    assert images[f"{prompts[0]}/raw_plain"].tobytes() != images[f"{prompts[0]}/raw_negative"].tobytes()
    assert torch.equal(torch.get_rng_state(), state), "previews leave the training's random state alone"
    assert not dict(previews.draw_previews(distiller, []))


def test_averaged_weights_are_shown_and_the_trained_ones_come_back(distiller):
    key, trained = "preview_00_a-photo-of-a-ring", dict(distiller.list_trained())
    before = {name: value.clone() for name, value in distiller.ema.items()}
    for parameter in trained.values():
        parameter.data = parameter.data * 1.5
    storage = {name: parameter.data_ptr() for name, parameter in trained.items()}
    images = dict(previews.draw_previews(distiller, ["a photo of a ring"]))
    assert images[f"{key}/raw_plain"].tobytes() != images[f"{key}/ema_plain"].tobytes()
    assert {name: parameter.data_ptr() for name, parameter in trained.items()} == storage
    assert all(torch.equal(parameter, before[name] * 1.5) for name, parameter in trained.items())
    assert all(torch.equal(value, before[name]) for name, value in distiller.ema.items())
    for name, parameter in trained.items():
        parameter.data = before[name]
    expected = dict(previews.draw_previews(distiller, ["a photo of a ring"]))
    assert expected[f"{key}/raw_plain"].tobytes() == images[f"{key}/ema_plain"].tobytes()


def test_other_ranks_draw_no_averaged_weights(distiller):
    distiller.ema = {}  # as on every rank but the first
    keys = [key.rpartition("/")[2] for key, _ in previews.draw_previews(distiller, ["a cat"])]
    assert keys == ["preview_00_a-cat", "raw_plain", "raw_negative"]
