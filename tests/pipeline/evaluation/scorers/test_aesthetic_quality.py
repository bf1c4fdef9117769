"""Aesthetic quality, compared with scores of VBench 0.1.5 recorded by tests/data/scorers/make_vbench.py."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scorer_material import make_image, make_weights

from pipeline.errors import UserError
from pipeline.evaluation import scorers
from pipeline.evaluation.scorers import Metric

RECORDED = json.loads((Path(__file__).parents[3] / "data" / "scorers" / "vbench.json").read_text())
TOLERANCE = 1e-6


@pytest.fixture
def head(tmp_path):
    torch.save(make_weights(RECORDED["head"]), tmp_path / "head.pth")
    return str(tmp_path / "head.pth")


def test_scores_equal_those_of_vbench(checkpoint, head):
    expected = RECORDED["aesthetic"]
    assert np.std(list(expected.values())) > 1000 * TOLERANCE
    metric = Metric(kind="aesthetic", weights=checkpoint(RECORDED["config"]), head=head, batch_size=3)
    scorers.check(metric)
    scorer, images = scorers.load(metric), [make_image(name) for name in expected]
    scores = scorer(images, [""] * len(images), [None] * len(images))
    assert scores == {"aesthetic": pytest.approx(list(expected.values()), abs=TOLERANCE, rel=0)}
    assert scorer.options["architecture"] == "ViT-L-14-quickgelu"
    assert json.loads(json.dumps(scorer.options)) == scorer.options


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(1, 768), "bias": torch.zeros(1)}, "has another shape of 'weight'"),
        ({"weight": torch.zeros(1, 48)}, "lacks 'bias'"),
    ],
)
def test_an_invalid_head_is_reported(checkpoint, tmp_path, tensors, message):
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(UserError, match=f"^evaluation.metrics.head: .*{message}"):
        scorers.check(Metric(kind="aesthetic", weights=checkpoint(RECORDED["config"]), head=str(tmp_path / "head.pth")))


def test_a_missing_head_is_reported(checkpoint):
    with pytest.raises(UserError, match=r"^evaluation.metrics.head: got ''; expected .*linear\.pth"):
        scorers.check(Metric(kind="aesthetic", weights=checkpoint(RECORDED["config"])))
