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
        self.options, self.num_images = {"version": version}, 0

    def __call__(self, images, prompts, negatives):
        self.num_images += len(images)
        return {f"checksum_{self.options['version']}": [float(zlib.crc32(image.tobytes())) for image in images]}


@pytest.fixture
def recipe(tiny_teacher):
    overrides = [f"teacher={str(tiny_teacher)!r}", "evaluation.scales=[0.5]", "evaluation.teacher_steps=2"]
    return parse("", [*overrides, "evaluation.teacher_prompts=2", "evaluation.batch_size=3", "evaluation.seed=5"])


@pytest.fixture
def generated(monkeypatch):
    """Return the prompts of all images that the models generated."""
    prompts_of_images = []
    images = Sampler.sample

    def record_prompts(self, method, prompts, *rest):
        prompts_of_images.extend(prompts)
        return images(self, method, prompts, *rest)

    monkeypatch.setattr(Sampler, "sample", record_prompts)
    return prompts_of_images


def evaluate_rows(recipe, folder, tiny_teacher, monkeypatch, scorers, work_units=None, student="a"):
    texts = [f"thing {i}" for i in range(4)]
    monkeypatch.setattr(prompt_dataset, "read_first_prompts", lambda folder: texts)
    monkeypatch.setattr(BenchmarkSuite, "build_scorers", lambda suite, device: scorers)
    hashes = (("student", student), ("teacher", "b"))
    config = worker.WorkerConfig(recipe, str(tiny_teacher), str(tiny_teacher), hashes, folder.uri, folder.uri)
    evaluation_worker = worker.EvaluationWorker(config)
    return [
        row
        for unit in (evaluation_worker.units if work_units is None else evaluation_worker.units[:work_units])
        for row in evaluation_worker.compute_rows(unit)
    ]


def test_every_system_generates_each_sample_once(recipe, tmp_path, tiny_teacher, monkeypatch, generated):
    rows = evaluate_rows(recipe, Folder.from_uri(tmp_path), tiny_teacher, monkeypatch, [Checksum()])
    counts = {name: sum(row.system == name for row in rows) for name in dict.fromkeys(row.system for row in rows)}
    assert counts == {
        "student": 4,
        "student, NASA 0.5": 4,
        "student, CFG 2": 4,
        "teacher, 2 steps, guidance 3": 2,
    }
    assert [row.seed for row in rows[:4]] == [5, 6, 7, 8]
    assert [row.used_negative_prompt is None for row in rows] == [True] * 4 + [False] * 8 + [True] * 2
    assert len({row.scores["checksum_1"] for row in rows}) == 14  # each prompt, noise and method gives another image
    assert len(generated) == 14


def test_a_stopped_evaluation_resumes(recipe, tmp_path, tiny_teacher, monkeypatch, generated):
    folder = Folder.from_uri(tmp_path)
    uninterrupted = evaluate_rows(recipe, folder / "whole", tiny_teacher, monkeypatch, [Checksum()])
    evaluate_rows(recipe, folder / "parts", tiny_teacher, monkeypatch, [Checksum()], work_units=3)
    generated.clear()
    scorer = Checksum()
    rows = evaluate_rows(recipe, folder / "parts", tiny_teacher, monkeypatch, [scorer])
    assert len(generated) == scorer.num_images == 14 - 3 - 1 - 3
    assert rows == uninterrupted


def test_another_scorer_costs_only_itself(recipe, tmp_path, tiny_teacher, monkeypatch, generated):
    folder, first, second = Folder.from_uri(tmp_path), Checksum(1), Checksum(2)
    evaluate_rows(recipe, folder, tiny_teacher, monkeypatch, [first])
    generated.clear()
    rows = evaluate_rows(recipe, folder, tiny_teacher, monkeypatch, [first, second])
    assert (len(generated), first.num_images, second.num_images) == (0, 14, 14)
    assert all(row.scores["checksum_1"] == row.scores["checksum_2"] for row in rows)


def test_images_of_another_student_are_generated_anew(recipe, tmp_path, tiny_teacher, monkeypatch, generated):
    folder = Folder.from_uri(tmp_path)
    evaluate_rows(recipe, folder, tiny_teacher, monkeypatch, [])
    generated.clear()
    evaluate_rows(recipe, folder, tiny_teacher, monkeypatch, [], student="another")
    assert len(generated) == 12  # all but the teacher's


def test_images_of_exclusion_depend_on_the_judge(monkeypatch, tmp_path):
    """The judge selects the seeds, so that the images of another judge must not be reused."""
    recipe = parse("", ["evaluation.exclusion_seeds=3"])
    config = worker.WorkerConfig(recipe, "", "", (("student", "a"), ("teacher", "b")), str(tmp_path), str(tmp_path))
    one, other = worker.EvaluationWorker(config), worker.EvaluationWorker(config)
    one.judge, other.judge = (None, Checksum(1)), (None, Checksum(2))
    batch, exclusion = one.units[0], one.units[-1]
    assert one._hash_inputs(batch) == other._hash_inputs(batch)
    assert one._hash_inputs(exclusion) != other._hash_inputs(exclusion)
