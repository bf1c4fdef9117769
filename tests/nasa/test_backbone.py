"""The denoisers that can be trained, against `steer` on the pipelines that they come from."""

import pytest
import torch

import nasa
from nasa.backbone import steerable
from nasa.backbones import backbone_of
from nasa.embeds import Embeds, cat, where
from nasa.testing.pipelines import TINY_PIPELINES

TOLERANCE = 1e-6
SCALE = 0.6


def make(family):
    pipe = TINY_PIPELINES[family]()
    backbone, model = backbone_of(pipe)
    length = None if family == "stable-diffusion" else 16
    text = {name: Embeds(*backbone.encode(pipe, [name], length)) for name in ("a photo", "dog")}
    return pipe, model, text["a photo"], text["dog"]


def inputs(seed=0):
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed)), torch.tensor([999, 20])


@torch.no_grad()
@pytest.mark.parametrize("family", ["stable-diffusion", "pixart"])
def test_a_negative_at_a_call_is_what_steer_does(family):
    _, model, prompt, away = make(family)
    latents, timestep = inputs()
    denoiser = steerable(model)
    plain = denoiser(latents, timestep, prompt.expand(2))
    steered = denoiser(latents, timestep, prompt.expand(2), away, SCALE)
    assert torch.equal(denoiser(latents, timestep, prompt.expand(2)), plain)
    assert steered.shape == plain.shape == latents.shape
    fresh, _, *_ = make(family)
    with nasa.steer(fresh, negative_prompt_embeds=away.states, negative_attention_mask=away.mask, scale=SCALE):
        _, original = backbone_of(fresh)
        expected = type(denoiser)._denoise(_Plain(original), latents, timestep, prompt.expand(2))
    torch.testing.assert_close(steered, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(steered, plain, atol=100 * TOLERANCE)


class _Plain:
    """A denoiser's call without its own steering."""

    def __init__(self, model):
        self.model = model


@torch.no_grad()
def test_the_padding_of_pixart_s_texts_is_not_seen():
    _, model, prompt, away = make("pixart")
    assert not prompt.mask.all()
    denoiser = steerable(model)
    latents, timestep = inputs()

    def run(prompt, away):
        return denoiser(latents, timestep, prompt.expand(2), away, SCALE)

    def noisy(text):
        padding = ~text.mask.bool()[..., None]
        return Embeds(torch.where(padding, torch.randn_like(text.states), text.states), text.mask)

    expected = run(prompt, away)
    torch.testing.assert_close(run(noisy(prompt), noisy(away)), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert not torch.allclose(run(Embeds(prompt.states), away), expected, atol=100 * TOLERANCE)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match="cannot be trained; allowed: UNet2DConditionModel, PixArtTransformer2DModel"):
        steerable(TINY_PIPELINES["flux"]().transformer)


def test_embeds_keep_each_text_with_its_mask():
    a, b = (Embeds(torch.full((2, 3, 1), value), torch.full((2, 3), int(value))) for value in (1.0, 2.0))
    both = cat([a, b])
    assert len(both) == 4
    assert both[1:3].states[:, 0, 0].tolist() == [1.0, 2.0]
    assert both[1:3].mask[:, 0].tolist() == [1, 2]
    mixed = where(torch.tensor([True, False]), a[:1], b)
    assert (mixed.states[:, 0, 0].tolist(), mixed.mask[:, 0].tolist()) == ([1.0, 2.0], [1, 2])
    assert where(torch.tensor([True]), Embeds(a.states[:1]), Embeds(b.states[:1])).mask is None
