"""`python -m jobs run` with a tiny model of every family, whole or as a LoRA: prepare, distil, evaluate, register."""

import io

import mlflow
import pytest
from PIL import Image

from jobs.__main__ import main
from nasa.families import FAMILIES
from nasa.testing import TINY_PIPELINES
from pipeline import manifest, models
from pipeline.errors import UserError
from pipeline.registry.register import RegisteredManifest
from pipeline.storage import Folder

LORA, FOUR_STEPS = ["student.lora_rank=2", "student.lora_alpha=4"], ["method.student_steps=4"]
FLOW = ['method.lora_loss_weighting="uniform"', "method.lora_guidance=false"]
RUNS = {  # tiny pipeline: overrides
    "stable-diffusion": FOUR_STEPS,
    "sdxl": FOUR_STEPS,
    "pixart": [],
    "pixart-sigma": [],
    "sana": [*FLOW, "resolution=32"],
    "stable-diffusion-3": FLOW,
    "flux": [*FLOW, *LORA, *FOUR_STEPS, "resolution=16"],
    "flux2-klein": [*FLOW, *LORA, "resolution=32"],
    "qwen-image": [*FLOW, *LORA, "resolution=32"],
    "z-image": [*FLOW, *LORA, *FOUR_STEPS, "resolution=32"],
    "wan": [*FLOW, *LORA, "resolution=16"],
}
SMALL = [
    "train.steps=2",
    "train.checkpoint_every_n_steps=1",
    "train.batch_size=2",
    "train.clip_weight=0",
    "lora_teacher.rank=2",
    "lora_teacher.lora_alpha=4",
    "evaluation.num_prompts=4",
    "evaluation.teacher_prompts=2",
    "evaluation.teacher_steps=2",
    "evaluation.scales=[0.5]",
    "evaluation.diversity_seeds=0",
]


def test_every_family_that_can_be_distilled_has_a_run():
    classes = {type(TINY_PIPELINES[name]()).__name__ for name in RUNS}
    assert classes == {name for f in FAMILIES if f.distillation for name in f.distillation.pipeline_classes}


@pytest.mark.slow
@pytest.mark.parametrize("family", RUNS)
def test_a_run_registers_a_student_that_its_pipeline_samples(tmp_path, ray_cluster, family):
    TINY_PIPELINES[family]().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("\n".join(f"a photo of a {name}" for name in ("cat", "dog", "tree", "house")))
    tracking = f"sqlite:///{tmp_path}/ml.db"
    inputs = ["--teacher", str(tmp_path / "teacher"), "--prompts", str(tmp_path / "prompts.txt")]
    overrides = [part for override in [*SMALL, *RUNS[family]] for part in ("--set", override)]
    assert main(["run", "--run", str(tmp_path / "run"), *inputs, "--tracking-uri", tracking, *overrides]) == 0
    registered = manifest.read(Folder.from_uri(str(tmp_path / "run" / "registered")), RegisteredManifest)
    mlflow.set_tracking_uri(tracking)
    folder = mlflow.artifacts.download_artifacts(registered.uri)
    student = next(path.parent for path in (tmp_path / "run").glob("**/student/model_index.json"))
    options = models.build_call_options(student)
    assert options["num_inference_steps"] == (4 if FOUR_STEPS[0] in RUNS[family] else 1)
    images = mlflow.pyfunc.load_model(folder).predict([{"prompt": "a cat", "negative_prompt": "blurry"}] * 2)
    assert len(images) == 2
    assert images[0] == images[1]
    assert getattr(Image.open(io.BytesIO(images[0])), "n_frames", 1) == (17 if family == "wan" else 1)


def test_a_student_of_several_steps_needs_a_pipeline_that_takes_timesteps(tmp_path):
    TINY_PIPELINES["wan"]().save_pretrained(tmp_path)
    expected = "method.student_steps: got 2; expected 1, as WanPipeline takes no timesteps"
    with pytest.raises(UserError, match=expected):
        models.load(tmp_path, resolution=16, student_steps=2)
