"""A user's own teacher on prepared prompt sets: metrics, exclusion by a calibrated CLIP, comparison."""

import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets_prep.benchmark_prompts import HPSV2_STYLES
from pipeline import tracking
from pipeline.errors import UserError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.evaluate import EvaluatedStudent, evaluate_student
from pipeline.evaluation.image_store import ImageStore
from pipeline.evaluation.results import read_rows
from pipeline.evaluation.scorers import clip
from pipeline.hashing import hash_folder
from pipeline.prompts.prepare_benchmarks import prepare_benchmarks
from pipeline.recipe import Metric, parse
from pipeline.shapes import WEIGHTS
from pipeline.storage import Folder

STYLES, PROMPTS, SEEDS = len(HPSV2_STYLES), 2, 6
DIVERSITY_SEEDS, DIVERSITY_PROMPTS = 3, 2


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for style in HPSV2_STYLES:
        (folder / f"{style}.json").write_text(json.dumps([f"{style} of thing {i}" for i in range(800)]))
    prepare_benchmarks(Folder.from_uri(folder / "sets"), None, str(folder), 10, 0)
    with open(folder / "labels.csv", "w") as table:
        table.write("file,label\n")
        for number, label in enumerate(["male", "female", "cat", "dog"] * 2):
            Image.new("RGB", (64, 64), (30 * number, 99, 40)).save(folder / f"{number}.png")
            table.write(f"{number}.png,{label}\n")
    return folder


@pytest.fixture(scope="module")
def overrides(benchmarks, tiny_teacher):
    return [
        f"teacher={str(tiny_teacher)!r}",
        f"evaluation.benchmarks='{benchmarks / 'sets'}'",
        'evaluation.prompt_sets=["hpsv2", "exclusion"]',
        f"evaluation.metrics=[{{kind='clip', weights='{WEIGHTS / 'clip'}'}}]",
        f"evaluation.clip_judge='{WEIGHTS / 'clip'}'",
        f"evaluation.calibration='{benchmarks / 'labels.csv'}'",
        f"evaluation.num_prompts={PROMPTS}",
        f"evaluation.exclusion_seeds={SEEDS}",
        "evaluation.scales=[0.5]",
        "evaluation.teacher_prompts=1",
        "evaluation.teacher_steps=2",
        f"evaluation.diversity_seeds={DIVERSITY_SEEDS}",
        f"evaluation.diversity_prompts={DIVERSITY_PROMPTS}",
        "evaluation.batch_size=4",
        "evaluation.cpus_per_process=0.5",
    ]


@pytest.fixture(scope="module")
def evaluated(ray_cluster, tmp_path_factory, overrides, tiny_teacher):
    """Return the evaluations of two students: the teacher itself in one step, and another tiny model."""
    from nasa.testing import tiny_stable_diffusion

    folder = tmp_path_factory.mktemp("evaluated")
    uri = f"sqlite:///{folder}/ml.db"
    other = folder / "other"
    tiny_stable_diffusion(seed=7).save_pretrained(other)
    recipe, run = parse("", overrides), tracking.create_run(uri, "test", {})
    summaries = []
    for name, student in (("one", tiny_teacher), ("two", other)):
        subject = EvaluatedStudent(Folder.from_uri(student), hash_folder(student), "t", run, 3, recipe)
        output = Folder.from_uri(folder / name / "evaluation")
        summaries.append(evaluate_student(subject, recipe, Folder.from_uri(folder), output, uri))
    return folder, summaries


def test_each_style_is_a_prompt_set_and_exclusion_uses_the_paper_s_pairs(evaluated):
    folder, (summary, _) = evaluated
    rows = pq.read_table(folder / "one/evaluation/scores.parquet").to_pylist()
    student_rows = [row for row in rows if row["set"].startswith("hpsv2/") and row["system"] == "student"]
    assert [row["set"] for row in student_rows] == [f"hpsv2/{style}" for style in HPSV2_STYLES for _ in range(PROMPTS)]
    assert student_rows[0]["negative_prompt"].startswith("worst quality, low quality")
    clip = summary.metrics["clip_positive"]
    assert clip.images == STYLES * PROMPTS
    assert set(clip.sets) == {f"hpsv2/{style}" for style in HPSV2_STYLES}
    assert clip.options["prefix"] == "A photo depicts "
    excluded = {(row["prompt"], row["negative_prompt"]) for row in rows if row["set"] == "exclusion"}
    assert excluded <= {(f"A photo of a {a}", b) for a, b in [("person", "male"), ("person", "female"),
        ("person", "young"), ("person", "old"), ("pet", "cat"), ("pet", "dog")]}  # fmt: skip


