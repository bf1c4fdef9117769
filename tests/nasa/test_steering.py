import pytest
import torch

import nasa
from nasa.attention import SteeredAttnProcessor
from nasa.testing import TINY_PIPELINES, tiny_stable_diffusion


@pytest.fixture(scope="module")
def pipe():
    return tiny_stable_diffusion()


def draw_image(pipe, guidance_scale=0, **options):
    generator = torch.Generator().manual_seed(3)
    return pipe(
        "a photo",
        num_inference_steps=1,
        guidance_scale=guidance_scale,
        generator=generator,
        output_type="pt",
        **options,
    ).images


@pytest.mark.parametrize("guidance_scale", [0, 4])
def test_a_negative_changes_the_image_and_leaves_no_trace(pipe, guidance_scale):
    before = dict(pipe.unet.attn_processors)
    plain = draw_image(pipe, guidance_scale)
    with nasa.steer(pipe, negative_prompt="blurry", scale=1.0):
        steered = draw_image(pipe, guidance_scale)
    assert not torch.equal(steered, plain)
    assert torch.equal(draw_image(pipe, guidance_scale), plain)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())


@pytest.mark.parametrize("options", [{"negative_prompt": None}, {"negative_prompt": "blurry", "scale": 0}])
def test_none_and_scale_zero_are_bitwise_plain(pipe, options):
    plain = draw_image(pipe)
    with nasa.steer(pipe, **options):
        assert torch.equal(draw_image(pipe), plain)


def test_the_empty_string_is_a_negative(pipe):
    with nasa.steer(pipe, negative_prompt="", scale=1.0):
        steered = draw_image(pipe)
    assert not torch.equal(steered, draw_image(pipe))


def test_processors_return_after_an_exception(pipe):
    before = dict(pipe.unet.attn_processors)
    with pytest.raises(KeyError, match="on purpose"), nasa.steer(pipe, negative_prompt="blurry"):
        raise KeyError("on purpose")
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())


def test_only_cross_attention_is_steered(pipe):
    with nasa.steer(pipe, negative_prompt="blurry"):
        steered = {n for n, p in pipe.unet.attn_processors.items() if isinstance(p, SteeredAttnProcessor)}
    assert steered == {name for name in pipe.unet.attn_processors if "attn2" in name}
    assert steered


def test_one_negative_for_each_prompt(pipe):
    def draw():
        generator = torch.Generator().manual_seed(3)
        return pipe(["a", "b"], num_inference_steps=1, guidance_scale=0, generator=generator, output_type="pt").images

    with nasa.steer(pipe, negative_prompt=["blurry", "dark"], scale=[1.0, 0.0]):
        steered = draw()
    plain = draw()
    assert not torch.allclose(steered[0], plain[0])
    torch.testing.assert_close(steered[1], plain[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_prompt": "x", "rule": "magic"}, "rule: got 'magic'; expected nasa, nag, vsf"),
        ({"negative_prompt": "x", "negative_prompt_embeds": torch.zeros(1, 1, 1)}, "expected one of the two"),
    ],
)
def test_invalid_arguments_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message), nasa.steer(pipe, **options):
        pass


def test_a_model_without_cross_attention_is_rejected(pipe):
    class Other:
        unet = None

    with (
        pytest.raises(ValueError, match="Other: denoiser: got NoneType; expected"),
        nasa.steer(Other(), negative_prompt="x"),
    ):
        pass


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        (
            "stable-diffusion",
            {"negative_prompt_2": "x"},
            "negative_prompt_2: got 'x'; expected None, as StableDiffusionP",
        ),
        ("sdxl", {"negative_prompt_3": "x"}, "negative_prompt_3: got 'x'; expected None, as StableDiffusionXLP"),
        ("sdxl", {"negative_prompt": None, "negative_prompt_2": "x"}, "negative_prompt: got None beside"),
    ],
)
def test_a_negative_without_an_encoder_is_rejected(family, options, message):
    pipe = TINY_PIPELINES[family]()
    with pytest.raises(ValueError, match=message), nasa.steer(pipe, **{"negative_prompt": "dog", **options}):
        pass
