import pytest

from pipeline.errors import UserError
from pipeline.evaluation.scorers import SCORERS
from pipeline.recipe import Metric, parse


def parse_metrics(text):
    return parse(f"[[evaluation.metrics]]\n{text}\n").evaluation.metrics


def test_every_kind_can_be_configured_in_a_recipe():
    for kind in SCORERS:
        assert parse_metrics(f'kind = "{kind}"\nweights = "w.pt"') == (Metric(kind=kind, weights="w.pt"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('kind = "fid"', r"metrics\[0\].kind: got 'fid'; expected 'hpsv2', 'clip', 'aesthetic' or 'imaging'"),
        ('kind = "hpsv2"\nversion = "2"', r"metrics\[0\].version: got '2'; expected 'v2.0' or 'v2.1'"),
        ('kind = "hpsv2"\njpeg_quality = 96', r"metrics\[0\].jpeg_quality: got 96; expected a number at most 95"),
        ('kind = "hpsv2"\nbatch_size = 0', r"metrics\[0\].batch_size: got 0; expected a number above 0"),
    ],
)
def test_an_invalid_value_is_reported(text, message):
    with pytest.raises(UserError, match=message):
        parse_metrics(text)
