"""The main job end to end at small width: prepare, distil on Ray, evaluate, register."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import mlflow
import pytest
import torch
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from safetensors.torch import load_file

from jobs.__main__ import main
from pipeline import manifest
from pipeline.compat import SNAPSHOT_FILE
from pipeline.errors import StorageError
from pipeline.models import load_pipeline
from pipeline.registry.register import RegisteredManifest
from pipeline.storage import Folder

ROOT = Path(__file__).parents[2]
SMALL = [
    "train.steps=6",
    "train.checkpoint_every_n_steps=2",
    "train.batch_size=4",
    "lora_teacher.rank=4",
    "lora_teacher.lora_alpha=8",
]


def arguments(command, run, *more):
    own = ["--teacher", str(run["teacher"]), "--prompts", str(run["prompts"])]
    sets = [part for override in SMALL for part in ("--set", override)]
    recipe = [*own, *sets] if command in ("prepare", "distill") else []
    tracking = [] if command == "prepare" else ["--tracking-uri", run["tracking"]]
    return [command, "--run", str(run["folder"]), *recipe, *tracking, *more]


def new_run(folder, teacher):
    prompts = folder / "my_prompts.txt"
    prompts.write_text("\n".join(f"a photo of {thing}" for thing in ("a cat", "a dog", "a tree", "a house")) * 5)
    return {"folder": folder / "run", "teacher": teacher, "prompts": prompts, "tracking": f"sqlite:///{folder}/ml.db"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher, ray_cluster):
    """A finished distillation of a user's own teacher and prompts."""
    run = new_run(tmp_path_factory.mktemp("job"), tiny_teacher)
    assert main(arguments("prepare", run)) == 0
    assert main(arguments("distill", run)) == 0
    return run


def student_weights(run):
    return load_file(Path(run["folder"]) / "distilled/student/unet/diffusion_pytorch_model.safetensors")


