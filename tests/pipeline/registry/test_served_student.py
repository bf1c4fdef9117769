"""A registered version generates what its evaluation judged, for every family and start timestep."""

import diffusers.schedulers.scheduling_lcm as lcm
import numpy as np
import pytest
import torch

from nasa.random_numbers import draw_seeded_noise, mix_seeds
from nasa.testing import TINY_CALLS, TINY_PIPELINES
from pipeline import models
from pipeline.evaluation.contact_sheet import to_pixels
from pipeline.evaluation.sampling import Sampler, SamplingMethod

SEED = 3
FAMILIES = ["stable-diffusion", "sdxl", "pixart", "pixart-sigma", "sana", "stable-diffusion-3", "flux"]
FAMILIES += ["flux2-klein", "qwen-image", "z-image"]
RESOLUTIONS = {
    "flux": 16,
    "flux2-klein": 32,
    "qwen-image": 32,
    "z-image": 32,
}  # of the tiny models; others have their own


@pytest.mark.parametrize(
    ("family", "start", "steps"),
    [(family, -1, steps) for family in FAMILIES for steps in (1, 4)]
    + [(family, 400, 1) for family in ("stable-diffusion", "pixart", "pixart-sigma", "sana")],
)
def test_the_pipeline_with_its_options_generates_the_evaluated_image(tmp_path, monkeypatch, family, start, steps):
    TINY_PIPELINES[family]().save_pretrained(tmp_path / "teacher")
    options = {"start_timestep": start, "student_steps": steps, "resolution": RESOLUTIONS.get(family, 0)}
    model = models.load(tmp_path / "teacher", **options)
    judged = to_pixels(Sampler(model).sample(SamplingMethod(), ["a cat"], [SEED]))[0]
    student = tmp_path / "student"
    models.save_student(tmp_path / "teacher", model.denoiser.state_dict(), student, **options)
    record = models.read_student_record(student)
    assert (record["start_timestep"], record["student_steps"]) == (start, steps)
    added = [draw_seeded_noise([mix_seeds(SEED, step)], model.latent_shape) for step in range(1, steps)]
    monkeypatch.setattr(lcm, "randn_tensor", lambda *_, **__: added.pop(0))
    pipe = models.load_pipeline(student)
    left_out = ("max_sequence_length", "num_inference_steps", "output_type")
    call = {key: value for key, value in TINY_CALLS[family].items() if key not in left_out}
    call |= models.build_call_options(student)
    noise = torch.Generator().manual_seed(SEED)
    served = pipe(prompt="a cat", generator=noise, output_type="np", **call).images[0]
    assert np.abs((255 * served).round() - judged.astype(float)).max() <= 2
    assert not added or model.diffusion.prediction_type == "flow"
