"""A registered version generates what its evaluation judged, for every family and start timestep."""

import numpy as np
import pytest
import torch

from nasa.testing import tiny_stable_diffusion
from nasa.testing.tiny_pipelines import tiny_pixart
from pipeline import models, recipe
from pipeline.evaluation.contact_sheet import to_pixels
from pipeline.evaluation.sampling import Sampler, SamplingMethod
from pipeline.registry import version_artifacts

PIPELINES = {"unet": tiny_stable_diffusion, "pixart": tiny_pixart}


@pytest.mark.parametrize("start", [-1, 400])
@pytest.mark.parametrize("family", PIPELINES)
def test_the_pipeline_with_its_options_generates_the_evaluated_image(tmp_path, family, start):
    PIPELINES[family]().save_pretrained(tmp_path / "teacher")
    run_recipe = recipe.parse("", [f"teacher={str(tmp_path / 'teacher')!r}", f"method.start_timestep={start}"])
    model = models.load(tmp_path / "teacher", start_timestep=start)
    judged = to_pixels(Sampler(model).sample(SamplingMethod(), ["a cat"], [3]))[0]
    student = tmp_path / "student"
    models.save_student(tmp_path / "teacher", model.denoiser.state_dict(), student, start_timestep=start)
    assert models.read_student_record(student) == {"start_timestep": start}
    pipe = models.load_pipeline(student)
    side = model.denoiser.config.sample_size * pipe.vae_scale_factor
    options = version_artifacts.build_call_options(run_recipe, student) | {"height": side, "width": side}
    noise = torch.Generator().manual_seed(3)
    served = pipe("a cat", generator=noise, output_type="np", **options).images[0]
    assert np.abs((255 * served).round() - judged.astype(float)).max() <= 2