def test_student_is_a_diffusers_folder_that_learned(run):
    pipe = load_pipeline(Path(run["folder"]) / "distilled/student")
    images = pipe("a cat", num_inference_steps=1, guidance_scale=0, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    teacher = load_file(Path(run["teacher"]) / "unet/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(value, teacher[name]) for name, value in student_weights(run).items())


def test_the_raw_weights_are_saved_beside_their_moving_average(run):
    raw = load_pipeline(Path(run["folder"]) / "distilled/student-raw").unet.state_dict()
    average = load_pipeline(Path(run["folder"]) / "distilled/student").unet.state_dict()
    assert all(torch.allclose(raw[name], average[name], atol=0.01) for name in raw)
    assert any(not torch.equal(raw[name], average[name]) for name in raw)


def test_manifest_tells_where_the_student_comes_from(run):
    record = json.loads((Path(run["folder"]) / "distilled/manifest.json").read_text())
    assert record["kind"] == "distill"
    assert len(record["teacher_sha256"]) == len(record["student_sha256"]) == 64
    assert record["metrics"]["step"] == 6
    assert record["prompts"]


def test_steps_and_sheets_are_in_mlflow(run):
    record = json.loads((Path(run["folder"]) / "distilled/manifest.json").read_text())
    client = mlflow.MlflowClient(run["tracking"])
    found = client.get_run(record["mlflow_run"])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.batch_size"] == "4"
    assert [file.path for file in client.list_artifacts(record["mlflow_run"], "images")]


def test_a_finished_run_is_left_alone(run, capsys):
    before = student_weights(run)
    assert main(arguments("distill", run)) == 0
    assert "distilled: 6 steps" in capsys.readouterr().out
    assert all(torch.equal(before[name], value) for name, value in student_weights(run).items())


def test_evaluate_and_register(run):
    assert main(arguments("evaluate", run)) == 0
    evaluation = Path(run["folder"]) / "evaluation"
    assert {"report.html", "contact_sheet.png", "summary.json", "manifest.json"} <= {
        p.name for p in evaluation.iterdir()
    }
    for _ in range(2):  # registering twice is one version
        assert main(arguments("register", run)) == 0
    client = mlflow.MlflowClient(run["tracking"])
    (version,) = client.search_model_versions("name = 'nasa-tiny'")
    assert client.get_model_version_by_alias("nasa-tiny", "challenger").version == version.version
    assert version.tags["student_sha256"]
    downloaded = mlflow.artifacts.download_artifacts(artifact_uri=version.source)
    assert load_pipeline(Path(downloaded) / "student").unet is not None


def test_an_evaluation_may_change_its_own_options_alone(run, capsys):
    assert main(arguments("evaluate", run, "--set", "train.steps=9")) == 2
    assert "--set: got 'train.steps=9'; expected evaluation.field=value" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_at_another_scale_takes_the_place_of_the_first(run):
    assert main(arguments("evaluate", run, "--set", "evaluation.scales=[0.3]")) == 0
    assert "NASA 0.3" in (Path(run["folder"]) / "evaluation/report.html").read_text()


@pytest.mark.parametrize("more", [(), pytest.param(("evaluate", "register"), marks=pytest.mark.slow)])
def test_the_job_on_s3_makes_the_same_student(run, tmp_path, tiny_teacher, bucket, capsys, more):
    """Prompts, checkpoints, student, evaluation and registration below one s3:// folder."""
    stored = new_run(tmp_path, tiny_teacher) | {"folder": f"{bucket}/mine", "prompts": run["prompts"]}
    for command in ("prepare", "distill", *more):
        assert main(arguments(command, stored)) == 0, capsys.readouterr().err
    copy = Folder.from_uri(stored["folder"]).copy_to_local(tmp_path / "copy")
    expected, found = student_weights(run), student_weights({"folder": copy})
    assert all(torch.equal(expected[name], value) for name, value in found.items())
    if more:
        assert (copy / "evaluation/report.html").is_file()
        assert manifest.read(Folder.from_uri(copy) / "registered", RegisteredManifest).alias == "challenger"


def test_another_recipe_in_the_same_folder_is_refused(run, tmp_path, tiny_teacher, capsys):
    other = new_run(tmp_path, tiny_teacher)
    assert main(arguments("prepare", other)) == 0
    (Path(other["folder"]) / "distilled").mkdir()
    begun = Path(run["folder"]) / "distilled/run.json"
    (Path(other["folder"]) / "distilled/run.json").write_bytes(begun.read_bytes())
    assert main(arguments("distill", other, "--set", "train.steps=7")) == 2
    error = capsys.readouterr().err
    assert "train.steps: got 7; " in error
    assert "holds a run with 6. Give the same value, or another --run" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "train.steps=7"], "train.steps: got 7; {folder} holds a finished student with 6"),
        (["--set", "seed=1"], "seed: got 1; {folder} holds a finished student with 0"),
        (["--set", "student.learning_rate=1e-5"], "student.learning_rate: got 1e-05; {folder} holds a finished"),
        (["--teacher", "{teacher}"], "teacher: got '{teacher}'"),
    ],
)
def test_a_finished_run_is_not_taken_for_another(run, tmp_path, tiny_teacher, capsys, more, message):
    """It would say "distilled" and have done nothing."""
    teacher = shutil.copytree(tiny_teacher, tmp_path / "other")
    folder = f"{run['folder']}/distilled"
    before = sorted(Path(folder).rglob("*"))
    filled = [each.format(teacher=teacher) for each in more]
    assert main(arguments("distill", run, *filled)) == 2
    assert message.format(folder=folder, teacher=teacher) in capsys.readouterr().err
    assert sorted(Path(folder).rglob("*")) == before


def test_a_finished_run_of_another_teacher_or_prompts_is_named(run, tmp_path, tiny_teacher, capsys):
    copied = {**run, "folder": tmp_path / "run"}
    shutil.copytree(run["folder"], copied["folder"])
    file = tmp_path / "run/distilled/manifest.json"
    record = json.loads(file.read_text())
    for changed, message in (
        ({"teacher_sha256": "0" * 64}, "holds a student of 000000000000. Give the same teacher, or another --run"),
        ({"prompts": {}}, "prompts: got others than those of "),
    ):
        file.write_text(json.dumps(record | changed))
        assert main(arguments("distill", copied)) == 2
        assert message in capsys.readouterr().err
    file.write_text(json.dumps(record))
    assert main(arguments("distill", copied)) == 0
    assert capsys.readouterr().out.startswith("already distilled: 6 steps, student ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "lora_teacher.target_modules=['to_q', 'to_x']",
            "lora_teacher.target_modules: got 'to_x'; expected the end of a layer's name",
        ),
        ("prompts.count=7", "prompts.count: got 7; expected 24000, which `prepare` was given"),
        ("prompts.near_duplicates=0.5", "prompts.near_duplicates: got 0.5; expected 0.8, which `prepare` was given"),
    ],
)
def test_what_does_not_fit_the_prepared_run_is_refused(run, tmp_path, tiny_teacher, capsys, override, message):
    other = new_run(tmp_path, tiny_teacher) | {"prompts": run["prompts"]}
    assert main(arguments("prepare", other)) == 0
    assert main(arguments("distill", other, "--set", override)) == 2
    assert message in capsys.readouterr().err
    assert not (Path(other["folder"]) / "distilled").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.gpus_per_worker=1"], "train.gpus_per_worker: 2 workers x 1 GPU requested, 0 available"),
        (
            ["evaluation.every_n_checkpoints=1", "evaluation.gpus_per_process=1"],
            "evaluation.gpus_per_process: 1 process x 1 GPU requested, 0 available",
        ),
    ],
)
def test_a_machine_without_the_gpus_is_said_before_anything_begins(run, tmp_path, capsys, overrides, message):
    other = {**run, "folder": tmp_path / "run"}
    shutil.copytree(Path(run["folder"]) / "prompts", tmp_path / "run/prompts")
    assert main(arguments("distill", other, *(part for one in overrides for part in ("--set", one)))) == 2
    assert message in capsys.readouterr().err
    assert not any((tmp_path / "run/distilled").iterdir())