def test_the_diversity_of_real_prompts_is_the_distance_of_clip_features(evaluated):
    folder, (summary, _) = evaluated
    store = Folder.from_uri(folder / "one/evaluation")
    rows = [row for row in read_rows(store) if row.set == "diversity"]
    by_system = Counter(row.system for row in rows)
    assert by_system == {"student": 6, "teacher, 2 steps, guidance 3": 6}
    group = [row for row in rows if row.system == "student"][:DIVERSITY_SEEDS]
    assert len({row.prompt for row in group}) == 1
    images = ImageStore(store, group)
    pictures = [Image.fromarray(images.read_pixels(row)) for row in group]
    features = clip.load(Metric(kind="clip", weights=str(WEIGHTS / "clip"))).encode_images(pictures)
    distances = 1 - features @ features.T
    expected = [(distances[i].sum() - distances[i, i]) / (DIVERSITY_SEEDS - 1) for i in range(DIVERSITY_SEEDS)]
    assert [row.scores["diversity"] for row in group] == pytest.approx([float(value) for value in expected], abs=1e-4)
    assert summary.metrics["diversity"].images == DIVERSITY_SEEDS * DIVERSITY_PROMPTS
    assert set(summary.against_teacher) == {"diversity", "saturation", "contrast"}
    assert summary.against_teacher["saturation"].images == STYLES
    assert "diversity" not in summary.negative_prompts


def test_the_exclusion_judge_is_calibrated(evaluated):
    _, (summary, _) = evaluated
    if not summary.exclusion:
        pytest.skip("no image of this random model shows a pair's attribute")
    assert set(summary.calibration) == {"male", "female", "cat", "dog", "another"}
    for row in summary.exclusion_by_pair:
        assert (row.removed_corrected is not None) == (row.negative_prompt in summary.calibration)


def test_two_students_are_compared_on_the_same_noise(evaluated):
    folder, _ = evaluated
    evaluations = [Folder.from_uri(folder / name / "evaluation") for name in ("one", "two")]
    comparison = compare(*evaluations, ("one", "two"), Folder.from_uri(folder / "both"))
    names = {"clip_positive", "clip_negative", "saturation", "contrast", "diversity"}
    assert {row.metric for row in comparison.metrics} == names
    for row in comparison.metrics:
        assert row.pairs == (DIVERSITY_SEEDS * DIVERSITY_PROMPTS if row.metric == "diversity" else STYLES * PROMPTS)
        assert row.difference == pytest.approx(row.a - row.b)
        expected = {True: "beats", False: "no significant difference"}[row.low > 0 or row.high < 0]
        assert expected in row.sentence
    page = (folder / "both/report.html").read_text()
    assert "one and two" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    for column in data["columns"]:  # the slider shows each sampling method for both students
        assert all([image["label"] for image in method["pictures"]] == ["one", "two"] for method in column["methods"])
        assert len({method["label"] for method in column["methods"]}) == len(column["methods"]) >= 3
    tested = any(summary.exclusion for summary in evaluated[1])  # then the columns are those of the exclusion test
    assert tested or len(data["columns"]) == STYLES * PROMPTS
    same = compare(evaluations[0], evaluations[0], ("one", "one again"), Folder.from_uri(folder / "same"))
    assert {(row.difference, row.verdict) for row in same.metrics} == {(0.0, "")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.clip_judge='/no/where'", "evaluation.clip_judge: got '/no/where'"),
        ("evaluation.calibration='/no/where'", "/no/where: cannot be read"),
        ("evaluation.metrics=[{kind='hpsv2', weights='/no/where'}]", "evaluation.metrics.weights: got '/no/where'"),
        (
            "evaluation.metrics=[{kind='clip'}, {kind='clip'}]",
            "evaluation.metrics: got ['clip', 'clip']; expected each kind once",
        ),
        ('evaluation.prompt_sets=["negopt"]', "evaluation.prompt_sets: 'negopt' is not among the prompts"),
        ("evaluation.benchmarks='/no/where'", "/no/where: no complete benchmarks here"),
        ("evaluation.gpus_per_process=9", "evaluation.gpus_per_process: 1 process x 9 GPU requested"),
    ],
)
def test_missing_inputs_are_reported_before_any_image_is_generated(
    evaluated, overrides, tmp_path, tiny_teacher, override, message
):
    folder, _ = evaluated
    subject = EvaluatedStudent(Folder.from_uri(tiny_teacher), "s", "t", "run", 3, parse("", overrides))
    with pytest.raises(UserError, match=message.replace("[", "\\[")):
        evaluate_student(
            subject,
            parse("", [*overrides, override]),
            Folder.from_uri(folder),
            Folder.from_uri(tmp_path / "out"),
            "sqlite:///none.db",
        )
    assert not (tmp_path / "out").exists()
