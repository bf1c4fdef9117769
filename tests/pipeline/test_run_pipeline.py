"""The main job end to end at small width: prepare, distil on Ray, evaluate, register."""

import json
import os
import re
import shutil
import signal
import socket
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


def build_arguments(command, run, *extra):
    inputs = ["--teacher", str(run["teacher"]), "--prompts", str(run["prompts"])]
    recipe = [*inputs, *set_options(SMALL)] if command in ("prepare", "distill") else []
    tracking = [] if command == "prepare" else ["--tracking-uri", run["tracking"]]
    return [command, "--run", str(run["folder"]), *recipe, *tracking, *extra]


def set_options(overrides):
    return [part for override in overrides for part in ("--set", override)]


def create_run(folder, teacher):
    prompts = folder / "my_prompts.txt"
    prompts.write_text("\n".join(f"a photo of {thing}" for thing in ("a cat", "a dog", "a tree", "a house")) * 5)
    return {"folder": folder / "run", "teacher": teacher, "prompts": prompts, "tracking": f"sqlite:///{folder}/ml.db"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_teacher, ray_cluster):
    """Return a finished distillation of a user's own teacher and prompts."""
    run = create_run(tmp_path_factory.mktemp("job"), tiny_teacher)
    assert main(build_arguments("prepare", run)) == 0
    assert main(build_arguments("distill", run)) == 0
    return run


def load_student_weights(run):
    return load_file(Path(run["folder"]) / "distilled/student/unet/diffusion_pytorch_model.safetensors")


