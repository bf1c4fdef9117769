"""The pipeline families, at small width with random weights.

The main check needs no second implementation: steering a prompt away from itself leaves (1 - alpha) Z+,
which a hook that scales the input of `to_out` gives too. A wrong sign, a dropped mask, a text that was not
projected or normalised, or a wrong half of the batch each break it.
"""

import pytest
import torch

import nasa
from nasa.attention import SteeredAttnProcessor
from nasa.families import find_family
from nasa.joint_attention import JointSteeredProcessor
from nasa.single_sequence import list_processors
from nasa.testing.tiny_pipelines import TINY_CALLS, TINY_PIPELINES

TOLERANCE = 2e-5
SCALE = 0.4
LONG, SHORT = "a photo of", "cat"
CROSS_ATTENTION_FAMILIES = (
    "stable-diffusion",
    "sdxl",
    "pixart",
    "pixart-sigma",
    "sana",
    "sana-sprint",
    "wan",
)  # test_joint_attention.py has the others
GUIDED_FAMILIES = ("stable-diffusion", "sdxl", "pixart", "pixart-sigma", "wan")


@pytest.fixture(scope="module", params=TINY_PIPELINES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(family):
    return TINY_PIPELINES[family]()


def draw(family, pipe, prompt=LONG, **overrides):
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt=prompt, generator=generator, **{**TINY_CALLS[family], **overrides})[0]


def reads_text(family, name):
    """Return whether a processor belongs to a layer that attends to the text."""
    if family == "z-image":
        return not name.startswith("noise_refiner.")
    return (".attn2." if family in CROSS_ATTENTION_FAMILIES else ".attn.") in name


def length_options(family):
    """Return options that pad the tests' prompts to less than the family's default length."""
    return {} if "max_sequence_length" not in TINY_CALLS[family] else {"max_sequence_length": 16}


def scale_attention(pipe, factor, chosen=lambda z: slice(None)):
    """Scale the input of every cross-attention layer's output projection in the chosen rows."""
    _, model = find_family(pipe)

    def scale(_, args):
        (z,) = args
        z = z.clone()
        z[chosen(z)] *= factor
        return (z,)

    layers = [module for name, module in model.named_modules() if name.endswith("attn2")]
    return [layer.to_out[0].register_forward_pre_hook(scale) for layer in layers]


def draw_expected(family, pipe, factor, chosen=lambda z: slice(None), **overrides):
    hooks = scale_attention(pipe, factor, chosen)
    try:
        return draw(family, pipe, **overrides)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("family", CROSS_ATTENTION_FAMILIES, indirect=True)
@pytest.mark.parametrize("prompt", [LONG, [LONG, SHORT]], ids=["one", "two"])
def test_steering_away_from_the_prompt_scales_its_attention(family, pipe, prompt):
    with nasa.steer(pipe, prompt, SCALE, **length_options(family)):
        steered = draw(family, pipe, prompt)
    torch.testing.assert_close(
        steered, draw_expected(family, pipe, 1 - SCALE, prompt=prompt), atol=TOLERANCE, rtol=TOLERANCE
    )
    assert (steered - draw(family, pipe, prompt)).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", GUIDED_FAMILIES, indirect=True)
