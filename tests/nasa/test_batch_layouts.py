"""The rows and layers that are steered: by `conditional`, in subclasses, and in image-to-video models."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

import nasa
from nasa.attention import SteeredAttnProcessor
from nasa.testing.pipeline_variants import build_variant
from nasa.testing.tiny_pipelines import TINY_CALLS, TINY_PIPELINES

SCALE = 0.6


@pytest.fixture
def stable_diffusion():
    return TINY_PIPELINES["stable-diffusion"]()


def draw(pipe, **overrides):
    call = {**TINY_CALLS["stable-diffusion"], **overrides}
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **call)[0]


def draw_steered(pipe, **overrides):
    with nasa.steer(pipe, "dog", SCALE):
        return draw(pipe, **overrides)


def make_inputs(model):
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 4, 4, generator=generator),
        "timestep": torch.ones(2),
        "encoder_hidden_states": torch.randn(2, 16, 16, generator=generator),
    }


@torch.no_grad()
@pytest.mark.parametrize("positional", [0, 1, 3])
def test_a_denoiser_is_called_by_keywords_and_by_position(stable_diffusion, positional):
    """A call from outside the pipeline has no guidance, even after a call that had it."""
    pipe = stable_diffusion
    inputs = make_inputs(pipe.unet)
    args, kwargs = list(inputs.values())[:positional], dict(list(inputs.items())[positional:])
    plain = pipe.unet(**inputs)[0]
    with nasa.steer(pipe, "dog", SCALE):
        first = pipe.unet(*args, **kwargs)[0]
        draw(pipe, guidance_scale=3.0)
        again = pipe.unet(*args, **kwargs)[0]
    assert torch.equal(first, again)
    assert all(not torch.allclose(one, other, atol=1e-5) for one, other in zip(first, plain, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(
    ("conditional", "rows"),
    [
        (slice(1, None), [1]),
        ([0], [0]),
        (lambda rows, call: slice(rows // 2), [0]),
        (lambda rows, call: [call], [0]),
        (slice(0), []),
        (None, [0, 1]),
    ],
    ids=["slice", "rows", "half", "by call", "none", "no pipeline"],
)
def test_conditional_rows_are_an_option(stable_diffusion, conditional, rows):
    stand_in = SimpleNamespace(unet=stable_diffusion.unet, scheduler=SimpleNamespace(timesteps=[0]))
    inputs = make_inputs(stand_in.unet)
    negative = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(5))
    plain = stand_in.unet(**inputs)[0]
    with nasa.steer(stand_in, negative_prompt_embeds=negative, scale=SCALE, conditional=conditional):
        steered = stand_in.unet(**inputs)[0]
    changed = [row for row in range(2) if not torch.allclose(plain[row], steered[row], atol=1e-5)]
    assert changed == rows


@torch.no_grad()
def test_missing_rows_are_rejected(stable_diffusion):
    with (
        pytest.raises(ValueError, match=r"conditional: got rows \[2\]; expected rows of a batch of 2"),
        nasa.steer(stable_diffusion, "dog", SCALE, conditional=[2]),
    ):
        stable_diffusion.unet(**make_inputs(stable_diffusion.unet))


class PipelineWithOwnCall(diffusers.StableDiffusionPipeline):
    """A user's pipeline with an unknown batch layout."""

    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)


PipelineOfTheSameName = type(
    "StableDiffusionPipeline", (PipelineWithOwnCall,), {"__call__": PipelineWithOwnCall.__call__}
)


class PipelineWithOwnEncoder(diffusers.StableDiffusionPipeline):
    """A user's pipeline with its parent's batch layout."""

    def encode_prompt(self, prompt, *args, **kwargs):
        return super().encode_prompt(prompt, *args, **kwargs)


