"""Distillation of every family on its tiny pipeline: what the denoiser predicts, and a step against float64."""

from copy import deepcopy

import pytest
import torch

import nasa
from nasa.diffusion_process import read_diffusion
from nasa.distillation import TextConditions, lora_teacher_loss, sample_step, student_loss
from nasa.families import find_family
from nasa.lora import add_lora, get_lora_parameters, merge_weights
from nasa.method_options import MethodOptions
from nasa.packing import pack
from nasa.prompt_embeds import PromptEmbeds
from nasa.schedulers import is_flow_matching
from nasa.steerable_denoiser import make_steerable, require_distillation
from nasa.testing import TINY_CALLS, TINY_PIPELINES

FAMILIES = ["sdxl", "pixart-sigma", "sana", "stable-diffusion-3", "flux", "flux2-klein", "qwen-image", "z-image"]
FAMILIES += ["wan"]
BATCH = 2
SIDES = {"sana": 16}  # its pipeline takes multiples of 32 pixels; others have a side of 4
TOLERANCE = 1e-4  # of float32 images against the pipeline's own sampler
REFERENCE_TOLERANCE = 1e-5  # some layers compute rotary embeddings and times in float32
PROMPTS, NEGATIVES = ["a cat", "a small dog on a hill"], ["blurry", "a red car, ugly"]


class Setting:
    """A family's student, teachers and texts; `dtype` float64 makes it a reference."""

    def __init__(self, name, steps=1, dtype=torch.float32):
        self.pipe = TINY_PIPELINES[name]()
        self.family, denoiser = find_family(self.pipe)
        self.distillation = require_distillation(self.family)
        self.side = SIDES.get(name, 4)
        self.shape = self.distillation.latent_shape(denoiser.config, self.side)
        shift = None
        if is_flow_matching(self.pipe.scheduler):
            tokens = self.distillation.count_image_tokens(self.shape)
            shift = self.distillation.compute_flow_shift(self.pipe.scheduler.config, tokens)
        self.diffusion = read_diffusion(self.pipe.scheduler, flow_shift=shift, student_steps=steps)
        for part in ("alphas", "sigmas"):
            object.__setattr__(self.diffusion, part, getattr(self.diffusion, part).to(dtype))
        tokens = TINY_CALLS[name].get("max_sequence_length")
        with torch.no_grad():
            encoded = [self.family.encode(self.pipe, list(texts), tokens) for texts in (PROMPTS, NEGATIVES, [""])]
        self.texts = TextConditions(*(part.map(lambda t: t.to(dtype)) for part in encoded))
        torch.manual_seed(0)
        student = deepcopy(denoiser).to(dtype).requires_grad_(True)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, dtype=dtype)
        self.student = make_steerable(student, family=self.family)
        teacher = denoiser.to(dtype)
        self.plain_teacher = deepcopy(teacher)
        add_lora(teacher, rank=2, lora_alpha=4, target_modules=["to_q", "to_v"])
        with torch.no_grad():
            for parameter in get_lora_parameters(teacher):
                parameter.copy_(0.3 * torch.randn(parameter.shape))
        self.teachers = make_steerable(teacher, family=self.family)

    def sample(self, method):
        generators = [torch.Generator().manual_seed(index) for index in range(BATCH)]
        drawn = sample_step(method, self.diffusion, self.shape, torch.Generator().manual_seed(0), generators)
        dtype = self.texts.null.embeds.dtype
        values = {n: v.to(dtype) if n in FLOATS else v for n, v in vars(drawn).items()}
        return type(drawn)(**values | {"last_step": self.diffusion.student_steps - 1})  # all steps before it run

    def run_step(self, method):
        randomness = self.sample(method)
        outcome = student_loss(self.student, self.teachers, self.diffusion, method, self.texts, randomness)
        outcome.loss.backward()
        lora = lora_teacher_loss(self.teachers, self.diffusion, method, self.texts, randomness, outcome.x0)
        lora.backward()
        return outcome, lora

    def add_noise(self, x0, eps, t):
        return self.diffusion.alphas[t] * x0 + self.diffusion.sigmas[t] * eps

    def convert(self, output, x_t, t):
        """Return x0 and eps."""
        alpha, sigma = self.diffusion.alphas[t], self.diffusion.sigmas[t]
        x0 = x_t - sigma * output if self.flow else (x_t - sigma * output) / alpha
        return x0, (x_t - alpha * x0) / sigma

    def predict_eps(self, model, x_t, t, text):
        output = self.distillation.predict(model, x_t, self.diffusion.times[t].expand(1), text)
        return self.convert(output, x_t, t)[1]

    def generate(self, image, r):
        """Return one image by the student's steps, of which only the last has a gradient."""
        prompt, negative, x_t = self.texts.prompts[image], self.texts.negatives[image], r.noise[image]
        for number, t in enumerate(self.diffusion.student_timesteps[: r.last_step + 1]):
            output = self.student(x_t, self.diffusion.times[t].expand(1), prompt, negative, r.scale)
            x0, eps = self.convert(output, x_t, t)
            if number < r.last_step:
                next_t = self.diffusion.student_timesteps[number + 1]
                x_t = self.add_noise(x0, eps if self.flow else r.step_noise[image, number], next_t).detach()
        return x0

    def run_reference(self, method):
        """Return both losses of eqs. 4 to 6, one image and one condition at a time, from merged weights."""
        lora = deepcopy(self.plain_teacher)
        lora.load_state_dict(merge_weights(self.teachers.model))
        r, losses, lora_losses, k = self.sample(method), [], [], self.sample(method).guidance_scale
        for b in range(BATCH):
            image = slice(b, b + 1)
            prompt, negative = self.texts.prompts[image], self.texts.negatives[image]
            x0 = self.generate(image, r)
            with torch.no_grad():
                t = r.vsd_timestep_B[b]
                x_t = self.add_noise(x0, r.vsd_eps[image], t)
                away, towards = (self.predict_eps(self.plain_teacher, x_t, t, text) for text in (negative, prompt))
                learned = self.predict_eps(lora, x_t, t, prompt)
                g = self.diffusion.sigmas[t] ** 2 * ((1 - k) * away + k * towards - learned)
            losses.append(0.5 * (x0 - (x0 - g).detach()).square().mean())
            t, eps, x0 = r.lora_timestep_B[b], r.lora_eps[image], x0.detach()
            text = self.texts.null if r.null_text_B[b] else prompt
            output = self.distillation.predict(
                lora, self.add_noise(x0, eps, t), self.diffusion.times[t].expand(1), text
            )
            lora_losses.append((output - (eps - x0 if self.flow else eps)).square().mean())
        return torch.stack(losses).mean(), torch.stack(lora_losses).mean()

    @property
    def flow(self):
        return self.diffusion.prediction_type == "flow"


