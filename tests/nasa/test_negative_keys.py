"""Keys that are computed once give the same output as a negative prompt with each call."""

import pytest
import torch

from nasa import negative_keys
from nasa.attention import SteeredAttnProcessor
from nasa.families import find_family
from nasa.prompt_embeds import cat
from nasa.steerable_denoiser import make_steerable
from nasa.testing.tiny_pipelines import TINY_PIPELINES

SCALES = torch.tensor([0.3, 0.9])


@torch.no_grad()
@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl", "pixart", "pixart-sigma", "sana"])
def test_cached_keys_equal_the_negatives_themselves(family):
    pipe = TINY_PIPELINES[family]()
    description, model = find_family(pipe)
    denoiser = make_steerable(model, family=description)
    length = 16 if description.distillation.masks_padding else None
    first, second, prompt = (description.encode(pipe, [text], length) for text in ("a dog", "blurry", "a cat"))
    keys = [denoiser.compute_negative_keys(negative) for negative in (first, second)]
    shape = description.distillation.latent_shape(model.config, 0)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([999, 20])

    def run(negative):
        return denoiser(latents, times, prompt.expand(2), negative, SCALES)

    expected = run(cat([first, second]))
    both = negative_keys.cat(keys)
    torch.testing.assert_close(run(both), expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(run(both), run(both))
    assert not torch.allclose(run(negative_keys.cat(keys[::-1])), expected, atol=1e-5)
    torch.testing.assert_close(run(cat([first, second])), expected, atol=0, rtol=0)  # no key is left behind
    assert len(both) == 2
    assert both.nbytes == sum(part.nbytes for part in keys)


@torch.no_grad()
def test_keys_of_the_negative_are_not_computed_again(monkeypatch):
    pipe = TINY_PIPELINES["stable-diffusion"]()
    description, model = find_family(pipe)
    denoiser = make_steerable(model, family=description)
    prompt, negative = (description.encode(pipe, [text], None) for text in ("a cat", "a dog"))
    keys = denoiser.compute_negative_keys(negative)
    calls, project = [], SteeredAttnProcessor.project_key_value
    monkeypatch.setattr(
        SteeredAttnProcessor, "project_key_value", lambda *arguments: calls.append(1) or project(*arguments)
    )
    latents = torch.randn(1, *description.distillation.latent_shape(model.config, 0))
    counts = []
    for given in (keys, negative):
        calls.clear()
        denoiser(latents, torch.tensor([999]), prompt, given, 0.5)
        counts.append(len(calls))
    assert counts == [len(keys.layers), 2 * len(keys.layers)]


def test_joint_attention_has_no_keys_of_the_negative_alone():
    pipe = TINY_PIPELINES["flux"]()
    description, model = find_family(pipe)
    with pytest.raises(ValueError, match="denoiser: got FluxTransformer2DModel; expected one with cross-attention"):
        make_steerable(model, family=description).compute_negative_keys(description.encode(pipe, ["a dog"], 16))