def test_the_student_is_a_diffusers_folder_with_trained_weights(run):
    pipe = load_pipeline(Path(run["folder"]) / "distilled/student")
    images = pipe("a cat", num_inference_steps=1, guidance_scale=0, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    teacher = load_file(Path(run["teacher"]) / "unet/diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(value, teacher[name]) for name, value in load_student_weights(run).items())


def test_the_mlflow_run_names_its_folder_and_code(run):
    client = mlflow.MlflowClient(run["tracking"])
    record = manifest.read(Folder.from_uri(Path(run["folder"]) / "distilled"), manifest.DistilledManifest)
    tags = client.get_run(record.mlflow_run).data.tags
    assert (tags["folder"], tags["code"]) == (str(Path(run["folder"]) / "distilled"), manifest.get_code_version())
    assert tags["mlflow.user"]


def test_the_raw_weights_are_saved_beside_their_moving_average(run):
    raw = load_pipeline(Path(run["folder"]) / "distilled/student-raw").unet.state_dict()
    average = load_pipeline(Path(run["folder"]) / "distilled/student").unet.state_dict()
    assert all(torch.allclose(raw[name], average[name], atol=0.01) for name in raw)
    assert any(not torch.equal(raw[name], average[name]) for name in raw)


def test_the_manifest_records_the_lineage_of_the_student(run):
    record = json.loads((Path(run["folder"]) / "distilled/manifest.json").read_text())
    assert record["kind"] == "distill"
    assert len(record["teacher_sha256"]) == len(record["student_sha256"]) == 64
    assert record["metrics"]["step"] == 6
    assert record["prompts"]


def test_parameters_and_images_are_logged_to_mlflow(run):
    record = json.loads((Path(run["folder"]) / "distilled/manifest.json").read_text())
    client = mlflow.MlflowClient(run["tracking"])
    mlflow_run = client.get_run(record["mlflow_run"])
    assert mlflow_run.info.status == "FINISHED"
    assert mlflow_run.data.params["train.batch_size"] == "4"
    images = [file.path for file in client.list_artifacts(record["mlflow_run"], "images")]
    for way in ("raw_plain", "raw_negative", "ema_plain", "ema_negative"):
        assert any("preview_00_a-photo-of-a-" in path and f"~{way}+step+6+" in path for path in images), images
    inputs = {
        logged.tags[0].value: (logged.dataset.name, logged.dataset.digest)
        for logged in mlflow_run.inputs.dataset_inputs
    }
    assert inputs["training"][0].startswith("prompts ")
    assert record["prompts"]["negatives.parquet"]["sha256"].startswith(inputs["negatives"][1])
    assert mlflow_run.data.tags["node_0"] == socket.gethostname()


def test_a_finished_run_is_not_trained_again(run, capsys):
    before = load_student_weights(run)
    assert main(build_arguments("distill", run)) == 0
    assert "distilled: 6 steps" in capsys.readouterr().out
    assert all(torch.equal(before[name], value) for name, value in load_student_weights(run).items())


def test_evaluate_and_register(run):
    assert main(build_arguments("evaluate", run)) == 0
    evaluation = Path(run["folder"]) / "evaluation"
    assert {"report.html", "contact_sheet.png", "summary.json", "manifest.json"} <= {
        p.name for p in evaluation.iterdir()
    }
    for _ in range(2):  # registering twice must create one version
        assert main(build_arguments("register", run)) == 0
    client = mlflow.MlflowClient(run["tracking"])
    (version,) = client.search_model_versions("name = 'nasa-tiny'")
    assert client.get_model_version_by_alias("nasa-tiny", "challenger").version == version.version
    (model,) = client.search_logged_models(["1"], filter_string="params.step = '6'")
    assert model.tags["student_sha256"] == version.tags["student_sha256"]
    assert version.tags["model_id"] == model.model_id
    assert {metric.dataset_name for metric in model.metrics} == {"evaluation on own prompts"}
    assert client.get_run(version.run_id).data.tags["last_event"] == "challenger"
    downloaded = mlflow.artifacts.download_artifacts(artifact_uri=version.source)
    assert load_pipeline(Path(downloaded) / "student").unet is not None


def test_evaluate_accepts_only_overrides_of_the_evaluation_section(run, capsys):
    assert main(build_arguments("evaluate", run, "--set", "train.steps=9")) == 2
    assert "--set: got 'train.steps=9'; expected evaluation.field=value" in capsys.readouterr().err


@pytest.mark.slow
def test_an_evaluation_at_another_scale_replaces_the_first(run):
    assert main(build_arguments("evaluate", run, "--set", "evaluation.scales=[0.3]")) == 0
    assert "NASA 0.3" in (Path(run["folder"]) / "evaluation/report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("evaluate", "register")])
def test_a_job_on_s3_produces_the_same_student(run, tmp_path, tiny_teacher, bucket, capsys, extra):
    """Prompts, checkpoints, student, evaluation and registration lie below one s3:// folder."""
    s3_run = create_run(tmp_path, tiny_teacher) | {"folder": f"{bucket}/mine", "prompts": run["prompts"]}
    for command in ("prepare", "distill", *extra):
        assert main(build_arguments(command, s3_run)) == 0, capsys.readouterr().err
    local_copy = Folder.from_uri(s3_run["folder"]).copy_to_local(tmp_path / "copy")
    expected, actual = load_student_weights(run), load_student_weights({"folder": local_copy})
    assert all(torch.equal(expected[name], value) for name, value in actual.items())
    if extra:
        assert (local_copy / "evaluation/report.html").is_file()
        assert manifest.read(Folder.from_uri(local_copy) / "registered", RegisteredManifest).alias == "challenger"


def test_another_recipe_in_the_same_folder_is_rejected(run, tmp_path, tiny_teacher, capsys):
    other = create_run(tmp_path, tiny_teacher)
    assert main(build_arguments("prepare", other)) == 0
    (Path(other["folder"]) / "distilled").mkdir()
    run_file = Path(run["folder"]) / "distilled/run.json"
    (Path(other["folder"]) / "distilled/run.json").write_bytes(run_file.read_bytes())
    assert main(build_arguments("distill", other, "--set", "train.steps=7")) == 2
    error = capsys.readouterr().err
    assert "train.steps: got 7; " in error
    assert "which holds a run. Pass the same value, or another --run" in error


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "train.steps=7"], "train.steps: got 7; expected 6, as in {folder}, which holds a finished student"),
        (["--set", "seed=1"], "seed: got 1; expected 0, as in {folder}, which holds a finished student"),
        (["--set", "student.learning_rate=1e-5"], "student.learning_rate: got 1e-05; expected "),
        (["--teacher", "{teacher}"], "teacher: got '{teacher}'"),
    ],
)
def test_changed_options_are_rejected_for_a_finished_run(run, tmp_path, tiny_teacher, capsys, extra, message):
    """Otherwise the command would report success without training."""
    teacher = shutil.copytree(tiny_teacher, tmp_path / "other")
    folder = f"{run['folder']}/distilled"
    before = sorted(Path(folder).rglob("*"))
    options = [option.format(teacher=teacher) for option in extra]
    assert main(build_arguments("distill", run, *options)) == 2
    assert message.format(folder=folder, teacher=teacher) in capsys.readouterr().err
    assert sorted(Path(folder).rglob("*")) == before