FLOATS = ("noise", "vsd_eps", "lora_eps", "step_noise")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_is_that_of_the_pipeline_s_own_call(name):
    """The pipeline's own code, with a scheduler whose only step returns the output, calls the denoiser once."""
    setting = Setting(name)
    pipe, noise = setting.pipe, setting.sample(MethodOptions()).noise
    pipe.scheduler = setting.distillation.build_scheduler(pipe.scheduler.config, setting.diffusion)
    calls = []
    denoiser = setting.teachers.model
    hook = denoiser.register_forward_hook(lambda _, args, kwargs, output: calls.append(output[0]), with_kwargs=True)
    options = dict(TINY_CALLS[name])
    options |= setting.distillation.build_call_options(setting.diffusion)
    scale = getattr(pipe, "vae_scale_factor", None) or pipe.vae_scale_factor_spatial
    pixels = setting.side * scale * (2 if name == "flux2-klein" else 1)
    options |= {"height": pixels, "width": pixels}
    if name == "wan":
        options["num_frames"] = 4 * (setting.shape[1] - 1) + 1
    if name in ("flux", "qwen-image"):
        noise = pack(noise)
    pipe(prompt=list(PROMPTS), latents=noise, **options)  # Z-Image's pipeline changes the list
    hook.remove()
    (own,) = calls[:1]
    time_B = setting.diffusion.times[-1:].expand(BATCH)
    predicted = setting.distillation.predict(
        denoiser, setting.sample(MethodOptions()).noise, time_B, setting.texts.prompts
    )
    if name in ("flux", "qwen-image"):
        predicted = pack(predicted)
    if name == "z-image":
        own = -torch.cat(own, dim=1).transpose(0, 1)  # its pipeline negates the output, frames are the second axis
    if name == "flux2-klein":
        predicted = predicted.flatten(2).transpose(1, 2)
    if own.shape != predicted.shape:
        own = own[:, : predicted.shape[1]]
    torch.testing.assert_close(predicted, own, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("steps", [1, 4])
def test_losses_and_the_student_s_gradient_match_the_reference(name, steps):
    setting = Setting(name, steps, torch.float64)
    method = MethodOptions(lora_guidance=False, lora_loss_weighting="uniform", student_steps=steps)
    loss, lora_loss = setting.run_reference(method)
    loss.backward()
    expected = {name: p.grad.clone() for name, p in setting.student.named_parameters() if p.grad is not None}
    setting.student.zero_grad()
    outcome, actual_lora_loss = setting.run_step(method)
    torch.testing.assert_close(outcome.loss, loss, rtol=REFERENCE_TOLERANCE, atol=0)
    torch.testing.assert_close(actual_lora_loss, lora_loss, rtol=REFERENCE_TOLERANCE, atol=0)
    scale = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in setting.student.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=REFERENCE_TOLERANCE * scale)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_trains_student_and_lora_teacher_only(name):
    setting = Setting(name)
    outcome, lora = setting.run_step(MethodOptions(lora_loss_weighting="uniform"))
    assert outcome.loss > 0 < lora
    assert outcome.x0.shape == (BATCH, *setting.shape)
    assert all(p.grad is None for n, p in setting.teachers.named_parameters() if "lora_" not in n)
    assert any(p.grad.any() for p in get_lora_parameters(setting.teachers))
    assert any(p.grad is not None and p.grad.any() for p in setting.student.parameters())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.0, 0.7])
