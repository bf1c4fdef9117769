"""The guider of modular pipelines, compared with `steer`."""

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import QwenImageAutoBlocks, StableDiffusionXLAutoBlocks, ZImageAutoBlocks

import nasa
from nasa.testing.tiny_pipelines import TINY_PIPELINES

CALL = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "latent"}
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")


@pytest.fixture(scope="module")
def pipe():
    return TINY_PIPELINES["sdxl"]()


@pytest.fixture(scope="module")
def modular(pipe):
    modular = StableDiffusionXLAutoBlocks().init_pipeline()
    modular.update_components(**{name: getattr(pipe, name) for name in PARTS})
    modular.set_progress_bar_config(disable=True)
    return modular


def make_generator():
    return torch.Generator().manual_seed(0)


def run_guided(modular, **options):
    modular.update_components(guider=nasa.NasaGuidance(**options))
    return modular(prompt="a photo", negative_prompt="dog", generator=make_generator(), output="images", **CALL)


def run_steered(pipe, **options):
    with nasa.steer(pipe, "dog", **options):
        return pipe("a photo", guidance_scale=0, generator=make_generator(), **CALL).images


@pytest.mark.parametrize(
    ("guider", "steer"),
    [
        ({"scale": 0.4}, {"scale": 0.4}),
        ({"scale": 1.0, "rule": "nag"}, {"scale": 1.0, "rule": "nag"}),
        ({"scale": 0.4, "stop": 0.4}, {"scale": 0.4, "steps": {0}}),
        ({"scale": 0.4, "start": 0.4}, {"scale": 0.4, "steps": {1, 2}}),
        ({"scale": 0.0}, {"scale": 0}),
        ({"scale": 0.4, "enabled": False}, {"scale": 0}),
    ],
    ids=str,
)
def test_the_guider_gives_the_same_images_as_steer(modular, pipe, guider, steer):
    assert torch.equal(run_guided(modular, **guider), run_steered(pipe, **steer))


def test_the_denoiser_is_left_as_it_was(modular, pipe):
    before, plain = dict(pipe.unet.attn_processors), run_steered(pipe, scale=0)
    assert not torch.equal(run_guided(modular, scale=0.4), plain)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())
    assert torch.equal(run_steered(pipe, scale=0), plain)


@pytest.mark.parametrize(
    ("family", "blocks", "options"),
    [("qwen-image", QwenImageAutoBlocks, {}), ("z-image", ZImageAutoBlocks, {"guidance_scale": 0})],
)
def test_padding_of_the_negatives_has_no_effect(family, blocks, options):
    """Two negatives of unequal length come with a mask, or, for Z-Image, as a list."""
    pipe = TINY_PIPELINES[family]()
    modular = blocks().init_pipeline()
    parts = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
    modular.update_components(**{name: getattr(pipe, name) for name in parts})
    modular.set_progress_bar_config(disable=True)
    modular.update_components(guider=nasa.NasaGuidance(scale=0.5))
    prompts, negatives = ["a cat", "dog"], ["blurry", "on a table, or on a chair beside a window of the house"]
    call = {**CALL, "output_type": "pt", "generator": make_generator()}
    run_guided = modular(prompt=list(prompts), negative_prompt=list(negatives), output="images", **call)
    steered = []
    for scale in (0.5, 0.0):
        with nasa.steer(pipe, negatives, scale):
            call["generator"] = make_generator()
            steered.append(pipe(list(prompts), **call, **options).images)
    assert torch.equal(run_guided, steered[0])
    assert not torch.allclose(run_guided, steered[1], atol=1e-4)


def test_a_modular_pipeline_is_steered_only_by_its_guider(modular, pipe):
    """The pipeline's default guider also calls the denoiser for the unconditional prediction."""
    message = "pipe: got StableDiffusionXLModularPipeline; .* Make nasa.NasaGuidance its guider"
    with pytest.raises(ValueError, match=message), nasa.steer(modular, "dog"):
        pass
    modular.update_components(guider=ClassifierFreeGuidance())
    expected = r"pipe: got a call of StableDiffusionXLModularPipeline while"
    with nasa.steer(pipe, "dog"), pytest.raises(ValueError, match=expected):
        modular(prompt="a photo", generator=make_generator(), output="images", **CALL)
