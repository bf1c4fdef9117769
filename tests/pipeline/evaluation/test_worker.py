"""An interrupted evaluation resumes, and another scorer costs only itself."""

import zlib

import pytest

from pipeline.evaluation import worker
from pipeline.evaluation.sampling import Sampler
from pipeline.evaluation.suites import BenchmarkSuite
from pipeline.prompts import prompt_dataset
from pipeline.recipe import parse
from pipeline.storage import Folder


class Checksum:
    """A scorer that counts its images."""

    def __init__(self, version=1):
        self.options, self.seen = {"version": version}, 0

    def __call__(self, images, prompts, negatives):
        self.seen += len(images)
        return {f"checksum_{self.options['version']}": [float(zlib.crc32(image.tobytes())) for image in images]}


@pytest.fixture
def recipe(tiny_teacher):
    sets = [f"teacher={str(tiny_teacher)!r}", "evaluation.scales=[0.5]", "evaluation.teacher_steps=2"]
    return parse("", [*sets, "evaluation.teacher_prompts=2", "evaluation.batch_size=3", "evaluation.seed=5"])


@pytest.fixture
def made(monkeypatch):
    """How many images the models made."""
    counted = []
    images = Sampler.images

    def counting(self, way, prompts, *more):
        counted.extend(prompts)
        return images(self, way, prompts, *more)

    monkeypatch.setattr(Sampler, "images", counting)
    return counted


def rows_of(recipe, folder, tiny_teacher, monkeypatch, scorers, work_units=None, student="a"):
    texts = [f"thing {i}" for i in range(4)]
    monkeypatch.setattr(prompt_dataset, "read_first_prompts", lambda folder: texts)
    monkeypatch.setattr(BenchmarkSuite, "scorers", lambda suite, device: scorers)
    hashes = (("student", student), ("teacher", "b"))
    config = worker.WorkerConfig(recipe, str(tiny_teacher), str(tiny_teacher), hashes, folder.uri, folder.uri)
    own = worker.EvaluationWorker(config)
    return [
        row for unit in (own.units if work_units is None else own.units[:work_units]) for row in own.compute_rows(unit)
    ]


def test_all_systems_make_each_sample_once(recipe, tmp_path, tiny_teacher, monkeypatch, made):
    rows = rows_of(recipe, Folder.from_uri(tmp_path), tiny_teacher, monkeypatch, [Checksum()])
    counts = {name: sum(row.system == name for row in rows) for name in dict.fromkeys(row.system for row in rows)}
    assert counts == {
        "student, 1 step": 4,
        "student, 1 step, NASA 0.5": 4,
        "student, 1 step, CFG 2": 4,
        "teacher, 2 steps, guidance 3": 2,
    }
    assert [row.seed for row in rows[:4]] == [5, 6, 7, 8]
    assert [row.used_negative_prompt is None for row in rows] == [True] * 4 + [False] * 8 + [True] * 2
    assert len({row.scores["checksum_1"] for row in rows}) == 14  # other prompts, noise and ways are other images
    assert len(made) == 14


def test_a_stopped_one_goes_on(recipe, tmp_path, tiny_teacher, monkeypatch, made):
    folder = Folder.from_uri(tmp_path)
    whole = rows_of(recipe, folder / "whole", tiny_teacher, monkeypatch, [Checksum()])
    rows_of(recipe, folder / "parts", tiny_teacher, monkeypatch, [Checksum()], work_units=3)
    made.clear()
    scorer = Checksum()
    rows = rows_of(recipe, folder / "parts", tiny_teacher, monkeypatch, [scorer])
    assert len(made) == scorer.seen == 14 - 3 - 1 - 3
    assert rows == whole


def test_another_scorer_costs_only_itself(recipe, tmp_path, tiny_teacher, monkeypatch, made):
    folder, first, second = Folder.from_uri(tmp_path), Checksum(1), Checksum(2)
    rows_of(recipe, folder, tiny_teacher, monkeypatch, [first])
    made.clear()
    rows = rows_of(recipe, folder, tiny_teacher, monkeypatch, [first, second])
    assert (len(made), first.seen, second.seen) == (0, 14, 14)
    assert all(row.scores["checksum_1"] == row.scores["checksum_2"] for row in rows)


def test_another_student_is_made_anew(recipe, tmp_path, tiny_teacher, monkeypatch, made):
    folder = Folder.from_uri(tmp_path)
    rows_of(recipe, folder, tiny_teacher, monkeypatch, [])
    made.clear()
    rows_of(recipe, folder, tiny_teacher, monkeypatch, [], student="another")
    assert len(made) == 12  # all but the teacher's


def test_another_judge_chooses_other_seeds_of_exclusion(monkeypatch, tmp_path):
    """Its choice is part of what the images are, so that another judge's are not taken for its own."""
    recipe = parse("", ["evaluation.exclusion_seeds=3"])
    config = worker.WorkerConfig(recipe, "", "", (("student", "a"), ("teacher", "b")), str(tmp_path), str(tmp_path))
    one, other = worker.EvaluationWorker(config), worker.EvaluationWorker(config)
    one.judge, other.judge = (None, Checksum(1)), (None, Checksum(2))
    batch, exclusion = one.units[0], one.units[-1]
    assert one._hash_inputs(batch) == other._hash_inputs(batch)
    assert one._hash_inputs(exclusion) != other._hash_inputs(exclusion)