def test_the_student_is_steered_only_by_a_scale(name, scale):
    setting = Setting(name)
    noise, texts = setting.sample(MethodOptions()).noise, setting.texts
    time_B = setting.diffusion.times[-1:].expand(BATCH)
    with torch.no_grad():
        plain = setting.student(noise, time_B, texts.prompts)
        steered = setting.student(noise, time_B, texts.prompts, texts.negatives, scale)
    assert torch.equal(plain, steered) == (scale == 0)


def test_without_guidance_the_teacher_is_called_with_the_prompt_alone():
    setting = Setting("flux")
    rows = []
    setting.teachers.model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    for guidance in (1.0, 2.0):
        rows.clear()
        setting.run_step(MethodOptions(guidance_range=(guidance, guidance), lora_guidance=False))
        assert rows == [BATCH if guidance == 1 else 2 * BATCH, BATCH, BATCH]


def test_the_null_text_of_sdxl_is_zeros_as_in_its_pipeline():
    setting = Setting("sdxl")
    assert not setting.texts.null.embeds.any()
    assert not setting.texts.null.pooled.any()
    assert setting.texts.prompts.pooled.any()


def test_padding_is_trimmed_and_a_mask_of_ones_dropped():
    texts = PromptEmbeds(torch.ones(2, 5, 1), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]))
    assert texts.trim().attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert texts[:1].trim().attention_mask is None
    assert texts[:1].trim().embeds.shape == (1, 3, 1)
    assert texts.pad(7).trim().embeds.shape == (2, 3, 1)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_training_steers_as_steer_does(name):
    """The processors are shared, but training appends the negative and sets the scale on its own way."""
    pipe, setting = TINY_PIPELINES[name](), Setting(name)
    _, denoiser = find_family(pipe)
    noise, texts = setting.sample(MethodOptions()).noise, setting.texts
    call = (noise, setting.diffusion.times[-1:].expand(BATCH), texts.prompts)
    negative = {"negative_prompt_embeds": texts.negatives.embeds}
    if texts.negatives.attention_mask is not None:
        negative["negative_attention_mask"] = texts.negatives.attention_mask
    with nasa.steer(pipe, scale=0.7, conditional=slice(None), **negative):
        expected = setting.distillation.predict(denoiser, *call)
    plain = setting.distillation.predict(denoiser, *call)
    actual = make_steerable(denoiser, family=setting.family)(*call, texts.negatives, 0.7)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(actual, plain, atol=10 * TOLERANCE)
