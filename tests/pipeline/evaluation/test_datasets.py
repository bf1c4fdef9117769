"""The datasets that MLflow shows beside a run."""

import json

import pytest

from datasets_prep.benchmark_prompts import HPSV2_STYLES
from pipeline.evaluation.datasets import get_evaluation_dataset, list_benchmarks, list_training_datasets
from pipeline.hashing import hash_bytes
from pipeline.prompts.prepare import prepare
from pipeline.prompts.prepare_benchmarks import prepare_benchmarks
from pipeline.prompts.prompt_dataset import load_manifest
from pipeline.recipe import parse
from pipeline.storage import Folder

SMALL = ["prompts.count=40", "prompts.negative_draws=20", "evaluation.num_prompts=4", "evaluation.exclusion_seeds=9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = Folder.from_uri(tmp_path_factory.mktemp("run") / "prompts")
    prepare(parse("", SMALL), folder)
    return folder


def test_prompts_and_negatives_carry_the_hashes_of_the_manifest(folder):
    prompts, negatives = list_training_datasets(folder, load_manifest(folder))
    assert (prompts.name, prompts.context, prompts.rows) == ("prompts shapes", "training", 40)
    assert (negatives.name, negatives.context) == ("negative prompts", "negatives")
    assert hash_bytes(folder.read("negatives.parquet")).startswith(negatives.digest)
    assert negatives.uri.endswith("/prompts/negatives.parquet")
    assert len(negatives.digest) == 12


def test_an_evaluation_s_digest_depends_on_its_prompts_and_seeds_alone(folder):
    dataset = get_evaluation_dataset(parse("", SMALL), folder)
    assert dataset.name == "evaluation on held-out, diversity, exclusion"
    same = parse("", [*SMALL, "evaluation.teacher_prompts=0", "evaluation.batch_size=3", "train.steps=9"])
    assert get_evaluation_dataset(same, folder) == dataset
    for other in ("evaluation.seed=5", "evaluation.num_prompts=5", "evaluation.exclusion_seeds=12"):
        assert get_evaluation_dataset(parse("", [*SMALL, other]), folder).digest != dataset.digest


def test_benchmark_files_are_listed_with_their_hashes(tmp_path, folder):
    for style in HPSV2_STYLES:
        (tmp_path / f"{style}.json").write_text(json.dumps([f"{style} of thing {i}" for i in range(800)]))
    sets = Folder.from_uri(tmp_path / "sets")
    prepare_benchmarks(sets, None, str(tmp_path), 10, 0)
    options = ["teacher='mine'", f"evaluation.benchmarks='{sets.uri}'", 'evaluation.prompt_sets=["hpsv2", "exclusion"]']
    listed = list(list_benchmarks(parse("", options), folder))
    assert [(each.name, each.context) for each in listed] == [("hpsv2", "evaluation"), ("exclusion", "evaluation")]
    for each, file in zip(listed, ("hpsv2.parquet", "exclusion_pairs.parquet"), strict=True):
        assert each.uri == f"{sets.uri}/{file}"
        assert hash_bytes(sets.read(file)).startswith(each.digest)
    assert not list(list_benchmarks(parse("", SMALL), folder))


def test_an_address_with_a_password_is_redacted(folder):
    (_, negatives) = list_training_datasets(folder, load_manifest(folder))
    record = type(negatives)("n", "ab" * 32, "s3://user:hunter22@host/x", "negatives", 1).to_input()
    assert "hunter22" not in record.dataset.source
