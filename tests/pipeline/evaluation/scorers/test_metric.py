from dataclasses import dataclass

import pytest

from pipeline import config
from pipeline.errors import UserError
from pipeline.evaluation.scorers import SCORERS, Metric


@dataclass(frozen=True)
class Recipe:
    metrics: tuple[Metric, ...] = ()


def read(text):
    return config.read(Recipe, f"[[metrics]]\n{text}\n", [], "recipe.toml").metrics


def test_every_kind_is_a_section_of_a_recipe():
    for kind in SCORERS:
        assert read(f'kind = "{kind}"\nweights = "w.pt"') == (Metric(kind, "w.pt"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "fid"', r"metrics\[0\].kind: 'fid' is not allowed; allowed: hpsv2, clip, aesthetic, imaging"),
        ('kind = "hpsv2"\nversion = "2"', r"metrics\[0\].version: '2' is not allowed; allowed: v2.0, v2.1"),
        ('kind = "hpsv2"\njpeg_quality = 96', r"metrics\[0\].jpeg_quality: 96 is not allowed; allowed: 0 for none"),
        ('kind = "hpsv2"\nbatch_size = 0', r"metrics\[0\].batch_size: 0 is not allowed"),
    ],
)
def test_a_value_that_is_wrong_is_one_line(text, message):
    with pytest.raises(UserError, match=message):
        read(text)
