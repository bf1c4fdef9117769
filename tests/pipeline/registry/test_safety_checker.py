"""A teacher with a safety checker: evaluated, registered and served images are the same, without the checker."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig

from nasa.testing import tiny_stable_diffusion
from pipeline import models
from pipeline.evaluation.contact_sheet import to_pixels
from pipeline.evaluation.sampling import Sampler, SamplingMethod


@pytest.fixture
def teacher(tmp_path):
    """Return a teacher whose checker finds every image unsafe."""
    pipe = tiny_stable_diffusion()
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = CLIPVisionConfig(**small, image_size=32, patch_size=16), CLIPTextConfig(**small)
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=8)
    )
    checker.concept_embeds_weights.data.fill_(-1.0)
    pipe.register_modules(safety_checker=checker, feature_extractor=CLIPImageProcessor(size=32, crop_size=32))
    pipe.register_to_config(requires_safety_checker=True)
    pipe.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_a_student_generates_the_image_that_was_evaluated(teacher, tmp_path, capfd):
    blocked = DiffusionPipeline.from_pretrained(teacher)
    blocked.set_progress_bar_config(disable=True)
    black = blocked("a cat", num_inference_steps=1, guidance_scale=0.0, output_type="np").images[0]
    assert not black.any(), "the teacher's checker works"
    model = models.load(models.find_teacher_folder(str(teacher)))
    assert model.pipe.safety_checker is None
    judged = to_pixels(Sampler(model).sample(SamplingMethod(), ["a cat"], [0]))[0]
    models.save_student(teacher, model.denoiser.state_dict(), tmp_path / "student")
    index = json.loads((tmp_path / "student/model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["requires_safety_checker"] is False
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        student = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert "safety checker" not in "".join(capfd.readouterr())
    student.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    served = student("a cat", num_inference_steps=1, guidance_scale=0.0, generator=generator, output_type="np").images[
        0
    ]
    assert np.abs((255 * served).round() - judged.astype(float)).max() <= 2
