"""Extraction of a LoRA against a full SVD in float64, and through peft's own layers."""

import math

import pytest
import torch
from torch import nn

from nasa.lora import load_lora
from nasa.lora_extraction import extract_lora, factorize, list_lora_layers, truncate_svd
from nasa.testing import TINY_PIPELINES, tiny_stable_diffusion

EXACT = 1e-12  # float64, relative to the largest singular value
STORED = 1e-6  # float32 matrices, relative to the difference
OUTPUT_TOLERANCE = 1e-4  # float32 outputs of a tiny denoiser
SHAPES = [(7, 5), (5, 7), (6, 6), (4, 3, 3, 3), (9, 2, 1, 1), (3, 40)]


def sample(shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [1, 2, 3, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_of_a_truncation_is_the_tail_of_the_singular_values(shape, rank):
    matrix = sample(shape).flatten(1)
    lora_B, lora_A = truncate_svd(matrix, rank)
    values = torch.linalg.svdvals(matrix)
    assert lora_B.shape[1] == lora_A.shape[0] == min(rank, *matrix.shape)
    error = torch.linalg.matrix_norm(matrix - lora_B @ lora_A)
    torch.testing.assert_close(error, values[rank:].square().sum().sqrt(), atol=EXACT * values[0].item(), rtol=EXACT)
    spectral = torch.linalg.matrix_norm(matrix - lora_B @ lora_A, 2)  # Eckart-Young in the spectral norm too
    tail = values[rank] if rank < len(values) else torch.zeros_like(spectral)
    torch.testing.assert_close(spectral, tail, atol=EXACT * values[0].item(), rtol=EXACT)


def test_a_matrix_of_low_rank_is_held_exactly():
    matrix = sample((8, 3)) @ sample((3, 20), 1)
    lora_B, lora_A = truncate_svd(matrix, 3)
    torch.testing.assert_close(lora_B @ lora_A, matrix, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_full_rank_leaves_rounding_alone(shape):
    lora_A, lora_B = factorize(sample(shape), 10_000)
    product = (lora_B.double().flatten(1) @ lora_A.double().flatten(1)).reshape(shape)
    torch.testing.assert_close(product, sample(shape), atol=STORED, rtol=STORED)
    assert lora_A.dtype == lora_B.dtype == torch.float32
    assert lora_A.is_contiguous()
    assert lora_B.is_contiguous()
    torch.testing.assert_close(lora_A.norm(), lora_B.norm())


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 10)
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.norm = nn.LayerNorm(10)
        self.table = nn.Embedding(5, 6)


@pytest.fixture
def pair():
    """Return a model's layers, and its weights beside changed ones, in float64."""
    torch.manual_seed(0)
    model = Small().double()
    teacher = model.state_dict()
    student = {name: value + sample(value.shape, 7) for name, value in teacher.items()}
    return student, teacher, list_lora_layers(model)


def test_linear_layers_and_ungrouped_convolutions_get_an_adapter(pair):
    student, teacher, layers = pair
    assert layers == ["linear", "conv"]
    extracted = extract_lora(student, teacher, 4, layers)
    assert {name: tuple(value.shape) for name, value in extracted.weights.items()} == {
        "linear.lora_A.weight": (4, 12),
        "linear.lora_B.weight": (10, 4),
        "conv.lora_A.weight": (4, 3, 3, 3),
        "conv.lora_B.weight": (8, 4, 1, 1),
    }


def test_the_reported_errors_are_those_of_a_full_svd(pair):
    student, teacher, layers = pair
    extracted = extract_lora(student, teacher, 4, layers)
    tails, norms = {}, {}
    for name in layers:
        values = torch.linalg.svdvals((student[f"{name}.weight"] - teacher[f"{name}.weight"]).flatten(1))
        tails[name], norms[name] = values[4:].square().sum().item(), values.square().sum().item()
        assert extracted.layers[name].relative_error == pytest.approx(math.sqrt(tails[name] / norms[name]), rel=1e-5)
    omitted = sum(
        (student[name] - teacher[name]).square().sum().item()
        for name in student
        if name not in ("linear.weight", "conv.weight")
    )
    layers_norm, tail = sum(norms.values()), sum(tails.values())
    assert extracted.relative_error == pytest.approx(math.sqrt(tail / layers_norm), rel=1e-5)
    assert extracted.omitted_share == pytest.approx(math.sqrt(omitted / (omitted + layers_norm)), rel=1e-5)
    total = math.sqrt((tail + omitted) / (layers_norm + omitted))
    assert extracted.total_relative_error == pytest.approx(total, rel=1e-5)
    assert extracted.worst_layer == max(layers, key=lambda name: tails[name] / norms[name])


def test_a_greater_rank_leaves_less_and_full_rank_nothing(pair):
    student, teacher, layers = pair
    errors = [extract_lora(student, teacher, rank, layers).relative_error for rank in (1, 3, 6, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < STORED < errors[-2]


def test_layers_that_do_not_differ_are_left_out(pair):
    student, teacher, layers = pair
    extracted = extract_lora(student | {"conv.weight": teacher["conv.weight"]}, teacher, 2, layers)
    assert list(extracted.layers) == ["linear"]
    nothing = extract_lora(teacher, teacher, 2, layers)
    assert (dict(nothing.weights), nothing.worst_layer, nothing.total_relative_error) == ({}, "", 0.0)


def test_impossible_arguments_are_rejected(pair):
    student, teacher, layers = pair
    with pytest.raises(ValueError, match=r"rank: got 0; expected 1 or more\."):
        extract_lora(student, teacher, 0, layers)
    with pytest.raises(ValueError, match=r"conv\.bias: got a difference of norm nan; expected a finite one\."):
        extract_lora(student | {"conv.bias": torch.full((8,), float("nan"))}, teacher, 2, layers)


@torch.no_grad()
@pytest.mark.parametrize("name", ["stable-diffusion", "pixart"])
def test_the_teacher_with_a_full_rank_lora_is_the_student(name):
    """Layers of other ranks share one file: the first convolution of the UNet has 4 x 3 x 3 inputs."""
    pipe, student = TINY_PIPELINES[name](), TINY_PIPELINES[name]()
    part = "unet" if name == "stable-diffusion" else "transformer"
    denoiser, trained = getattr(pipe, part), getattr(student, part)
    before = {key: value.clone() for key, value in denoiser.state_dict().items()}
    layers = list_lora_layers(trained)
    for layer in layers:
        weight = trained.get_submodule(layer).weight
        weight += 0.1 * sample(weight.shape, len(layer)).float()
    extracted = extract_lora(trained.state_dict(), before, 10_000, layers)
    assert (len({fit.rank for fit in extracted.layers.values()}) > 1) == (part == "unet")
    assert extracted.omitted_norm == 0
    load_lora(pipe, {f"{part}.{key}": value for key, value in extracted.weights.items()})
    inputs = torch.randn(2, 4, 4, 4), torch.tensor([7, 900]), torch.randn(2, 5, _text_width(trained))
    plain = run(TINY_PIPELINES[name](), part, *inputs)
    expected = run(student, part, *inputs)
    torch.testing.assert_close(run(pipe, part, *inputs), expected, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)
    assert (plain - expected).abs().max() > 100 * OUTPUT_TOLERANCE


def _text_width(denoiser):
    return denoiser.config.get("caption_channels") or denoiser.config.cross_attention_dim


def run(pipe, part, latents, timesteps, text):
    options = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if part == "transformer" else {}
    return getattr(pipe, part)(latents, timestep=timesteps, encoder_hidden_states=text, return_dict=False, **options)[0]


def test_every_layer_of_stable_diffusion_that_has_a_matrix_gets_an_adapter():
    unet = tiny_stable_diffusion().unet
    matrices = {name for name, value in unet.state_dict().items() if value.ndim in (2, 4)}
    assert {f"{name}.weight" for name in list_lora_layers(unet)} == matrices
