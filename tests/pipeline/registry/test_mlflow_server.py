"""MLflow's own server and container context of a registered version, held against `mlflow.pyfunc`."""

import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from packaging.requirements import Requirement

from benchmarks.serving.server import run_mlflow_server
from pipeline.hashing import hash_folder
from pipeline.registry.version_artifacts import EXAMPLE

pytestmark = [pytest.mark.slow, pytest.mark.integration]
MODEL = "models:/nasa-tiny@champion"
PREDICT = """
import sys
packages, model, example, image = sys.argv[1:]
sys.path.append(packages)
import json, mlflow, pandas
(png,) = mlflow.pyfunc.load_model(model).predict(pandas.DataFrame([json.loads(example)]))
open(image, "wb").write(png)
"""


@pytest.fixture(scope="module")
def registry(four_versions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(four_versions[0], folder / "ml.db")
    return f"sqlite:///{folder}/ml.db"


@pytest.fixture(scope="module")
def version(registry, tmp_path_factory):
    """Return the folder of the champion's artifacts."""
    mlflow.set_tracking_uri(registry)
    return Path(mlflow.artifacts.download_artifacts(MODEL, dst_path=str(tmp_path_factory.mktemp("version"))))


@pytest.fixture(scope="module")
def expected(version):
    """Return the image of the version's own example, by pyfunc."""
    (png,) = mlflow.pyfunc.load_model(str(version)).predict(pd.DataFrame([EXAMPLE]))
    return png


def run_environment(registry):
    """Return an environment in which `mlflow` finds `uvicorn` and the registry."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": registry, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def server(registry, tmp_path_factory):
    """Yield the URL of `mlflow models serve` in a process of its own."""
    with run_mlflow_server(registry, MODEL, tmp_path_factory.mktemp("log") / "server.log") as url:
        yield url


def post(url, body):
    """Return the status and the answer."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def post_rows(url, *rows):
    return post(url, json.dumps({"dataframe_records": rows}).encode())


def test_the_server_answers_the_version_s_example_with_pyfunc_s_image(server, version, expected):
    status, answer = post(server, (version / "serving_input_example.json").read_bytes())
    assert (status, list(answer)) == (200, ["predictions"])
    assert [base64.b64decode(text) for text in answer["predictions"]] == [expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a cat", "seed": -1}, "seed: got -1; expected a whole number of 0 to"),
        ({"prompt": "a cat", "negative_prompt": "x", "scale": "much"}, "scale: got 'much'; expected a number of 0"),
        ({"promt": "a cat"}, "Model is missing inputs ['prompt']"),
    ],
)
def test_the_server_rejects_a_wrong_row_with_status_400_and_the_reason(server, expected, row, message):
    status, answer = post_rows(server, row)
    assert status == 400
    assert message in json.dumps(answer)
    assert base64.b64decode(post_rows(server, EXAMPLE)[1]["predictions"][0]) == expected, "it goes on"


def list_requirements(names):
    """Return the installed distributions that requirements ask for, and those that these ask for."""
    found, queue = {}, [Requirement(name) for name in names]
    while queue:
        requirement = queue.pop()
        name, wanted = requirement.name.lower().replace("_", "-"), frozenset(requirement.extras)
        if (name, wanted) in found:
            continue
        try:
            found[name, wanted] = distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # such as a CUDA library of a torch for CPUs
        for line in distribution.requires or ():
            needed = Requirement(line)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in wanted or {""}):
                queue.append(needed)
    return found.values()


def link_distributions(distributions, folder):
    """Make a folder of packages that holds these distributions only."""
    for distribution in distributions:
        for name in {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}:
            if not (folder / name).exists():
                (folder / name).symlink_to(distribution.locate_file(name))


def test_a_container_s_context_is_complete(registry, version, expected, tmp_path):
    context, packages = tmp_path / "context", tmp_path / "packages"
    words = ["mlflow", "models", "generate-dockerfile", "-m", MODEL, "--env-manager", "local", "-d", str(context)]
    subprocess.run(words, env=run_environment(registry), check=True, capture_output=True, timeout=300)
    assert "COPY model_dir /opt/ml/model" in (context / "Dockerfile").read_text()
    model = context / "model_dir"
    assert hash_folder(model / "student") == hash_folder(version / "student")
    assert "-r requirements.txt" in (model / "python_env.yaml").read_text()
    packages.mkdir()
    required = (model / "requirements.txt").read_text().split()
    link_distributions(list_requirements(required), packages)
    assert not any((packages / name).exists() for name in ("ray", "deepspeed", "nasa", "pipeline"))
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-S", "-c", PREDICT, packages, model, json.dumps(EXAMPLE), tmp_path / "image.png"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "image.png").read_bytes() == expected
