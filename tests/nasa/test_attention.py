import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from nasa.attention import SteeredAttnProcessor, Steering
from nasa.attention_rules import RULES, nag_rule, nasa_rule
from nasa.batch_layouts import split_batch
from nasa.testing import reference_cross_attention

FLOAT32_TOLERANCE = 2e-6
HALF_TOLERANCE = {torch.bfloat16: 4e-2, torch.float16: 4e-3}
BATCH, TOKENS, WIDTH, TEXT_WIDTH = 3, 10, 16, 12


@pytest.fixture
def layer():
    torch.manual_seed(0)
    attn = Attention(query_dim=WIDTH, cross_attention_dim=TEXT_WIDTH, heads=4, dim_head=4, bias=False)
    return attn.eval().requires_grad_(False)


def make_inputs(batch=BATCH, text_tokens=7, negative_tokens=5, negatives=None):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *sizes: torch.randn(sizes, generator=generator)  # noqa: E731
    return (
        draw(batch, TOKENS, WIDTH),
        draw(batch, text_tokens, TEXT_WIDTH),
        draw(negatives or batch, negative_tokens, TEXT_WIDTH),
    )


def run_steered(attn, hidden, text, **steering):
    attn.set_processor(SteeredAttnProcessor(AttnProcessor2_0(), Steering(**steering)))
    return attn(hidden, encoder_hidden_states=text)


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("negative_tokens", [3, 7, 11])
def test_matches_float64_reference(layer, batch, negative_tokens, method):
    hidden, text, negative = make_inputs(batch, negative_tokens=negative_tokens)
    expected = reference_cross_attention(layer, hidden, text, negative, [0.7] * batch, method=method)
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, scale=0.7, rule=RULES[method])
    torch.testing.assert_close(actual.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("method", RULES)
def test_mask_hides_negative_tokens(layer, method):
    hidden, text, negative = make_inputs()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    expected = reference_cross_attention(layer, hidden, text, negative, [0.5] * BATCH, mask, method=method)
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, mask_NT=mask, scale=0.5, rule=RULES[method])
    torch.testing.assert_close(actual.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("method", RULES)
def test_one_scale_per_image(layer, method):
    hidden, text, negative = make_inputs()
    expected = reference_cross_attention(layer, hidden, text, negative, [0.1, 0.5, 1.5], method=method)
    scale = torch.tensor([0.1, 0.5, 1.5])
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, scale=scale, rule=RULES[method])
    torch.testing.assert_close(actual.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


def test_one_negative_serves_all_images(layer):
    hidden, text, negative = make_inputs(negatives=1)
    expected = reference_cross_attention(layer, hidden, text, negative.expand(BATCH, -1, -1), [0.5] * BATCH)
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, scale=0.5)
    torch.testing.assert_close(actual.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


def test_a_negative_for_each_prompt_covers_its_consecutive_images(layer):
    hidden, text, negative = make_inputs(batch=4, negatives=2)
    repeated = negative[[0, 0, 1, 1]]
    expected = reference_cross_attention(layer, hidden, text, repeated, [0.5] * 4)
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, scale=0.5)
    torch.testing.assert_close(actual.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


def test_guidance_steers_the_conditional_half_only(layer):
    hidden, text, negative = make_inputs(batch=4, negatives=2)
    plain = reference_cross_attention(layer, hidden, text, None, [0.0] * 4)
    both = reference_cross_attention(layer, hidden, text, negative[[0, 1, 0, 1]], [0.5] * 4)
    halves = split_batch(slice(2, None), 4, hidden.device)
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, scale=0.5, split=halves)
    expected = torch.cat([plain[:2], both[2:]])
    torch.testing.assert_close(actual.double(), expected, atol=FLOAT32_TOLERANCE, rtol=0)


@pytest.mark.parametrize("steering", [{}, {"scale": 0.0}, {"scale": torch.zeros(BATCH)}])
def test_no_negative_and_scale_zero_are_bitwise_plain(layer, steering):
    hidden, text, negative = make_inputs()
    layer.set_processor(AttnProcessor2_0())
    plain = layer(hidden, encoder_hidden_states=text)
    if steering:
        steering["embeds_NTD"] = negative
    assert torch.equal(run_steered(layer, hidden, text, **steering), plain)


@pytest.mark.parametrize("dtype", HALF_TOLERANCE)
def test_half_precision(layer, dtype):
    hidden, text, negative = (tensor.to(dtype) for tensor in make_inputs())
    layer.to(dtype)
    expected = reference_cross_attention(layer, hidden, text, negative, [0.7] * BATCH)
    actual = run_steered(layer, hidden, text, embeds_NTD=negative, scale=0.7)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, atol=HALF_TOLERANCE[dtype], rtol=0)


def test_nag_bounds_the_growth_of_each_token():
    """Tokens whose L1 norm grows beyond tau are scaled back to it; the others are unchanged."""
    positive = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]])
    negative = torch.tensor([[[-9.0, -9.0], [1.0, -0.9]]])
    guided = nag_rule(positive, negative, 1.0, tau=2.0, blend=1.0)
    torch.testing.assert_close(guided, torch.tensor([[[2.0, 2.0], [1.0, -1.1]]]))


@pytest.mark.parametrize("phi", [0.5, 2.0])
def test_unbounded_nag_is_scaled_nasa(phi):
    """Z+ + phi (Z+ - Z-) = (1 + phi) (Z+ - phi / (1 + phi) Z-)."""
    positive, negative = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    unbounded = nag_rule(positive, negative, phi, tau=float("inf"), blend=1.0)
    torch.testing.assert_close(unbounded, (1 + phi) * nasa_rule(positive, negative, phi / (1 + phi)))


def test_a_wrong_number_of_negatives_is_rejected(layer):
    hidden, text, negative = make_inputs(negatives=2)
    with pytest.raises(ValueError, match="negative_prompt: got 2 for 3 images"):
        run_steered(layer, hidden, text, embeds_NTD=negative, scale=0.5)
