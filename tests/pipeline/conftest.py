"""A registry for each test, tiny students, and evaluations whose scores a test chooses."""

import io
import json
import shutil

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import manifest, models, tracking
from pipeline.evaluation.evaluate import EvaluationManifest
from pipeline.hashing import hash_folder
from pipeline.manifest import DataFile
from pipeline.recipe import Recipe, parse
from pipeline.registry.candidate import Candidate
from pipeline.registry.register import register
from pipeline.storage import Folder

IMAGES = 64
OPTIONS = {"version": "1"}


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    """Return an empty database with MLflow's tables, which take seconds to create."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_registered_models()
    return file


@pytest.fixture
def uri(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "ml.db")
    return f"sqlite:///{tmp_path}/ml.db"


@pytest.fixture(scope="session")
def students(tmp_path_factory, tiny_teacher):
    """Return a folder of five students with different weights."""
    folder = tmp_path_factory.mktemp("students")
    weights = models.load(tiny_teacher).denoiser.state_dict()
    for number in range(5):
        shifted = weights | {"conv_in.bias": weights["conv_in.bias"] + 0.01 * number}
        models.save_student(tiny_teacher, shifted, folder / str(number))
    return folder


def write_evaluation(folder, values, *, options=OPTIONS, seed=0):
    """Write an evaluation; `values` maps each metric to the scores of the images."""
    buffer = io.BytesIO()
    rows = [
        {"system": system, "set": "held-out", "prompt": f"a prompt {i}", "negative_prompt": "", "seed": seed + i}
        | {metric: float(scores[i]) - penalty for metric, scores in values.items()}
        for system, penalty in (("teacher", 1.0), ("student", 0.0))
        for i in range(IMAGES)
    ]
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    folder.write("scores.parquet", buffer.getvalue())
    metrics = {
        metric: {
            "value": float(np.mean(scores)),
            "low": float(np.mean(scores)) - 0.05,
            "high": float(np.mean(scores)) + 0.05,
            "images": IMAGES,
            "options": options,
        }
        for metric, scores in values.items()
    }
    folder.write("summary.json", json.dumps({"student": "student", "metrics": metrics, "chosen_scale": 0.65}).encode())
    sheet = io.BytesIO()
    Image.new("RGB", (32, 16), "navy").save(sheet, format="PNG")
    folder.write("contact_sheet.png", sheet.getvalue())
    folder.write("report.html", b"<p>report</p>")
    manifest.write(folder, EvaluationManifest(recipe=Recipe(), student_sha256="5" * 64))
    return folder


def sample_scores(mean, seed=0):
    return np.random.default_rng(seed).normal(mean, 0.02, IMAGES)


def build_candidate_factory(folder, uri, students, teacher):
    """Return a function of which `make(1, mean=0.7)` makes a candidate of student 1 with that mean score."""
    runs = {}

    def make(number, mean=0.5, *, guard=0.9, run=0, name="tiny", overrides=(), **options):
        if run not in runs:
            runs[run] = tracking.create_run(uri, "tiny", {})
        values = {"clean_and_right": sample_scores(mean), "exclusion_kept": sample_scores(guard, 1)}
        evaluation = Folder.from_uri(folder / f"evaluation-{number}-{mean}-{guard}-{sorted(options.items())}")
        recipe = parse("", [f"name={name}", f"teacher={str(teacher)!r}", *overrides])
        return Candidate(
            student=Folder.from_uri(students / str(number)),
            student_sha256=hash_folder(students / str(number)),
            recipe=recipe,
            teacher_sha256="7" * 64,
            prompts={"shard-0.parquet": DataFile(rows=1, bytes=2, sha256="ab")},
            mlflow_run=runs[run],
            code="0.1.0+abc",
            step=100 * (number + 1),
            evaluation=write_evaluation(evaluation, values, **options),
        )

    return make


@pytest.fixture
def candidate(tmp_path, uri, students, tiny_teacher):
    return build_candidate_factory(tmp_path, uri, students, tiny_teacher)


@pytest.fixture(scope="session")
def four_versions(tmp_path_factory, migrated, students, tiny_teacher):
    """Return a database in which versions 1 to 3 became champion in turn and version 4 is the challenger."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copy(migrated, folder / "ml.db")
    uri = f"sqlite:///{folder}/ml.db"
    make = build_candidate_factory(folder, uri, students, tiny_teacher)
    for number, mean in enumerate((0.5, 0.6, 0.7, 0.65)):
        register(make(number, mean=mean), uri)
    return folder / "ml.db", make


@pytest.fixture
def client(uri):
    return tracking.build_client(uri)
