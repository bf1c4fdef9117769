"""The samplers of the presets, compared with the formulas of the models' inference code."""

from pathlib import Path

import pytest
import torch

import nasa
from nasa.families import find_family
from nasa.testing.tiny_pipelines import TINY_CALLS, TINY_PIPELINES

TOLERANCE = 1e-4
FAMILIES = {
    "stable_diffusion": "stable-diffusion",
    "stable_diffusion_xl": "sdxl",
    "pixart": "pixart",
    "flux": "flux",
    "flux2": "flux2-klein",
    "sana": "sana-sprint",
    "stable_diffusion_3": "stable-diffusion-3",
    "qwen_image": "qwen-image",
    "z_image": "z-image",
}


ARGUMENTS = ("hidden_states", "x"), ("timestep", "t")  # of latents and time, which some pipelines pass by position


def noise_to_x0(pipe, x, output, t):
    """Return x0 = (x - sigma eps) / alpha."""
    cumprod = pipe.scheduler.alphas_cumprod[t].double()
    return (x - (1 - cumprod).sqrt() * output) / cumprod.sqrt()


def velocity_to_x0(pipe, x, output, t):
    """Return x0 = alpha x - sigma v."""
    cumprod = pipe.scheduler.alphas_cumprod[t].double()
    return cumprod.sqrt() * x - (1 - cumprod).sqrt() * output


def flow_to_x0(pipe, x, output, t):
    return x + output


ONE_STEP = {
    "sd15-swiftbrush": (999, noise_to_x0),
    "sd21-swiftbrush": (999, noise_to_x0),
    "sd15-dmd2": (999, noise_to_x0),
    "instaflow": (1000, flow_to_x0),
    "sd15-wadi": (999, noise_to_x0),
    "sd21-wadi": (999, noise_to_x0),
    "pixart-wadi": (999, noise_to_x0),
    "sd15-sid-lsg": (625, noise_to_x0),
    "sd21-sid-lsg": (625, noise_to_x0),
    "sdxl-dmd2-1step": (399, noise_to_x0),
    "pixart-swiftbrush": (999, noise_to_x0),
    "pixart-yoso": (999, velocity_to_x0),
    "pixart-dmd": (400, noise_to_x0),
}


def build_pipeline(name):
    family = FAMILIES[nasa.PRESETS[name].family]
    return TINY_PIPELINES[family]()


def to_double(rows):
    return (torch.stack(rows) if isinstance(rows, list) else rows).double()


def record_run(name, pipe):
    """Return the final latents, and latents, timestep and output of each denoiser call."""
    _, model = find_family(pipe)
    calls = []

    def record(_, args, kwargs, output):
        x, t = (next((kwargs[name] for name in names if name in kwargs), None) for names in ARGUMENTS)
        x, t = args[0] if x is None else x, args[1] if t is None else t
        calls.append((to_double(x), float(t.flatten()[0]), to_double(output[0])))

    hook = model.register_forward_hook(record, with_kwargs=True)
    preset = nasa.PRESETS[name]
    family = FAMILIES[preset.family]
    options = {**TINY_CALLS[family], **preset.options}
    try:
        latents = pipe(prompt="a cat", generator=torch.Generator().manual_seed(0), **options)[0]
    finally:
        hook.remove()
    return latents.double(), calls


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_is_the_formula_of_the_model(name):
    timestep, formula = ONE_STEP[name]
    pipe = nasa.PRESETS[name].configure(build_pipeline(name))
    latents, ((x, t, output),) = record_run(name, pipe)
    assert t == timestep
    expected = formula(pipe, x, output[:, : x.shape[1]], timestep)
    torch.testing.assert_close(latents, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", nasa.PRESETS)
def test_every_preset_runs_its_number_of_steps_and_can_be_steered(name):
    preset = nasa.PRESETS[name]
    pipe = preset.configure(build_pipeline(name))
    plain, calls = record_run(name, pipe)
    assert len(calls) == preset.options["num_inference_steps"]
    length = TINY_CALLS[FAMILIES[preset.family]].get("max_sequence_length")
    with nasa.steer(pipe, "a dog", preset.scale, max_sequence_length=length):
        steered, _ = record_run(name, pipe)
    assert steered.isfinite().all()
    assert not torch.allclose(steered, plain, atol=1e-5)


def test_the_docs_list_every_preset():
    table = (Path(__file__).parents[2] / "docs/negative-prompts.md").read_text()
    rows = {line.split("`")[1]: line.split(" | ") for line in table.splitlines() if line.startswith("| `")}
    for name, preset in nasa.PRESETS.items():
        _, model, steps, _, scale, _ = rows[name]
        assert (model, int(steps), float(scale)) == (preset.model, preset.options["num_inference_steps"], preset.scale)


def test_qwen_image_lightning_takes_the_noise_levels_of_its_distillation():
    pipe = nasa.PRESETS["qwen-image-lightning"].configure(build_pipeline("qwen-image-lightning"))
    _, calls = record_run("qwen-image-lightning", pipe)
    even = [1 - i / 8 for i in range(8)]
    assert [t for _, t, _ in calls] == pytest.approx([3 * s / (1 + 2 * s) for s in even], abs=1e-6)


def test_rectified_flow_in_more_steps_is_euler():
    from nasa.rectified_flow_scheduler import RectifiedFlowScheduler

    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]
    x = torch.zeros(1)
    for t in scheduler.timesteps:
        x = scheduler.step(t / 1000, t, x).prev_sample
    torch.testing.assert_close(x, torch.tensor([0.625]))  # (1 + 3/4 + 1/2 + 1/4) / 4


def test_sid_lsg_starts_from_noise_at_the_level_of_its_timestep():
    """Its sampler noises zeros, `add_noise(0, z, 625)`, where others start from z."""
    pipe = nasa.PRESETS["sd15-sid-lsg"].configure(build_pipeline("sd15-sid-lsg"))
    _, [(x, *_)] = record_run("sd15-sid-lsg", pipe)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    level = (1 - pipe.scheduler.alphas_cumprod[625]).sqrt()
    torch.testing.assert_close(x.float(), level * z)
    assert level < 0.95


@pytest.mark.parametrize("name", ["sd15-wadi", "pixart-wadi"])
def test_wadi_divides_by_stable_diffusion_s_last_alpha(name):
    """Its inference code has the constant 0.0047 for all backbones, PixArt among them."""
    pipe = nasa.PRESETS[name].configure(build_pipeline(name))
    assert float(pipe.scheduler.alphas_cumprod[999]) == pytest.approx(0.0047, rel=0.02)


def test_z_image_turbo_takes_eight_shifted_levels_without_guidance():
    """The model's scheduler has shift 3; its denoiser takes 1 - s, and one row for each image."""
    preset = nasa.PRESETS["z-image-turbo"]
    assert preset.options["guidance_scale"] == 0
    _, calls = record_run("z-image-turbo", preset.configure(build_pipeline("z-image-turbo")))
    even = [1 - i / 8 for i in range(8)]
    assert [1 - t for _, t, _ in calls] == pytest.approx([3 * s / (1 + 2 * s) for s in even], abs=1e-6)
    assert all(len(x) == 1 for x, *_ in calls)
