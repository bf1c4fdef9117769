"""One step of every recipe as a GPU computes it, without one: the true architectures on the meta device, under CUDA's
casts. A tensor on the wrong device, two dtypes in one product or a value that is read back fails here; the results
and the speed of kernels are not tested.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nasa import distillation
from nasa.diffusion_process import DiffusionProcess
from nasa.lora import add_lora, get_lora_parameters
from nasa.meta_autocast import MetaAutocast
from nasa.mixed_precision import autocast, cast_frozen, run_in_float32
from nasa.prompt_embeds import PromptEmbeds
from nasa.steerable_denoiser import get_output_layer, make_steerable
from pipeline.recipe import load
from pipeline.training import engines, resource_estimate

META = torch.device("meta")


@pytest.mark.parametrize("name", ["sd15", "sd21", "pixart", "gpu-smoke"])
def test_a_training_step_of_the_recipe(name):
    recipe = load(name)
    dtype = engines.compute_dtype(recipe)
    assert dtype == torch.bfloat16
    (student_model, family), (teacher_model, _) = (resource_estimate.build_meta_denoiser(recipe) for _ in range(2))
    student_model.to(META), teacher_model.to(META)
    cast_frozen(teacher_model, dtype, keep=get_output_layer(teacher_model))
    options = recipe.lora_teacher
    with META:
        add_lora(
            teacher_model,
            rank=options.rank,
            lora_alpha=options.lora_alpha,
            target_modules=engines.choose_lora_targets(recipe, family),
        )
    for parameter in get_lora_parameters(teacher_model):
        parameter.data = parameter.data.float()
    student, teachers = make_steerable(student_model.requires_grad_(True), dtype), make_steerable(teacher_model, dtype)
    diffusion = DiffusionProcess.from_alphas_cumprod(
        torch.linspace(0.999, 0.005, 1000, device=META), "epsilon", recipe.method.start_timestep
    )
    texts, randomness = _build_inputs(student_model, family, diffusion, recipe.method, dtype)
    with disable_autocast_as_deepspeed():
        loss = distillation.student_loss(student, teachers, diffusion, recipe.method, texts, randomness)
        loss.loss.backward()
        lora_loss = distillation.lora_teacher_loss(teachers, diffusion, recipe.method, texts, randomness, loss.x0)
        lora_loss.backward()
    assert {loss.loss.dtype, loss.x0.dtype, lora_loss.dtype} == {torch.float32}
    for trained in ([*student.parameters()], get_lora_parameters(teachers)):
        assert {parameter.grad.dtype for parameter in trained if parameter.grad is not None} == {torch.float32}
        assert any(parameter.grad is not None for parameter in trained)
    assert all(p.grad is None for n, p in teachers.named_parameters() if "lora_" not in n)


def disable_autocast_as_deepspeed():
    """Return the context in which DeepSpeed's engine calls a module on CUDA: autocast is off."""
    return autocast("meta", torch.float32)


def _build_inputs(model, family, diffusion, method, dtype):
    count = 2
    empty = family.distillation.make_empty_prompts(model.config, count)
    with META:
        text = PromptEmbeds(
            empty.embeds.to(META, dtype), None if empty.attention_mask is None else empty.attention_mask.to(META)
        )
    texts = distillation.TextConditions(text, text, text[:1])
    side, channels = model.config.sample_size, model.config.in_channels
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    randomness = distillation.sample_step(
        method, diffusion, (channels, side, side), torch.Generator().manual_seed(9), generators
    )
    assert randomness.noise.is_meta
    return texts, randomness


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 4)

    def forward(self, x):
        hidden = F.silu(self.norm(self.conv(x))).flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(*(self.out(hidden)[:, None],) * 3)
        return torch.cat([attended, hidden[:, None, :, :4]], dim=-1).softmax(-1)


def test_casts_on_the_meta_device_follow_the_lists_of_cuda():
    """The dtypes equal the CPU's for the rules that both share; only CUDA runs norms and softmax in float32."""
    device_dtypes = {}
    for device in ("cpu", "meta"):
        model, dtypes = Small().to(device), []
        for layer in model.children():
            layer.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))  # noqa: B023
        with autocast(device, torch.bfloat16):
            result = model(torch.zeros(2, 4, 6, 6, device=device))
        device_dtypes[device] = [*dtypes, result.dtype]
    assert device_dtypes["meta"] == [torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]
    assert [a for a, b in zip(device_dtypes["cpu"], device_dtypes["meta"], strict=True) if b == torch.bfloat16] == [
        torch.bfloat16
    ] * 2


def test_a_nested_float32_context_turns_casts_off():
    layer = nn.Linear(4, 4, device=META)
    run_in_float32(layer)
    x = torch.zeros(4, 4, device=META)
    with autocast("meta", torch.bfloat16):
        assert F.linear(x, x).dtype == torch.bfloat16
        assert layer(F.linear(x, x)).dtype == torch.float32
        with MetaAutocast(torch.float32):
            assert F.linear(x, x).dtype == torch.float32
        assert F.linear(x, x).dtype == torch.bfloat16


def test_the_output_layer_computes_in_float32():
    """An epsilon model's error is divided by alpha: 15 times as large at Stable Diffusion's T - 1."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 4), torch.randn(512, 64)
    layer.requires_grad_(False)
    exact = layer(x.bfloat16().float())
    with autocast("cpu", torch.bfloat16):
        bfloat16_error = (layer(x).float() - exact).square().mean().sqrt()
        run_in_float32(layer)
        float32_error = (layer(x.bfloat16()) - exact).square().mean().sqrt()
    assert bfloat16_error > 1e-3
    assert float32_error < 1e-6