def test_guidance_steers_only_the_conditional_half(family, pipe):
    """Guidance steers half of the batch, or the first of two calls."""
    calls = []
    _, model = find_family(pipe)
    count = model.register_forward_pre_hook(lambda *_: calls.append(None))

    def conditional(z):
        if family == "wan":
            return slice(None) if len(calls) % 2 else slice(0)
        return slice(len(z) // 2, None)

    expected = draw_expected(family, pipe, 1 - SCALE, conditional, guidance_scale=3)
    count.remove()
    with nasa.steer(pipe, LONG, SCALE, **length_options(family)):
        steered = draw(family, pipe, guidance_scale=3)
    torch.testing.assert_close(steered, expected, atol=5 * TOLERANCE, rtol=TOLERANCE)


def test_none_and_scale_zero_are_bitwise_plain(family, pipe):
    plain = draw(family, pipe)
    for options in ({"negative_prompt": None}, {"negative_prompt": SHORT, "scale": 0}):
        with nasa.steer(pipe, **options):
            assert torch.equal(draw(family, pipe), plain)


def test_the_original_processors_are_restored(family, pipe):
    _, model = find_family(pipe)
    before, plain = list_processors(model), draw(family, pipe)
    with nasa.steer(pipe, SHORT, SCALE):
        inside = list_processors(model).items()
        steered = {name for name, p in inside if isinstance(p, SteeredAttnProcessor | JointSteeredProcessor)}
        assert steered == {name for name in before if reads_text(family, name)}
        draw(family, pipe)
    with pytest.raises(KeyError, match="on purpose"), nasa.steer(pipe, SHORT, SCALE):
        raise KeyError("on purpose")
    assert all(list_processors(model)[name] is processor for name, processor in before.items())
    assert torch.equal(draw(family, pipe), plain)


@pytest.mark.parametrize("family", CROSS_ATTENTION_FAMILIES, indirect=True)
def test_negatives_for_each_prompt_with_several_images_per_prompt(family, pipe):
    count = {"num_videos_per_prompt" if family == "wan" else "num_images_per_prompt": 2}
    prompts = [LONG, LONG[::-1]]  # equally long: diffusers' SANA mixes up the masks of several images per prompt
    with nasa.steer(pipe, prompts, [SCALE, 0.0], **length_options(family)):
        steered = draw(family, pipe, prompts, **count)
    expected = draw_expected(family, pipe, 1 - SCALE, lambda z: slice(0, 2), prompt=prompts, **count)
    torch.testing.assert_close(steered, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_steps_can_be_limited(family, pipe):
    with nasa.steer(pipe, SHORT, SCALE, steps={0}):
        first = draw(family, pipe)
        assert torch.equal(draw(family, pipe), first)
    with nasa.steer(pipe, SHORT, SCALE):
        both = draw(family, pipe)
    with nasa.steer(pipe, SHORT, SCALE, steps=range(2)):
        assert torch.equal(draw(family, pipe), both)
    plain = draw(family, pipe)
    assert not torch.equal(first, both)
    assert not torch.equal(first, plain)


def test_layers_can_be_limited(family, pipe):
    _, model = find_family(pipe)
    steered = [name for name in list_processors(model) if reads_text(family, name)]
    name = next(name for name in steered if not name.startswith("context_refiner."))  # Z-Image's, of texts alone
    with nasa.steer(pipe, SHORT, SCALE, layers=lambda layer: layer == name):
        one = draw(family, pipe)
    with nasa.steer(pipe, SHORT, SCALE):
        unlimited = draw(family, pipe)
    assert not torch.equal(one, unlimited)
    with pytest.raises(ValueError, match="attention layer"), nasa.steer(pipe, SHORT, layers=lambda _: False):
        pass


@pytest.mark.parametrize("method", ["nag", "vsf"])
def test_other_rules_give_another_image(family, pipe, method):
    images = []
    for chosen in ("nasa", method):
        with nasa.steer(pipe, SHORT, SCALE, rule=chosen):
            images.append(draw(family, pipe))
    assert images[1].isfinite().all()
    assert not torch.allclose(images[0], images[1])


def test_negative_embeddings_with_their_mask_equal_the_text(family, pipe):
    family_spec, _ = find_family(pipe)
    encoded = family_spec.encode(pipe, [SHORT], *length_options(family).values() or [None])
    embeds, mask = encoded.embeds, encoded.attention_mask
    with nasa.steer(pipe, SHORT, SCALE, **length_options(family)):
        by_text = draw(family, pipe)
    with nasa.steer(pipe, negative_prompt_embeds=embeds, negative_attention_mask=mask, scale=SCALE):
        torch.testing.assert_close(draw(family, pipe), by_text, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", ["stable-diffusion", "wan"], indirect=True)
def test_a_negative_that_no_layer_used_is_an_error(family, pipe):
    """The error is raised even if the last call of the denoiser is unconditional."""
    _, model = find_family(pipe)
    plain = dict(model.attn_processors)

    def draw_unsteered():
        model.set_attn_processor(plain)
        draw(family, pipe, guidance_scale=3)

    unused = pytest.raises(ValueError, match="layers: got no layer that uses the negative prompt")
    with unused, nasa.steer(pipe, SHORT, SCALE, **length_options(family)):
        draw_unsteered()


def test_a_saved_pipeline_is_loaded_and_steered(family, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(family, loaded), draw(family, pipe), atol=TOLERANCE, rtol=TOLERANCE)
    images = []
    for chosen in (pipe, loaded):
        with nasa.steer(chosen, SHORT, SCALE, **length_options(family)):
            images.append(draw(family, chosen))
    torch.testing.assert_close(*images, atol=TOLERANCE, rtol=TOLERANCE)
