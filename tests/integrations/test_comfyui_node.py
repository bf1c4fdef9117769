"""The ComfyUI node without ComfyUI: its arithmetic against `nasa`, its rows and its range on a fake of the hooks."""

import fake_comfyui
import pytest
import torch
from hook_contract import BATCH, CONTRACT, Probe, record

from nasa.attention import steer_attention
from nasa.attention_rules import RULES

TEXT, SCALE = "blurry", 0.5
TOKENS = 4
TOLERANCES = {"nasa": 1e-12, "nag": 1e-12, "vsf": 1e-6}  # the library weighs the two texts in float32


@pytest.fixture(autouse=True)
def _fake(monkeypatch):
    fake_comfyui.install(monkeypatch)
    torch.manual_seed(0)


@pytest.fixture
def patcher():
    return fake_comfyui.ModelPatcher()


@pytest.fixture
def steer(node):
    def apply(patcher, text=TEXT, scale=SCALE, rule="nasa", start_percent=0.0, end_percent=1.0):
        nodes = node.NASANegativePrompt()
        (patched,) = nodes.apply(patcher, fake_comfyui.CLIP(), text, scale, rule, start_percent, end_percent)
        return patched

    return apply


def make_batch(parts=1):
    x = torch.randn(BATCH * parts, 9, fake_comfyui.WIDTH)
    return x, torch.randn(BATCH * parts, TOKENS, fake_comfyui.TEXT_WIDTH)


def test_the_fake_keeps_comfyui_s_contract(patcher):
    probe = Probe()
    probed = patcher.clone()
    probed.set_model_attn2_replace(probe.build(fake_comfyui.HEADS), "input", 0, 0)
    probed.run(*make_batch(2), cond_or_uncond=(1, 0))
    facts = record(patcher, probed, probe, fake_comfyui.CLIP, fake_comfyui.optimized_attention)
    assert facts == CONTRACT


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_s_output_is_that_of_nasa_s_rule(node, rule):
    """The two texts differ in their numbers of tokens; float64."""
    attn = fake_comfyui.CrossAttention().double()
    x, text = (tensor.double() for tensor in make_batch())
    negative = torch.randn(1, TOKENS + 3, fake_comfyui.TEXT_WIDTH).double()
    settings = node.Settings(rule, SCALE, float("inf"), 0.0)
    patch = node.build_patch(attn, negative, settings)
    options = {"n_heads": fake_comfyui.HEADS, "cond_or_uncond": [0], "sigmas": torch.ones(BATCH)}
    found = patch(attn.to_q(x), attn.to_k(text), attn.to_v(text), options)

    def split(y):
        return y.unflatten(-1, (fake_comfyui.HEADS, -1)).transpose(1, 2)

    negative = negative.expand(BATCH, -1, -1)
    positive = (split(attn.to_k(text)), split(attn.to_v(text)), None)
    keys = (split(attn.to_k(negative)), split(attn.to_v(negative)), None)
    expected = steer_attention(RULES[rule], split(attn.to_q(x)), positive, keys, SCALE)
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCES[rule])


def test_the_node_s_rules_are_the_library_s(node):
    assert tuple(RULES) == node.RULES
    assert RULES["nag"].combine.__kwdefaults__ == {"tau": node.NAG_TAU, "blend": node.NAG_BLEND}


def test_every_layer_is_steered_and_the_given_model_is_not(patcher, steer):
    batch = make_batch()
    plain = patcher.run(*batch)
    steered = steer(patcher)
    replaced = steered.model_options["transformer_options"]["patches_replace"]["attn2"]
    assert set(replaced) == {("input", 0, 0), ("input", 1, 0), ("middle", 0, 0), ("middle", 0, 1), ("output", 0, 0)}
    assert not torch.allclose(steered.run(*batch), plain)
    assert torch.equal(patcher.run(*batch), plain)


@pytest.mark.parametrize("rule", RULES)
def test_scale_0_is_the_plain_model(patcher, steer, rule):
    batch = make_batch()
    assert torch.equal(steer(patcher, scale=0.0, rule=rule).run(*batch), patcher.run(*batch))