def test_an_evaluation_that_cannot_be_is_said_before_training(run, tmp_path, tiny_teacher, capsys):
    other = new_run(tmp_path, tiny_teacher) | {"prompts": run["prompts"]}
    assert main(arguments("prepare", other)) == 0
    sets = ["evaluation.every_n_checkpoints=1", "evaluation.metrics=[{kind='hpsv2', weights='/no/where'}]"]
    assert main(arguments("distill", other, *(part for override in sets for part in ("--set", override)))) == 2
    assert "evaluation.metrics.weights: got '/no/where'; expected a file" in capsys.readouterr().err
    assert not (Path(other["folder"]) / "distilled").exists()


@pytest.mark.slow
def test_a_training_that_diverges_is_one_line(tmp_path, tiny_teacher, capsys, ray_cluster):
    """Rolled back as the recipe says, with other numbers; as that does not help here, it stops."""
    wild = new_run(tmp_path, tiny_teacher)
    assert main(arguments("prepare", wild)) == 0
    sets = [
        "student.learning_rate=1e30",
        "train.checkpoint_every_n_steps=1",
        'train.on_divergence="rollback"',
        "train.max_rollbacks=1",
    ]
    capsys.readouterr()
    assert main(arguments("distill", wild, *(part for override in sets for part in ("--set", override)))) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    assert "error: training diverged: step 2: " in line
    assert " is nan; " in line
    assert captured.out.count("back to step 1, with other random numbers") == 1
    assert not (Path(wild["folder"]) / "distilled/student").exists()


def test_machines_that_do_not_come_back_are_not_waited_for_without_end(run, tmp_path, capsys, monkeypatch):
    waits = []

    def fit(trainer):
        """Ray Train asks its policy after each minute without resources."""
        error = ControllerError(WorkerGroupStartupTimeoutError(2))
        policy = DefaultFailurePolicy(trainer.run_config.failure_config)
        while policy.make_decision(error) is FailureDecision.RETRY:
            waits.append(60)
        raise error

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    other = {**run, "folder": tmp_path / "run"}
    shutil.copytree(Path(run["folder"]) / "prompts", tmp_path / "run/prompts")
    sets = ("--set", "train.resource_timeout_minutes=5", "--set", "train.max_failures=1")
    assert main(arguments("distill", other, *sets)) == 1
    assert (
        "error: training stopped: the cluster had no resources for 2 workers with 0.5 CPU each in 10 minutes; "
        in capsys.readouterr().err
    )
    assert len(waits) == 10


