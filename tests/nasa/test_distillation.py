"""A training step in float64, compared with the same arithmetic on plain diffusers models."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from nasa.diffusion_process import DiffusionProcess
from nasa.distillation import TextConditions, lora_teacher_loss, sample_step, student_loss
from nasa.ema import update_ema
from nasa.lora import add_lora, get_lora_parameters
from nasa.method_options import MethodOptions
from nasa.prompt_embeds import PromptEmbeds
from nasa.steerable_denoiser import make_steerable
from nasa.student import generate, generate_with_cfg
from nasa.teachers import use_frozen_teacher
from nasa.testing import reference_cross_attention, tiny_stable_diffusion

REFERENCE_TOLERANCE = 1e-9  # float64, relative: x0 of an eps model is about 15 times its output
TRACE_TOLERANCE = 1e-5
BATCH, TOKENS, WIDTH = 3, 6, 16
LORA = {"rank": 2, "lora_alpha": 4, "target_modules": ("to_q", "to_v")}
NASA_T = MethodOptions()
SBV2 = MethodOptions(negative_on_student=False, negative_on_teacher=False)
ALL_THREE = MethodOptions(negative_on_lora_teacher=True)
SHARED = MethodOptions(lora_shares_pass=True)


class Distillation:
    """A student, its teachers with nonzero LoRA weights, and the original models."""

    def __init__(self, prediction_type):
        pipe = tiny_stable_diffusion(prediction_type=prediction_type)
        self.alphas_cumprod = pipe.scheduler.alphas_cumprod.double()
        self.diffusion = DiffusionProcess.from_alphas_cumprod(self.alphas_cumprod, prediction_type)
        self.plain_teacher = pipe.unet.double().requires_grad_(False)
        self.plain_student = deepcopy(self.plain_teacher).requires_grad_(True)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.plain_student.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        self.student = make_steerable(deepcopy(self.plain_student))
        torch.manual_seed(2)
        teacher = deepcopy(self.plain_teacher)
        add_lora(teacher, **LORA)
        self.teachers = make_steerable(teacher).double()
        states = (torch.randn(n, TOKENS, WIDTH, generator=generator).double() for n in (BATCH, BATCH, 1))
        self.texts = TextConditions(*map(PromptEmbeds, states))

    def fill_lora(self):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in get_lora_parameters(self.teachers):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return self

    def sample_randomness(self, method=NASA_T, step=0, rank=0):
        seeds = [1000 * step + index for index in range(rank * BATCH, (rank + 1) * BATCH)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shared = torch.Generator().manual_seed(step)
        start = method.get_cold_start(step)
        drawn = sample_step(method, self.diffusion, (4, 4, 4), shared, generators, cold_start=start)
        doubled = {name: getattr(drawn, name).double() for name in ("noise", "vsd_eps", "lora_eps")}
        return replace(drawn, **doubled)

    def student_loss(self, method=NASA_T, randomness=None):
        return student_loss(
            self.student,
            self.teachers,
            self.diffusion,
            method,
            self.texts,
            randomness or self.sample_randomness(),
        )


@pytest.fixture(params=["epsilon", "v_prediction", "sample"])
def distillation(request):
    return Distillation(request.param).fill_lora()


@pytest.fixture
def epsilon_distillation():
    return Distillation("epsilon").fill_lora()


class ReferenceProcessor:
    def __init__(self, negative_BTD, scale):
        self.negative_BTD, self.scale = negative_BTD, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        scales = [self.scale] * hidden_states.shape[0]
        return reference_cross_attention(attn, hidden_states, encoder_hidden_states, self.negative_BTD, scales)


def run_unet(unet, x_t, timestep_B, embeds, negative=None, scale=0.0):
    before = dict(unet.attn_processors)
    if negative is not None:
        steered = ReferenceProcessor(negative, scale)
        unet.set_attn_processor({n: steered if "attn2" in n else p for n, p in before.items()})
    output = unet(x_t, timestep_B, embeds.expand(len(x_t), -1, -1)).sample
    unet.set_attn_processor(before)
    return output


def merge_lora_teacher(distillation, share=1.0):
    """Return a plain model in which W + share (lora_alpha / rank) B A replaces each adapted weight."""
    merged, adapted = deepcopy(distillation.plain_teacher), dict(distillation.teachers.model.named_modules())
    for name, layer in merged.named_modules():
        if name.endswith(LORA["target_modules"]):
            down, up = adapted[name].lora_A["default"].weight, adapted[name].lora_B["default"].weight
            layer.weight.data += share * LORA["lora_alpha"] / LORA["rank"] * (up @ down).detach()
    return merged


def compute_reference_loss(distillation, method, randomness):
    """Return the loss of eqs. 4 to 6 with sigma^2 weights, computed per sample."""
    texts, abar, kind = (
        distillation.texts,
        distillation.alphas_cumprod,
        distillation.diffusion.prediction_type,
    )
    start = distillation.diffusion.start_timestep % 1000
    alpha, sigma = abar[start] ** 0.5, (1 - abar[start]) ** 0.5
    negative = texts.negatives.embeds if method.negative_on_student else None
    output = run_unet(
        distillation.plain_student,
        randomness.noise,
        torch.full((BATCH,), start),
        texts.prompts.embeds,
        negative,
        randomness.scale,
    )
    x0 = {
        "epsilon": (randomness.noise - sigma * output) / alpha,
        "v_prediction": alpha * randomness.noise - sigma * output,
        "sample": output,
    }[kind]
    t, k = randomness.vsd_timestep_B, randomness.guidance_scale
    alpha, sigma = (a.reshape(BATCH, 1, 1, 1) for a in (abar[t] ** 0.5, (1 - abar[t]) ** 0.5))
    x_t = (alpha * x0 + sigma * randomness.vsd_eps).detach()

    def predict_eps(unet, with_negative, guidance):
        negative_prediction = run_unet(unet, x_t, t, (texts.negatives if with_negative else texts.null).embeds)
        positive_prediction = run_unet(unet, x_t, t, texts.prompts.embeds)
        if kind == "v_prediction":
            negative_prediction, positive_prediction = (
                alpha * v + sigma * x_t for v in (negative_prediction, positive_prediction)
            )
        if kind == "sample":
            negative_prediction, positive_prediction = (
                (x_t - alpha * x) / sigma for x in (negative_prediction, positive_prediction)
            )
        return positive_prediction if guidance is None else (1 - k) * negative_prediction + k * positive_prediction

    psi = predict_eps(distillation.plain_teacher, method.negative_on_teacher, k)
    pi = predict_eps(
        merge_lora_teacher(distillation), method.negative_on_lora_teacher, k if method.lora_guidance else None
    )
    gradient = sigma**2 * (psi - pi)
    if method.vsd_weighting == "dmd":
        teacher_x0, lora_x0 = ((x_t - sigma * prediction) / alpha for prediction in (psi, pi))
        gradient = (lora_x0 - teacher_x0) / (x0 - teacher_x0).abs().mean(dim=(1, 2, 3), keepdim=True).detach()
    return 0.5 * (gradient**2).mean(), (x0 * gradient.detach()).sum() / x0.numel()


METHODS = {
    "NASA-T": NASA_T,
    "SBv2*": SBV2,
    "all three": ALL_THREE,
    "teacher": MethodOptions(negative_on_student=False),
    "DMD weights": MethodOptions(vsd_weighting="dmd"),
    "LoRA teacher without guidance": MethodOptions(lora_guidance=False),
    "early start": MethodOptions(start_timestep=400),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_student_s_loss_and_gradient_match_the_reference(distillation, method):
    randomness = distillation.sample_randomness(method)
    distillation.diffusion = replace(distillation.diffusion, start_timestep=method.start_timestep)
    loss, surrogate = compute_reference_loss(distillation, method, randomness)
    actual = distillation.student_loss(method, randomness)
    torch.testing.assert_close(actual.loss, loss, rtol=REFERENCE_TOLERANCE, atol=0)
    torch.testing.assert_close(actual.gradient_rms, (2 * loss).sqrt(), rtol=REFERENCE_TOLERANCE, atol=0)
    actual.loss.backward()
    surrogate.backward()
    for actual_parameter, expected_parameter in zip(
        distillation.student.parameters(), distillation.plain_student.parameters(), strict=True
    ):
        torch.testing.assert_close(actual_parameter.grad, expected_parameter.grad, rtol=1e-7, atol=REFERENCE_TOLERANCE)


def test_the_student_s_loss_leaves_the_teachers_without_gradient(distillation):
    outcome = distillation.student_loss()
    outcome.loss.backward()
    assert any(parameter.grad.any() for parameter in distillation.student.parameters())
    assert all(parameter.grad is None for parameter in distillation.teachers.parameters())
    assert outcome.attached_x0.requires_grad
    assert not outcome.x0.requires_grad


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_before_the_lora_teacher_learns_equal_conditions_give_no_gradient(prediction_type):
    distillation = Distillation(prediction_type)
    assert not distillation.student_loss(SBV2).loss.item()
    assert distillation.fill_lora().student_loss(SBV2).loss.item() > 0


def test_each_row_of_table_5_changes_one_prediction(epsilon_distillation):
    randomness = epsilon_distillation.sample_randomness()
    none, student, teacher, lora = (
        epsilon_distillation.student_loss(MethodOptions(*switches), randomness)
        for switches in [(False,) * 3, (True, False, False), (False, True, False), (False, False, True)]
    )
    assert not torch.equal(student.x0, none.x0)
    assert torch.equal(teacher.x0, none.x0)
    assert torch.equal(lora.x0, none.x0)
    assert len({outcome.loss.item() for outcome in (none, student, teacher, lora)}) == 4


@pytest.mark.parametrize("filled", [False, True])
def test_the_frozen_teacher_is_bitwise_equal_to_the_original_model(filled):
    distillation = Distillation("epsilon")
    if filled:
        distillation.fill_lora()
    x_t, timestep_B, embeds = (
        distillation.sample_randomness().noise,
        torch.tensor([5, 500, 999]),
        distillation.texts.prompts,
    )
    flags = {name: parameter.requires_grad for name, parameter in distillation.teachers.named_parameters()}
    expected = distillation.plain_teacher(x_t, timestep_B, embeds.embeds).sample
    with use_frozen_teacher(distillation.teachers):
        frozen = distillation.teachers(x_t, timestep_B, embeds)
    assert torch.equal(frozen, expected)
    assert not frozen.requires_grad
    assert {name: parameter.requires_grad for name, parameter in distillation.teachers.named_parameters()} == flags
    after = distillation.teachers(x_t, timestep_B, embeds)
    assert torch.allclose(after, expected) is not filled
    assert after.requires_grad


def test_the_lora_teacher_returns_after_an_exception(epsilon_distillation):
    x_t, timestep_B, embeds = (
        epsilon_distillation.sample_randomness().noise,
        torch.tensor([5, 500, 999]),
        epsilon_distillation.texts.prompts,
    )
    expected = epsilon_distillation.teachers(x_t, timestep_B, embeds)
    with pytest.raises(KeyError, match="on purpose"), use_frozen_teacher(epsilon_distillation.teachers):
        raise KeyError("on purpose")
    assert torch.equal(epsilon_distillation.teachers(x_t, timestep_B, embeds), expected)


def test_in_the_cold_start_the_frozen_teacher_has_a_share_of_the_adapters(epsilon_distillation):
    x_t, timestep_B, embeds = (
        epsilon_distillation.sample_randomness().noise,
        torch.tensor([5, 500, 999]),
        epsilon_distillation.texts.prompts,
    )
    teachers = epsilon_distillation.teachers
    expected = run_unet(merge_lora_teacher(epsilon_distillation, share=0.25), x_t, timestep_B, embeds.embeds)
    before = teachers(x_t, timestep_B, embeds)
    with use_frozen_teacher(teachers, 0.25):
        output = teachers(x_t, timestep_B, embeds)
    torch.testing.assert_close(output, expected, atol=REFERENCE_TOLERANCE, rtol=REFERENCE_TOLERANCE)
    assert not output.requires_grad
    assert torch.equal(teachers(x_t, timestep_B, embeds), before)


def test_at_the_first_step_of_the_cold_start_both_teachers_are_equal(epsilon_distillation):
    method = replace(SBV2, guidance_range=(2.0, 2.0), cold_start_steps=10)
    first, half, after = (epsilon_distillation.sample_randomness(method, step) for step in (0, 5, 10))
    assert (first.cold_start, half.cold_start, after.cold_start) == (1.0, 0.5, 0.0)
    gradients = [epsilon_distillation.student_loss(method, r).gradient_rms for r in (first, half, after)]
    assert gradients[0] < 1e-9 < gradients[1]
    warm = epsilon_distillation.student_loss(replace(method, cold_start_steps=0), after)
    assert gradients[2] == warm.gradient_rms


def test_in_the_cold_start_the_timesteps_widen_from_the_noisiest_to_all(epsilon_distillation):
    method = MethodOptions(cold_start_steps=10)

    def sample_timesteps(step):
        generators = [torch.Generator().manual_seed(index) for index in range(400)]
        drawn = sample_step(
            method, epsilon_distillation.diffusion, (1, 1, 1), torch.Generator(), generators,
            cold_start=method.get_cold_start(step),
        )  # fmt: skip
        return drawn.vsd_timestep_B

    assert sample_timesteps(0).unique().tolist() == [979]
    assert 499 <= sample_timesteps(5).min() < 520
    assert 20 <= sample_timesteps(10).min() < 30
    assert all(sample_timesteps(step).max() > 970 for step in (0, 5, 10))


def test_guidance_anneals_linearly_to_its_final_range_and_stays_there(epsilon_distillation):
    fixed, annealed = (MethodOptions(guidance_range=(2.0, 4.0), final_guidance_range=end) for end in ((), (1.0, 1.0)))

    def sample_guidance(method, progress):
        shared, own = torch.Generator().manual_seed(7), [torch.Generator().manual_seed(0)]
        drawn = sample_step(method, epsilon_distillation.diffusion, (1, 1, 1), shared, own, progress=progress)
        return drawn.guidance_scale

    constant = sample_guidance(fixed, 0.0)
    assert sample_guidance(fixed, 0.5) == constant
    assert [sample_guidance(annealed, progress) for progress in (0.0, 0.5, 1.0, 1.5)] == pytest.approx(
        [constant, (constant + 1) / 2, 1, 1]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_guidance_range": (2.0, 1.0)}, r"final_guidance_range: got \[2.0, 1.0\]; expected two numbers"),
        ({"final_guidance_range": (2.0,)}, r"final_guidance_range: got \[2.0\]; expected two numbers"),
        ({"cold_start_steps": -1}, "cold_start_steps: got -1; expected 0 or more"),
    ],
)
def test_impossible_schedules_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        MethodOptions(**changes)


@pytest.mark.parametrize("null_text", [[False] * 3, [True] * 3, [False, True, False]], ids=["none", "all", "one"])
def test_the_lora_teacher_s_loss_matches_the_reference(distillation, null_text):
    randomness, x0 = (
        replace(distillation.sample_randomness(), null_text_B=torch.tensor(null_text)),
        distillation.sample_randomness(step=5).noise,
    )
    texts, abar, t = distillation.texts, distillation.alphas_cumprod, randomness.lora_timestep_B
    alpha, sigma = (a.reshape(BATCH, 1, 1, 1) for a in (abar[t] ** 0.5, (1 - abar[t]) ** 0.5))
    rows = [
        texts.null.embeds[0] if null else prompt for null, prompt in zip(null_text, texts.prompts.embeds, strict=True)
    ]
    embeds = torch.stack(rows)
    output = run_unet(merge_lora_teacher(distillation), alpha * x0 + sigma * randomness.lora_eps, t, embeds)
    target = {
        "epsilon": randomness.lora_eps,
        "v_prediction": alpha * randomness.lora_eps - sigma * x0,
        "sample": x0,
    }[distillation.diffusion.prediction_type]
    expected = (alpha**2 * (output - target) ** 2).mean()
    actual = lora_teacher_loss(distillation.teachers, distillation.diffusion, NASA_T, texts, randomness, x0)
    torch.testing.assert_close(actual, expected, rtol=REFERENCE_TOLERANCE, atol=0)


@pytest.mark.parametrize("null_text", [[False] * 3, [True] * 3, [False, True, False]], ids=["none", "all", "one"])
def test_a_shared_pass_computes_both_losses_on_the_same_noised_images(distillation, null_text):
    randomness = replace(distillation.sample_randomness(), null_text_B=torch.tensor(null_text))
    separate, shared = distillation.student_loss(NASA_T, randomness), distillation.student_loss(SHARED, randomness)
    torch.testing.assert_close(shared.loss, separate.loss, rtol=REFERENCE_TOLERANCE, atol=0)
    shared_randomness = replace(randomness, lora_timestep_B=randomness.vsd_timestep_B, lora_eps=randomness.vsd_eps)
    expected = lora_teacher_loss(
        distillation.teachers, distillation.diffusion, NASA_T, distillation.texts, shared_randomness, separate.x0
    )
    torch.testing.assert_close(shared.lora_loss, expected, rtol=REFERENCE_TOLERANCE, atol=0)
    assert separate.lora_loss is None
    shared.loss.backward()
    assert all(parameter.grad is None for parameter in distillation.teachers.parameters())
    shared.lora_loss.backward()
    gradients = [parameter.grad.clone() for parameter in get_lora_parameters(distillation.teachers)]
    for parameter in get_lora_parameters(distillation.teachers):
        parameter.grad = None
    expected.backward()
    for actual, parameter in zip(gradients, get_lora_parameters(distillation.teachers), strict=True):
        torch.testing.assert_close(actual, parameter.grad, rtol=1e-7, atol=REFERENCE_TOLERANCE)


@pytest.mark.parametrize("changes", [{"negative_on_lora_teacher": True}, {"lora_guidance": False}, {"lora_updates": 2}])
def test_a_pass_can_be_shared_only_with_the_null_text(changes):
    with pytest.raises(ValueError, match="lora_shares_pass: got True; expected False unless lora_guidance"):
        MethodOptions(lora_shares_pass=True, **changes)


def test_the_lora_teacher_s_loss_reaches_only_the_adapters(epsilon_distillation):
    randomness = epsilon_distillation.sample_randomness()
    x0 = epsilon_distillation.student_loss(randomness=randomness).x0
    lora_teacher_loss(
        epsilon_distillation.teachers,
        epsilon_distillation.diffusion,
        NASA_T,
        epsilon_distillation.texts,
        randomness,
        x0,
    ).backward()
    with_gradient = {
        name for name, p in epsilon_distillation.teachers.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert with_gradient == {name for name, _ in epsilon_distillation.teachers.named_parameters() if "lora_" in name}
    assert all(parameter.grad is None for parameter in epsilon_distillation.student.parameters())


def test_ranks_share_scale_guidance_and_null_text_but_no_noise(epsilon_distillation):
    first, second = (
        epsilon_distillation.sample_randomness(step=4, rank=0),
        epsilon_distillation.sample_randomness(step=4, rank=1),
    )
    shared = ("scale", "guidance_scale")
    assert [getattr(first, name) for name in shared] == [getattr(second, name) for name in shared]
    assert torch.equal(first.null_text_B, second.null_text_B)
    for name in ("noise", "vsd_eps", "lora_eps", "lora_timestep_B"):
        assert not torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.noise, first.vsd_eps)
    assert first.scale != epsilon_distillation.sample_randomness(step=5).scale


def test_sampled_values_cover_their_ranges(epsilon_distillation):
    shared, generators = torch.Generator().manual_seed(0), [torch.Generator().manual_seed(1)] * 200
    method = MethodOptions(guidance_range=(0.5, 3.0), scale_range=(0.2, 0.8), null_text_probability=0.3)
    samples = [sample_step(method, epsilon_distillation.diffusion, (1, 1, 1), shared, generators) for _ in range(200)]
    vsd, lora = (torch.cat([getattr(d, name) for d in samples]) for name in ("vsd_timestep_B", "lora_timestep_B"))
    assert (vsd.min(), vsd.max(), lora.min(), lora.max()) == (20, 979, 0, 999)
    assert 0.2 <= min(d.scale for d in samples) < 0.23 < 0.77 < max(d.scale for d in samples) <= 0.8
    assert 0.5 <= min(d.guidance_scale for d in samples) < 0.6 < 2.9 < max(d.guidance_scale for d in samples) <= 3.0
    assert all(d.null_text_B.all() or not d.null_text_B.any() for d in samples)  # the whole batch
    assert 0.2 < torch.stack([d.null_text_B for d in samples]).float().mean() < 0.4
    per_image = sample_step(
        replace(method, null_text_per="image"), epsilon_distillation.diffusion, (1, 1, 1), shared, generators
    )
    assert 0.2 < per_image.null_text_B.float().mean() < 0.4


def test_the_randomness_of_an_image_depends_only_on_its_global_index(epsilon_distillation):
    """The position of an image within its process does not matter."""
    generators = lambda indices: [torch.Generator().manual_seed(index) for index in indices]  # noqa: E731
    drawn = [
        sample_step(
            NASA_T, epsilon_distillation.diffusion, (4, 4, 4), torch.Generator().manual_seed(0), generators(indices)
        )
        for indices in (range(4), range(2, 4))
    ]
    halves = drawn[0].select_images(slice(2, 4)), drawn[1]
    for name in ("noise", "vsd_timestep_B", "vsd_eps", "lora_timestep_B", "lora_eps", "null_text_B"):
        assert torch.equal(*(getattr(half, name) for half in halves)), name


def test_guidance_on_the_student_mixes_two_plain_images(distillation):
    noise, texts, student = distillation.sample_randomness().noise, distillation.texts, distillation.student
    positive_x0 = generate(student, distillation.diffusion, noise, texts.prompts)
    negative_x0 = generate(student, distillation.diffusion, noise, texts.negatives)
    mixed = generate_with_cfg(student, distillation.diffusion, noise, texts.prompts, texts.negatives, 2.0)
    torch.testing.assert_close(mixed, 2 * positive_x0 - negative_x0)


def test_ema_matches_names_and_forgets_its_start():
    ema = {"a": torch.tensor([1.0]), "b": torch.tensor([10.0])}
    weights = {"b": torch.tensor([10.0]), "a": torch.zeros(1)}  # a checkpoint may have another order
    update_ema(ema, weights, decay=0.9, step=0)  # min(0.9, 1 / 10) of the old
    torch.testing.assert_close(ema, {"a": torch.tensor([0.1]), "b": torch.tensor([10.0])})
    update_ema(ema, weights, decay=0.9, step=10_000)
    torch.testing.assert_close(ema["a"], torch.tensor([0.09]))


# Losses of the student and of the LoRA teacher over ten steps; a change that does not alter the method must keep them.
TRACE = {
    "epsilon": [
        7.3315253e-05,
        0.1770466,
        0.0031271261,
        0.45965656,
        0.00015296557,
        0.20166785,
        0.0017394734,
        0.33450183,
        0.0027345833,
        0.53476782,
        0.00031506399,
        0.16898132,
        0.00091891941,
        0.34655144,
        0.0023159095,
        0.61653343,
        0.0026993027,
        0.010357492,
        0.00018327509,
        0.12801092,
    ],
    "v_prediction": [
        0.0031902584,
        0.05460323,
        0.00032284293,
        0.35667754,
        0.0011441221,
        0.069968638,
        0.00073840105,
        0.15285275,
        0.0023216747,
        0.40534637,
        0.0012737411,
        0.063542099,
        0.002168368,
        0.32751988,
        0.0010461602,
        0.42970198,
        0.0054941102,
        0.0030784852,
        0.0026514054,
        0.043451164,
    ],
}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_losses_equal_a_recorded_trace(prediction_type):
    distillation = Distillation(prediction_type).fill_lora()
    student = torch.optim.AdamW(distillation.student.parameters(), lr=1e-3, weight_decay=0)
    lora = torch.optim.AdamW(get_lora_parameters(distillation.teachers), lr=1e-2, weight_decay=0)
    losses = []
    for step in range(10):
        randomness = distillation.sample_randomness(step=step)
        outcome = distillation.student_loss(randomness=randomness)
        student.zero_grad()
        outcome.loss.backward()
        student.step()
        lora_loss = lora_teacher_loss(
            distillation.teachers, distillation.diffusion, NASA_T, distillation.texts, randomness, outcome.x0
        )
        lora.zero_grad()
        lora_loss.backward()
        lora.step()
        losses += [outcome.loss.item(), lora_loss.item()]
    assert losses == pytest.approx(TRACE[prediction_type], rel=TRACE_TOLERANCE)


def test_further_updates_of_the_lora_teacher_see_other_noise_and_change_no_other_number():
    distillation = Distillation("v_prediction")
    once, thrice = (distillation.sample_randomness(MethodOptions(lora_updates=count)) for count in (1, 3))
    assert torch.equal(once.vsd_eps, thrice.vsd_eps)
    assert torch.equal(once.lora_eps, thrice.lora_eps)
    assert len(list(once.iter_lora_updates())) == 1
    updates = list(thrice.iter_lora_updates())
    assert len(updates) == 3
    assert torch.equal(updates[0].lora_eps, once.lora_eps)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(updates[first].lora_eps, updates[second].lora_eps)
        assert torch.equal(updates[first].noise, updates[second].noise)