@pytest.mark.parametrize("order", [(1, 0), (0, 1), (0,), (0, 0, 1)])
@pytest.mark.parametrize("rule", RULES)
def test_only_conditional_rows_are_steered(patcher, steer, order, rule):
    x, text = make_batch(len(order))
    plain, steered = (p.run(x, text, cond_or_uncond=order) for p in (patcher, steer(patcher, rule=rule)))
    for part, kind in enumerate(order):
        rows = slice(part * BATCH, (part + 1) * BATCH)
        alone = steer(patcher, rule=rule).run(x[rows], text[rows])
        if kind == 1:
            assert torch.equal(steered[rows], plain[rows])
        else:
            torch.testing.assert_close(steered[rows], alone)
            assert not torch.allclose(steered[rows], plain[rows])


def test_a_batch_without_conditional_rows_is_plain(patcher, steer):
    batch = make_batch()
    assert torch.equal(steer(patcher).run(*batch, cond_or_uncond=(1,)), patcher.run(*batch))


@pytest.mark.parametrize(
    ("start", "end", "sigma", "is_steered"),
    [
        (0.0, 1.0, fake_comfyui.SIGMA_MAX, True),
        (0.0, 1.0, 0.03, True),
        (0.0, 0.5, fake_comfyui.SIGMA_MAX, True),
        (0.0, 0.5, 0.5, False),
        (0.5, 1.0, fake_comfyui.SIGMA_MAX, False),
        (0.5, 1.0, 0.5, True),
    ],
)
def test_the_range_of_percent_is_one_of_sigmas(patcher, steer, start, end, sigma, is_steered):
    batch = make_batch()
    plain = patcher.run(*batch, sigma=sigma)
    steered = steer(patcher, start_percent=start, end_percent=end).run(*batch, sigma=sigma)
    assert torch.equal(steered, plain) != is_steered


def test_a_second_negative_is_subtracted_too(patcher, steer):
    """Eq. 9 takes two negatives in either order."""
    batch = make_batch()
    first = steer(steer(patcher), "red", 0.25).run(*batch)
    second = steer(steer(patcher, "red", 0.25)).run(*batch)
    torch.testing.assert_close(first, second)
    assert not torch.allclose(first, steer(patcher).run(*batch))


def test_a_replacement_of_the_whole_block_is_kept(patcher, steer):
    """A node that replaces (block, number) is called for Z+."""
    patcher.set_model_attn2_replace(lambda q, k, v, options: torch.zeros_like(q), "input", 0)
    layer = patcher.model.diffusion_model.input_blocks[0][1].transformer_blocks[0].attn2
    (patch,) = (
        value
        for key, value in steer(patcher).model_options["transformer_options"]["patches_replace"]["attn2"].items()
        if key == ("input", 0, 0)
    )
    x, text = make_batch()
    options = {"n_heads": fake_comfyui.HEADS, "cond_or_uncond": [0], "sigmas": torch.ones(BATCH)}
    negative = fake_comfyui.CLIP().encode_from_tokens(fake_comfyui.CLIP().tokenize(TEXT)).expand(BATCH, -1, -1)
    q = layer.to_q(x)
    found = patch(q, layer.to_k(text), layer.to_v(text), options)
    z_neg = fake_comfyui.optimized_attention(q, layer.to_k(negative), layer.to_v(negative), fake_comfyui.HEADS)
    torch.testing.assert_close(found, -SCALE * z_neg)
    with pytest.raises(ValueError, match=r"^rule: got 'vsf' for a model with another attention patch; expected 'nasa'"):
        steer(patcher, rule="vsf")


def test_a_model_without_cross_attention_is_an_error(steer):
    patcher = fake_comfyui.ModelPatcher(torch.nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"^model: got Linear; expected a UNet of Stable Diffusion 1\.x, 2\.x or XL\.$"
    ):
        steer(patcher)


def test_the_inputs_are_those_of_apply(node):
    import inspect

    inputs = node.NASANegativePrompt.INPUT_TYPES()["required"]
    assert list(inspect.signature(node.NASANegativePrompt.apply).parameters) == ["self", *inputs]
    assert isinstance(inputs["rule"][0], list), "ComfyUI takes a list as a choice, and no tuple"