def test_another_teacher_or_other_prompts_are_rejected_for_a_finished_run(run, tmp_path, tiny_teacher, capsys):
    copied = {**run, "folder": tmp_path / "run"}
    shutil.copytree(run["folder"], copied["folder"])
    file = tmp_path / "run/distilled/manifest.json"
    record = json.loads(file.read_text())
    for changed, message in (
        ({"teacher_sha256": "0" * 64}, "expected 000000000000, as in "),
        ({"prompts": {}}, "prompts: got other prompts; expected those that "),
    ):
        file.write_text(json.dumps(record | changed))
        assert main(build_arguments("distill", copied)) == 2
        assert message in capsys.readouterr().err
    file.write_text(json.dumps(record))
    assert main(build_arguments("distill", copied)) == 0
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
def test_options_that_contradict_the_prepared_run_are_rejected(run, tmp_path, tiny_teacher, capsys, override, message):
    other = create_run(tmp_path, tiny_teacher) | {"prompts": run["prompts"]}
    assert main(build_arguments("prepare", other)) == 0
    assert main(build_arguments("distill", other, "--set", override)) == 2
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
def test_missing_gpus_are_reported_before_anything_starts(run, tmp_path, capsys, overrides, message):
    other = {**run, "folder": tmp_path / "run"}
    shutil.copytree(Path(run["folder"]) / "prompts", tmp_path / "run/prompts")
    assert main(build_arguments("distill", other, *set_options(overrides))) == 2
    assert message in capsys.readouterr().err
    assert not any((tmp_path / "run/distilled").iterdir())


def test_an_impossible_evaluation_is_reported_before_training(run, tmp_path, tiny_teacher, capsys):
    other = create_run(tmp_path, tiny_teacher) | {"prompts": run["prompts"]}
    assert main(build_arguments("prepare", other)) == 0
    overrides = ["evaluation.every_n_checkpoints=1", "evaluation.metrics=[{kind='hpsv2', weights='/no/where'}]"]
    assert main(build_arguments("distill", other, *set_options(overrides))) == 2
    assert "evaluation.metrics.weights: got '/no/where'; expected a file" in capsys.readouterr().err
    assert not (Path(other["folder"]) / "distilled").exists()


@pytest.mark.slow
def test_a_diverging_run_is_reported_in_one_line(tmp_path, tiny_teacher, capsys, ray_cluster):
    """The run is rolled back once with other random numbers, diverges again and stops."""
    diverging = create_run(tmp_path, tiny_teacher)
    assert main(build_arguments("prepare", diverging)) == 0
    overrides = [
        "student.learning_rate=1e30",
        "train.checkpoint_every_n_steps=1",
        'train.on_divergence="rollback"',
        "train.max_rollbacks=1",
    ]
    capsys.readouterr()
    assert main(build_arguments("distill", diverging, *set_options(overrides))) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    assert "error: training diverged: step 2: " in line
    assert " is nan; " in line
    (mlflow_run,) = mlflow.MlflowClient(diverging["tracking"]).search_runs(["1"])
    assert mlflow_run.data.tags["last_event"] == "diverged"
    assert captured.out.count("back to step 1, with other random numbers") == 1
    assert not (Path(diverging["folder"]) / "distilled/student").exists()


def test_waiting_for_lost_machines_is_limited(run, tmp_path, capsys, monkeypatch):
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
    overrides = ("--set", "train.resource_timeout_minutes=5", "--set", "train.max_failures=1")
    assert main(build_arguments("distill", other, *overrides)) == 1
    assert (
        "error: training stopped: the cluster had no resources for 2 workers with 0.5 CPU each in 10 minutes; "
        in capsys.readouterr().err
    )
    assert len(waits) == 10