def test_training_that_failed_is_one_line(tmp_path, tiny_teacher, capsys, monkeypatch, ray_cluster):
    """The last line of the worker's traceback for the user, the whole of it in a file."""

    def fail(_):
        raise WorkerGroupError("all of it", {1: RuntimeError("Traceback ...\nValueError: out of luck")})

    monkeypatch.setattr(TorchTrainer, "fit", fail)
    failed = new_run(tmp_path, tiny_teacher)
    assert main(arguments("prepare", failed)) == 0
    capsys.readouterr()
    assert main(arguments("distill", failed)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: training stopped: ValueError: out of luck; the traceback is in ")
    assert "all of it" in (Path(failed["folder"]) / "distilled/failure.txt").read_text()

    def full(folder, name, content, write=Folder.write):
        if name == "failure.txt":
            raise StorageError(f"{folder.uri}/{name}: cannot be written: No space left on device")
        write(folder, name, content)

    monkeypatch.setattr(Folder, "write", full)
    assert main(arguments("distill", failed)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: training stopped: ValueError: out of luck; the traceback is lost: ")
    assert "No space left on device" in line


def command_line(run):
    return [sys.executable, "-m", "jobs", *arguments("distill", run)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker", "Ctrl-C"])
def test_a_killed_process_ends_on_the_same_weights(run, tmp_path, tiny_teacher, victim):
    """SIGKILL or Ctrl-C after the first checkpoint; the same command, or Ray Train itself, goes on to the same end."""
    killed = new_run(tmp_path, tiny_teacher)
    assert main(arguments("prepare", killed)) == 0
    slow = {**os.environ, "PYTHONPATH": str(ROOT)}
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test in the background would ignore it
    log = tmp_path / "log"
    process = subprocess.Popen(
        command_line(killed),
        env=slow,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=listening,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    checkpoints = Path(killed["folder"]) / "distilled/train"
    deadline = time.monotonic() + 600
    while not list(checkpoints.glob("checkpoint_*/state.json")):
        assert process.poll() is None, "ended before the first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if victim == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid if victim == "driver" else train_worker(process.pid), signal.SIGKILL)
    code = process.wait(timeout=600)
    assert code == {"worker": 0, "driver": -signal.SIGKILL, "Ctrl-C": 130}[victim]
    if victim != "worker":
        done = subprocess.run(
            command_line(killed), env=slow, cwd=ROOT, timeout=600, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0
        finished = victim == "Ctrl-C" and done.stdout.startswith("already distilled")  # six steps may be faster
        assert finished or "resuming from the checkpoint at step " in done.stdout
    if victim == "Ctrl-C":
        assert "stopping after this step and its checkpoint" in log.read_text()
    if victim == "Ctrl-C" and not finished:
        done_before = [int(each) for each in re.findall(r"distil: (\d+) of 6", log.read_text())]
        first = int(re.search(r"checkpoint at step (\d+) of 6", done.stdout)[1])
        assert first >= max(done_before), "a step that was done is done again"
    expected = student_weights(run)
    assert all(torch.equal(expected[name], value) for name, value in student_weights(killed).items())


@pytest.mark.slow
def test_an_evaluation_beside_the_training_does_not_hold_up_ctrl_c(tmp_path):
    """Ray Train waits for validations that run; this one would take many minutes, and is begun again."""
    sets = [
        "train.steps=400",
        "train.checkpoint_every_n_steps=2",
        "train.batch_size=4",
        "train.num_workers=1",
        "prompts.count=200",
    ]
    sets += ["prompts.negative_draws=50", "evaluation.every_n_checkpoints=1", "evaluation.exclusion_seeds=30000"]
    own = ["--run", str(tmp_path / "run"), *(part for each in sets for part in ("--set", each))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert main(["prepare", *own]) == 0
    line = [sys.executable, "-m", "jobs", "distill", *own, "--tracking-uri", f"sqlite:///{tmp_path}/ml.db"]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(line, env=environment, cwd=ROOT, start_new_session=True, preexec_fn=listening)
    images = tmp_path / "run/distilled/versions"
    deadline = time.monotonic() + 600
    while not list(images.glob("*/evaluation/images/*")):
        assert process.poll() is None, "ended before an evaluation began"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130


@pytest.mark.slow
def test_a_run_whose_list_of_checkpoints_is_cut_short_goes_on_from_a_checkpoint(run, tmp_path, capfd):
    """As a kill or a full disk may leave it: Ray Train alone would not start again."""
    damaged = {**run, "folder": tmp_path / "run"}
    shutil.copytree(run["folder"], tmp_path / "run")
    distilled = tmp_path / "run/distilled"
    for name in ("student", "student-raw"):
        shutil.rmtree(distilled / name)
    (distilled / "manifest.json").unlink()
    (distilled / "train" / SNAPSHOT_FILE).write_text('{"ray_version": "2.60')
    *_, last = sorted((distilled / "train").glob("checkpoint_*/"))
    shutil.rmtree(last)
    assert main(arguments("distill", damaged)) == 0
    printed = "".join(capfd.readouterr())
    assert "Ray Train's checkpoint snapshot was corrupt" in printed
    assert "resuming from the checkpoint at step 4 of 6" in printed
    expected = student_weights(run)
    assert all(torch.equal(expected[name], value) for name, value in student_weights(damaged).items())


def train_worker(driver):
    """The process id of a train worker below this driver."""
    import psutil

    below = psutil.Process(driver).children(recursive=True)
    (worker, *_) = [child.pid for child in below if any("RayTrainWorker" in part for part in child.cmdline())]
    return worker