def test_a_subclass_has_the_layout_of_its_call(stable_diffusion):
    custom, inherited = (
        kind(**stable_diffusion.components, requires_safety_checker=False)
        for kind in (PipelineWithOwnCall, PipelineWithOwnEncoder)
    )
    for subclass in (custom, inherited):
        subclass.set_progress_bar_config(disable=True)
    expected = draw_steered(stable_diffusion, guidance_scale=3.0)
    assert torch.equal(draw_steered(inherited, guidance_scale=3.0), expected)
    unknown = pytest.raises(ValueError, match=r"pipe: got \w+; .*Pass conditional=")
    for subclass in (custom, PipelineOfTheSameName(**stable_diffusion.components, requires_safety_checker=False)):
        with unknown, nasa.steer(subclass, "dog"):
            pass
    with nasa.steer(custom, "dog", SCALE, conditional=lambda rows, call: slice(rows // 2, None)):
        assert torch.equal(draw(custom, guidance_scale=3.0), expected)


def test_skip_layer_guidance_is_plain(monkeypatch):
    """Stable Diffusion 3.5 guides away from a second call with skipped layers in the first steps."""
    pipe, call = build_variant("StableDiffusion3Pipeline")
    call = {**call, "guidance_scale": 4.0, "num_images_per_prompt": 2, "skip_guidance_layers": [1]}
    outputs = {}
    for scale in (0.0, SCALE):
        recorded = outputs.setdefault(scale, [])
        hook = pipe.transformer.register_forward_hook(
            lambda m, a, output, recorded=recorded: recorded.append(output[0])
        )
        with nasa.steer(pipe, "dog", scale):
            pipe(
                "a cat",
                **call,
                skip_layer_guidance_start=-1.0,
                skip_layer_guidance_stop=1.0,
                generator=torch.Generator().manual_seed(0),
            )
        hook.remove()
    (guided, skipped), (steered, steered_skipped) = outputs.values()
    assert torch.equal(skipped, steered_skipped)
    torch.testing.assert_close(guided[:2], steered[:2], atol=1e-5, rtol=0)
    assert not torch.allclose(guided[2:], steered[2:], atol=1e-4)


def test_a_tiny_scale_hardly_changes_a_video_of_an_image():
    """Image tokens have separate projections, with and without a negative."""
    pipe, call = build_variant("WanImageToVideoPipeline")
    drawn = []
    for options in ({"scale": 0.0}, {"scale": 1e-6}, {"scale": SCALE}):
        with nasa.steer(pipe, "dog", **options):
            drawn.append(pipe(prompt="a cat", **call, guidance_scale=1, generator=torch.Generator().manual_seed(0))[0])
    plain, almost, steered = drawn
    torch.testing.assert_close(almost, plain, atol=1e-4, rtol=0)
    assert not torch.allclose(steered, plain, atol=1e-3)


def test_layers_with_only_cross_attention_are_steered_too():
    """The upscaler's UNet also attends to the text in attn1 of blocks with `only_cross_attention`."""
    pipe, _ = build_variant("StableDiffusionUpscalePipeline")
    with nasa.steer(pipe, "dog", SCALE):
        steered = {n for n, p in pipe.unet.attn_processors.items() if isinstance(p, SteeredAttnProcessor)}
    first = {name for name in steered if "attn1" in name}
    assert first == {
        n for n in pipe.unet.attn_processors if "attn1" in n and "mid" not in n and "down_blocks.1" not in n
    }


@pytest.mark.parametrize("images", [1, 2])
def test_z_image_is_steered_in_the_steps_without_guidance_too(images):
    """`cfg_truncation` ends guidance in the later steps, whose rows are then all conditional."""
    pipe, call = build_variant("ZImagePipeline")
    call |= {"num_inference_steps": 4, "num_images_per_prompt": images, "guidance_scale": 3.0, "cfg_truncation": 0.2}
    outputs = {}
    for scale in (0.0, SCALE):
        recorded = outputs.setdefault(scale, [])
        hooks = [
            pipe.transformer.register_forward_hook(lambda m, a, output, recorded=recorded: recorded.append(output[0])),
            pipe.transformer.register_forward_pre_hook(
                lambda m, args: ([torch.ones_like(x) for x in args[0]], *args[1:])  # the same in every step
            ),
        ]
        with nasa.steer(pipe, "dog", scale):
            pipe(prompt="a cat", **call, generator=torch.Generator().manual_seed(0))
        for hook in hooks:
            hook.remove()
    assert [len(rows) for rows in outputs[0.0]] == [2 * images, 2 * images, images, images]
    for plain, steered in zip(*outputs.values(), strict=True):
        changed = [not torch.allclose(*pair, atol=1e-4) for pair in zip(plain, steered, strict=True)]
        assert changed == [row < images for row in range(len(plain))]


def test_each_call_of_z_image_starts_anew_also_with_embeddings_and_another_scheduler():
    """The pipeline has no `check_inputs`, and with embeddings it does not call its encoder either."""
    pipe, call = build_variant("ZImagePipeline")
    call |= {"num_inference_steps": 2, "guidance_scale": 0.0}
    embeds, _ = pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
    drawn = []
    for options in ({"prompt": "a cat"}, {"prompt_embeds": embeds}):
        with nasa.steer(pipe, "dog", SCALE, steps={0}):
            for _ in range(2):
                drawn.append(pipe(**call, **options, generator=torch.Generator().manual_seed(0))[0])
                pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert all(torch.equal(image, drawn[0]) for image in drawn)