def test_failed_training_is_reported_in_one_line(tmp_path, tiny_teacher, capsys, monkeypatch, ray_cluster):
    """The user sees the last line of the worker's traceback; a file holds all of it."""

    def fail(_):
        raise WorkerGroupError("all of it", {1: RuntimeError("Traceback ...\nValueError: out of luck")})

    monkeypatch.setattr(TorchTrainer, "fit", fail)
    failed = create_run(tmp_path, tiny_teacher)
    assert main(build_arguments("prepare", failed)) == 0
    capsys.readouterr()
    assert main(build_arguments("distill", failed)) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert line.startswith("error: training stopped: ValueError: out of luck; the traceback is in ")
    assert "all of it" in (Path(failed["folder"]) / "distilled/failure.txt").read_text()
    (mlflow_run,) = mlflow.MlflowClient(failed["tracking"]).search_runs(["1"])
    assert mlflow_run.data.tags["last_event"] == "failed"

    def fail_to_write(folder, name, content, write=Folder.write):
        if name == "failure.txt":
            raise StorageError(f"{folder.uri}/{name}: cannot be written: No space left on device")
        write(folder, name, content)

    monkeypatch.setattr(Folder, "write", fail_to_write)
    assert main(build_arguments("distill", failed)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: training stopped: ValueError: out of luck; the traceback is lost: ")
    assert "No space left on device" in line


def build_distill_command(run):
    return [sys.executable, "-m", "jobs", *build_arguments("distill", run)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker", "Ctrl-C"])
def test_a_killed_run_resumes_to_the_same_weights(run, tmp_path, tiny_teacher, victim):
    """The same command, or Ray Train itself, continues from the checkpoint after SIGKILL or Ctrl-C."""
    killed = create_run(tmp_path, tiny_teacher)
    assert main(build_arguments("prepare", killed)) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    reset_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background process would ignore SIGINT
    log = tmp_path / "log"
    process = subprocess.Popen(
        build_distill_command(killed),
        env=environment,
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=reset_sigint,
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
        os.kill(process.pid if victim == "driver" else find_train_worker(process.pid), signal.SIGKILL)
    code = process.wait(timeout=600)
    assert code == {"worker": 0, "driver": -signal.SIGKILL, "Ctrl-C": 130}[victim]
    if victim != "worker":
        result = subprocess.run(
            build_distill_command(killed),
            env=environment,
            cwd=ROOT,
            timeout=600,
            check=False,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0
        # All six steps may finish before the signal arrives.
        finished = victim == "Ctrl-C" and result.stdout.startswith("already distilled")
        assert finished or "resuming from the checkpoint at step " in result.stdout
    if victim == "Ctrl-C":
        assert "stopping after this step and its checkpoint" in log.read_text()
    if victim == "Ctrl-C" and not finished:
        completed_steps = [int(step) for step in re.findall(r"distil: (\d+) of 6", log.read_text())]
        resumed_step = int(re.search(r"checkpoint at step (\d+) of 6", result.stdout)[1])
        assert resumed_step >= max(completed_steps), "a completed step is repeated"
    expected = load_student_weights(run)
    assert all(torch.equal(expected[name], value) for name, value in load_student_weights(killed).items())


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_concurrent_evaluation(tmp_path):
    """Ray Train waits for running validations; this one would take many minutes, and restarts on resume."""
    overrides = [
        "train.steps=400",
        "train.checkpoint_every_n_steps=2",
        "train.batch_size=4",
        "train.num_workers=1",
        "prompts.count=200",
    ]
    overrides += ["prompts.negative_draws=50", "evaluation.every_n_checkpoints=1", "evaluation.exclusion_seeds=30000"]
    options = ["--run", str(tmp_path / "run"), *set_options(overrides)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert main(["prepare", *options]) == 0
    command = [sys.executable, "-m", "jobs", "distill", *options, "--tracking-uri", f"sqlite:///{tmp_path}/ml.db"]
    reset_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True, preexec_fn=reset_sigint)
    images = tmp_path / "run/distilled/versions"
    deadline = time.monotonic() + 600
    while not list(images.glob("*/evaluation/images/*")):
        assert process.poll() is None, "ended before an evaluation began"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=120) == 130


@pytest.mark.slow
def test_a_run_with_a_truncated_checkpoint_snapshot_resumes(run, tmp_path, capfd):
    """A kill or a full disk may truncate the snapshot; Ray Train alone would not start again."""
    damaged = {**run, "folder": tmp_path / "run"}
    shutil.copytree(run["folder"], tmp_path / "run")
    distilled = tmp_path / "run/distilled"
    for name in ("student", "student-raw"):
        shutil.rmtree(distilled / name)
    (distilled / "manifest.json").unlink()
    (distilled / "train" / SNAPSHOT_FILE).write_text('{"ray_version": "2.60')
    *_, last = sorted((distilled / "train").glob("checkpoint_*/"))
    shutil.rmtree(last)
    assert main(build_arguments("distill", damaged)) == 0
    printed = "".join(capfd.readouterr())
    assert "Ray Train's checkpoint snapshot was corrupt" in printed
    assert "resuming from the checkpoint at step 4 of 6" in printed
    expected = load_student_weights(run)
    assert all(torch.equal(expected[name], value) for name, value in load_student_weights(damaged).items())


def find_train_worker(driver):
    """Return the process id of a train worker below this driver."""
    import psutil

    descendants = psutil.Process(driver).children(recursive=True)
    (worker, *_) = [child.pid for child in descendants if any("RayTrainWorker" in part for part in child.cmdline())]
    return worker
