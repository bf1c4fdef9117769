"""The trainable denoisers, compared with `steer` on their pipelines."""

from dataclasses import replace

import pytest
import torch

import nasa
from nasa.families import find_family
from nasa.families.flux import FLUX
from nasa.prompt_embeds import PromptEmbeds, cat, where
from nasa.steerable_denoiser import make_steerable
from nasa.testing.tiny_pipelines import TINY_PIPELINES

TOLERANCE = 1e-6
SCALE = 0.6


def make_denoiser(name):
    pipe = TINY_PIPELINES[name]()
    family, model = find_family(pipe)
    length = None if name == "stable-diffusion" else 16
    text = {text: family.encode(pipe, [text], length) for text in ("a photo", "dog")}
    return pipe, model, text["a photo"], text["dog"]


def make_inputs(seed=0):
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed)), torch.tensor([999, 20])


@torch.no_grad()
@pytest.mark.parametrize("family", ["stable-diffusion", "pixart", "pixart-sigma"])
def test_a_negative_per_call_equals_steer(family):
    _, model, prompt, negative = make_denoiser(family)
    latents, timestep = make_inputs()
    denoiser = make_steerable(model)
    plain = denoiser(latents, timestep, prompt.expand(2))
    steered = denoiser(latents, timestep, prompt.expand(2), negative, SCALE)
    assert torch.equal(denoiser(latents, timestep, prompt.expand(2)), plain)
    assert steered.shape == plain.shape == latents.shape
    fresh, _, *_ = make_denoiser(family)
    with nasa.steer(
        fresh, negative_prompt_embeds=negative.embeds, negative_attention_mask=negative.attention_mask, scale=SCALE
    ):
        _, original = find_family(fresh)
        expected = denoiser.family.distillation.predict(original, latents, timestep, prompt.expand(2))
    torch.testing.assert_close(steered, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(steered, plain, atol=100 * TOLERANCE)


@torch.no_grad()
def test_the_padding_of_pixart_s_texts_has_no_effect():
    _, model, prompt, negative = make_denoiser("pixart")
    assert not prompt.attention_mask.all()
    denoiser = make_steerable(model)
    latents, timestep = make_inputs()

    def run(prompt, negative):
        return denoiser(latents, timestep, prompt.expand(2), negative, SCALE)

    def replace_padding(text):
        padding = ~text.attention_mask.bool()[..., None]
        return PromptEmbeds(torch.where(padding, torch.randn_like(text.embeds), text.embeds), text.attention_mask)

    expected = run(prompt, negative)
    torch.testing.assert_close(
        run(replace_padding(prompt), replace_padding(negative)), expected, atol=TOLERANCE, rtol=TOLERANCE
    )
    assert not torch.allclose(run(PromptEmbeds(prompt.embeds), negative), expected, atol=100 * TOLERANCE)


def test_other_families_are_rejected():
    with pytest.raises(ValueError, match="denoiser: got FluxTransformer2DModel; expected a pipeline of"):
        make_steerable(TINY_PIPELINES["flux"]().transformer, family=replace(FLUX, distillation=None))


def test_embeds_keep_each_text_with_its_mask():
    a, b = (PromptEmbeds(torch.full((2, 3, 1), value), torch.full((2, 3), int(value))) for value in (1.0, 2.0))
    both = cat([a, b])
    assert len(both) == 4
    assert both[1:3].embeds[:, 0, 0].tolist() == [1.0, 2.0]
    assert both[1:3].attention_mask[:, 0].tolist() == [1, 2]
    mixed = where(torch.tensor([True, False]), a[:1], b)
    assert (mixed.embeds[:, 0, 0].tolist(), mixed.attention_mask[:, 0].tolist()) == ([1.0, 2.0], [1, 2])
    assert where(torch.tensor([True]), PromptEmbeds(a.embeds[:1]), PromptEmbeds(b.embeds[:1])).attention_mask is None
