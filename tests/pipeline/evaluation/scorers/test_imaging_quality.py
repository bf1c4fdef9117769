"""Imaging quality, compared with scores of VBench 0.1.5 recorded by tests/data/scorers/make_vbench.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scorer_material import make_image, make_weights

from pipeline.errors import UserError
from pipeline.evaluation import scorers
from pipeline.evaluation.scorers import Metric, imaging_quality
from pipeline.models.musiq import Musiq

RECORDED = json.loads((Path(__file__).parents[3] / "data" / "scorers" / "vbench.json").read_text())
SIZES = dict(zip(("width", "inner", "heads", "layers"), RECORDED["musiq"].values(), strict=True))
TOLERANCE = 1e-6


def write_musiq(file, change=lambda table: None):
    with torch.device("meta"):
        layout = {name: tuple(value.shape) for name, value in Musiq(**SIZES).state_dict().items()}
    table = make_weights(layout)
    change(table)
    torch.save(table, file)
    return str(file)


def test_scores_equal_those_of_vbench(tmp_path):
    expected = RECORDED["imaging"]
    assert np.std(list(expected.values())) > 100 * TOLERANCE
    metric = Metric(kind="imaging", weights=write_musiq(tmp_path / "musiq.pth"))
    scorers.check(metric)
    scorer, images = scorers.load(metric), [make_image(name) for name in expected]
    scores = scorer(images, [""] * len(images), [None] * len(images))
    assert scores == {"imaging": pytest.approx(list(expected.values()), abs=TOLERANCE, rel=0)}
    assert json.loads(json.dumps(scorer.options)) == scorer.options


@pytest.mark.parametrize(("size", "shape"), [((700, 590), (431, 512)), ((590, 700), (512, 431)), ((512, 9), (9, 512))])
def test_the_shorter_side_is_rounded_down(size, shape):
    """The exact side is 590 * 512 / 700 = 431.5."""
    assert imaging_quality.prepare(Image.new("RGB", size)).shape == (3, *shape)


def test_the_default_layout_is_the_published_one():
    with torch.device("meta"):
        model = Musiq()
    assert sum(value.numel() for value in model.parameters()) == RECORDED["musiq_parameters"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.pop("embedding.bias"), "with a tensor 'embedding.bias'"),
        (lambda table: table.update({"head.weight": torch.zeros(10, 128)}), "has another shape of 'head.weight'"),
        (lambda table: table.clear(), "expected musiq_spaq"),
        (lambda table: table.pop("block1.gn2.bias"), "lacks 'block1.gn2.bias'"),
    ],
)
def test_invalid_weights_are_reported(tmp_path, change, message):
    with pytest.raises(UserError, match=f"^evaluation.metrics.weights: .*{message}"):
        scorers.check(Metric(kind="imaging", weights=write_musiq(tmp_path / "musiq.pth", change)))
